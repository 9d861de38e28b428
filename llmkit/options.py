"""Strict options: the command line and one YAML file into dataclasses, and where each value came from.

transformers' `HfArgumentParser` turns the dataclasses into options. What it lacks is here: every problem is found
before anything is said, values of a YAML file are checked as strictly as those of the command line, an unknown name
is answered with the nearest valid one, and the source of each value is kept for the model folder.
"""

import argparse
import dataclasses
import json
import math
import sys
import typing
from pathlib import Path
from typing import Any

from llmkit.errors import nearest, refuse

SECRETS = {"hub_token"}  # options that are never written


def option(default: Any, help: str) -> Any:
    """A field of an options dataclass with its line of `--help`."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass
class Setting:
    """One option's value, where it came from, and for a derived one the reason.

    `source` is "default", "command line", "file NAME", "derived" or "inherited from FOLDER".
    """

    value: Any
    source: str
    reason: str | None = None


class Settings(dict[str, Setting]):
    """All the settings of a run by name: what `llmkit.json` stores under "options"."""

    def given(self, name: str) -> bool:
        """Whether the user set this option, on the command line or in a file."""
        return self[name].source not in ("default", "derived") and not self[name].source.startswith("inherited")

    def derive(self, name: str, value: Any, reason: str) -> Any:
        """Fill in a value that is still the default, and return the one that holds.

        A value that was given, inherited, or derived when this run first started, stays.
        """
        if self[name].source == "default":
            self[name] = Setting(value, "derived", reason)
        return self[name].value

    def inherit(self, name: str, value: Any, folder: str) -> Any:
        """Take over a value from the model that a run starts from, unless the user gave one."""
        if self[name].source == "default":
            self[name] = Setting(value, f"inherited from {folder}")
        return self[name].value

    def given_values(self) -> dict[str, Any]:
        return {name: setting.value for name, setting in self.items() if self.given(name)}

    def build(self, dataclass: type) -> Any:
        """An instance of a dataclass whose fields are settings, with all that is not its default."""
        names = {f.name for f in dataclasses.fields(dataclass) if f.init} & self.keys()
        return dataclass(**{name: self[name].value for name in names if self[name].source != "default"})

    def to_json(self) -> dict[str, dict[str, Any]]:
        """What a model folder may show to anybody: everything but secrets."""
        return {
            name: {key: value for key, value in dataclasses.asdict(setting).items() if key != "reason" or value}
            for name, setting in self.items()
            if name not in SECRETS
        }

    @classmethod
    def from_json(cls, stored: dict[str, dict[str, Any]]) -> "Settings":
        return cls({name: Setting(**fields) for name, fields in stored.items()})


class _OneOption(argparse.ArgumentError):
    """What argparse says of a single option."""


def parse_options(
    options: type, training_arguments: type | None = None, description: str = "", argv: list[str] | None = None
) -> tuple[Any, Any, Settings]:
    """Parse the command line (and the file of `--config`) strictly.

    Args:
        options: the recipe's own dataclass; its options come first in `--help`.
        training_arguments: a dataclass derived from `transformers.TrainingArguments`, or None.
        description: the first lines of `--help`.
        argv: the words after the program's name; those of this process if None.

    Returns:
        An instance of each dataclass (None for a missing second one) and the `Settings`.

    Raises:
        UserError: unknown option or YAML key, wrong type or choice, option given twice, unreadable file; all at once.
    """
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    argv = sys.argv[1:] if argv is None else argv
    options._argument_group_name = "llmkit"
    types = [options]
    if training_arguments is not None:
        training_arguments._argument_group_name = "training (transformers.TrainingArguments)"
        types.append(training_arguments)
    parser = HfArgumentParser(types, description=description, allow_abbrev=False)
    for action in parser._actions:
        if action.type is string_to_bool and action.nargs is None:  # `bool | None`: --x alone says true there too
            action.nargs, action.const = "?", True
    parser.add_argument("--config", metavar="FILE.yaml", help="a YAML file of options; the command line wins over it")
    if "--help" in argv or "-h" in argv:
        _escape_percent_signs(parser)
        parser.parse_args(["--help"])

    problems: list[str] = []
    from_command_line = _words_by_option(parser, argv, problems)
    from_file: dict[str, list[str]] = {}
    file = (from_command_line.pop("config", None) or [None])[-1]
    if file is not None:
        from_file = _words_of_yaml(parser, Path(file), problems)

    values: dict[str, Any] = {}
    settings = Settings()
    of_dictionaries: set[str] = set()
    for dataclass in types:
        of_dictionaries |= {name for name, kind in typing.get_type_hints(dataclass).items() if "dict" in str(kind)}
        for field in dataclasses.fields(dataclass):
            if field.init:
                values[field.name] = parser.get_default(field.name)
                settings[field.name] = Setting(values[field.name], "default")
    for source, words_by_option in ((f"file {file}", from_file), ("command line", from_command_line)):
        for name, words in words_by_option.items():
            try:
                value = _parse_one(parser, words, name)
                if isinstance(value, float) and math.isnan(value):
                    raise _OneOption(None, f"{words[0]}: must be a number, got {words[1]}")
                if name in of_dictionaries and isinstance(value, str) and value.startswith("{"):
                    _check_json(value, words[0])  # TrainingArguments reads it, and would not say which option it was
            except _OneOption as error:
                problems.append(f"{error} ({source})")
                continue
            values[name] = value
            settings[name] = Setting(value, source)
    refuse(problems)

    instances = []
    for dataclass in types:
        own = {f.name: values[f.name] for f in dataclasses.fields(dataclass) if f.init}
        try:
            instances.append(dataclass(**own))
        except (ValueError, TypeError, ImportError, OSError) as error:  # what TrainingArguments itself refuses
            # Its enumerations say "x is not a valid …", and not which option was x.
            names = [
                f"--{name} " for name, value in settings.given_values().items() if str(error).startswith(f"{value} is")
            ]
            problems.append(f"{names[0] if names else ''}{error}")
    refuse(problems)
    return instances[0], (instances[1] if training_arguments is not None else None), settings


def _option_named(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    return parser._option_string_actions.get(word)


def _nearest(parser: argparse.ArgumentParser, word: str) -> str:
    known = [name for name in parser._option_string_actions if "-" not in name[2:]]
    return nearest("--" + word.lstrip("-").replace("-", "_"), known) or "; --help lists the options"


def _words_by_option(parser: argparse.ArgumentParser, argv: list[str], problems: list[str]) -> dict[str, list[str]]:
    """Cut the command line into {option: [its word and the words of its value]}."""
    found: dict[str, list[str]] = {}
    current: str | None = None
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            action = _option_named(parser, name)
            current = None
            if action is None:
                problems.append(f"unknown option {name}{_nearest(parser, name)}")
                current = ""  # the words of an unknown option are not a problem of their own
                continue
            if action.dest in found:
                problems.append(f"{name} is given twice; keep one")
            current = action.dest
            found[current] = [name] + ([value] if equals else [])
        elif current is None:
            problems.append(f"{word!r} does not belong to an option; write --option {word}")
        elif current:
            found[current].append(word)
    if "config" in found and len(found["config"]) != 2:
        problems.append("--config takes one YAML file")
        del found["config"]
    return found


def _words_of_yaml(parser: argparse.ArgumentParser, file: Path, problems: list[str]) -> dict[str, list[str]]:
    """The options of a YAML file, written as the command line would have them."""
    import yaml

    class LoaderThatSeesRepeats(yaml.SafeLoader):
        """PyYAML takes the last of two equal keys without a word."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            repeated = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
            problems.extend(f"{file}: {key} is given twice; keep one" for key in repeated)
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), LoaderThatSeesRepeats)
    except FileNotFoundError:
        problems.append(f"--config {file}: there is no such file")
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"--config {file}: not a YAML file that can be read: {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"--config {file}: must hold `option: value` lines, found {type(content).__name__}")
        return {}
    words: dict[str, list[str]] = {}
    for key, value in content.items():
        action = _option_named(parser, f"--{key}")
        if action is None or key in ("config", "help"):
            problems.append(f"{file}: unknown key {key!r}{_nearest(parser, str(key)).replace('mean --', 'mean ')}")
        elif value is None:
            continue  # `key:` with nothing behind it says: the default
        elif action.nargs == 0:  # the --no_x of a command line
            problems.append(f"{file}: {key} takes no value; write {action.dest}: false")
        elif action.dest in words:
            problems.append(f"{file}: {key} is given twice, by two spellings; keep one")
        elif isinstance(value, list):
            words[action.dest] = [f"--{key}", *map(str, value)]
        elif isinstance(value, dict):
            words[action.dest] = [f"--{key}", json.dumps(value)]
        else:
            words[action.dest] = [f"--{key}", str(value)]
    return words


def _parse_one(parser: argparse.ArgumentParser, words: list[str], name: str) -> Any:
    """Let argparse convert and check one option by itself, so that the problem of one does not hide the next."""

    option, *given = words

    def raise_instead_of_exit(message: str) -> None:
        raise _OneOption(None, f"{option}: {message.partition(': ')[2]}")  # argparse names all spellings of the option

    original, parser.error = parser.error, raise_instead_of_exit
    try:
        # With = a value may begin with a dash.
        namespace, rest = parser.parse_known_args([f"{option}={given[0]}"] if len(given) == 1 else words)
    finally:
        parser.error = original
    if rest:
        raise _OneOption(None, f"{option} takes one value, got {' '.join(given)!r}")
    return getattr(namespace, name)


def _check_json(value: str, option: str) -> None:
    try:
        json.loads(value)
    except ValueError as error:
        raise _OneOption(None, f"{option}: {value} is not JSON: {error}") from None


def _escape_percent_signs(parser: argparse.ArgumentParser) -> None:
    """argparse formats help texts with %; those of TrainingArguments hold some that are meant literally."""
    for action in parser._actions:
        if action.help and "%(" not in action.help:
            action.help = action.help.replace("%%", "%").replace("%", "%%")
