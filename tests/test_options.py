"""Options: read strictly from the command line and a file, all problems at once, and the source of every value."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from llmkit.errors import UserError
from llmkit.options import Setting, Settings, parse_options


@dataclass
class Options:
    data: str | None = field(default=None, metadata={"help": "File; 100 % of it is read."})
    depth: int | None = field(default=None, metadata={"help": "Layers."})
    dropout: float = field(default=0.1, metadata={"help": "Share that is dropped."})
    optimizer: Literal["muon", "adamw"] = field(default="muon", metadata={"help": "For hidden matrices."})
    overwrite: bool = field(default=False, metadata={"help": "Delete what is there."})
    shuffle: bool = field(default=True, metadata={"help": "Shuffle the rows."})
    compiled: bool | None = field(default=None, metadata={"help": "None: where it is faster."})
    columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "Columns."})
    schedule: dict | str | None = field(default=None, metadata={"help": "Settings of the schedule."})


def parse(*words: object) -> tuple[Options, Settings]:
    options, nothing, settings = parse_options(Options, argv=[str(word) for word in words])
    assert nothing is None
    return options, settings


def problems(*words: object) -> list[str]:
    with pytest.raises(UserError) as refused:
        parse(*words)
    return refused.value.problems


@pytest.fixture
def yaml_file(tmp_path, monkeypatch):
    """Writes run.yaml into the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("run.yaml").write_text(text, encoding="utf-8")
        return "run.yaml"

    return write


# ---------------------------------------------------------------------------------------------- what is given


def test_without_words_every_value_is_its_default():
    options, settings = parse()
    assert options == Options()
    assert {name: (s.value, s.source) for name, s in settings.items()} == {
        name: (value, "default") for name, value in vars(Options()).items()
    }


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--depth", "3"], "depth", 3),
        (["--depth=3"], "depth", 3),
        (["--dropout", "1e-3"], "dropout", 0.001),
        (["--dropout", "-1"], "dropout", -1.0),  # whether it makes sense is the recipe's matter
        (["--data", "my text.txt"], "data", "my text.txt"),
        (["--data=a=b.txt"], "data", "a=b.txt"),
        (["--data=-.txt"], "data", "-.txt"),
        (["--data=--depth"], "data", "--depth"),
        (["--data="], "data", ""),
        (["--optimizer", "adamw"], "optimizer", "adamw"),
        (["--overwrite"], "overwrite", True),
        (["--overwrite", "false"], "overwrite", False),
        (["--overwrite=yes"], "overwrite", True),
        (["--no_shuffle"], "shuffle", False),
        (["--no-shuffle"], "shuffle", False),
        (["--shuffle", "0"], "shuffle", False),
        (["--compiled"], "compiled", True),  # an option whose default is None is a switch too
        (["--compiled", "false"], "compiled", False),
        (["--columns", "a", "b"], "columns", ["a", "b"]),
        (["--columns=a"], "columns", ["a"]),
        (["--schedule", '{"steps": 3}'], "schedule", '{"steps": 3}'),
    ],
)
def test_command_line(words, name, value):
    options, settings = parse(*words)
    assert vars(options) == vars(Options()) | {name: value}
    assert settings[name] == Setting(value, "command line")
    assert settings.given_values() == {name: value}


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("depth: 3", "depth", 3),
        ("dropout: 1e-3", "dropout", 0.001),  # a text to YAML 1.1, which wants 1.0e-3
        ("dropout: 1", "dropout", 1.0),
        ("data: 2024", "data", "2024"),
        ("data: -.txt", "data", "-.txt"),
        ("data: ''", "data", ""),
        ("optimizer: adamw", "optimizer", "adamw"),
        ("overwrite: yes", "overwrite", True),
        ("shuffle: false", "shuffle", False),
        ("compiled: true", "compiled", True),
        ("columns: [a, b]", "columns", ["a", "b"]),
        ("columns:\n- a\n- b", "columns", ["a", "b"]),
        ("columns: a", "columns", ["a"]),
        ("schedule: {steps: 3}", "schedule", '{"steps": 3}'),
        ("schedule:\n  steps: 3\n  decay: true", "schedule", '{"steps": 3, "decay": true}'),
    ],
)
def test_file(yaml_file, line, name, value):
    options, settings = parse("--config", yaml_file(line + "\n"))
    assert vars(options) == vars(Options()) | {name: value}
    assert settings[name] == Setting(value, "file run.yaml")
    assert settings.given(name)


def test_key_without_a_value_says_the_default(yaml_file):
    options, settings = parse("--config", yaml_file("depth:\ndropout:\ncolumns: ~\n"))
    assert options == Options()
    assert settings.given_values() == {}


def test_command_line_wins_over_file(yaml_file):
    file = yaml_file("depth: 3\noptimizer: adamw\nshuffle: true\n")
    options, settings = parse("--depth", 5, "--config", file, "--no_shuffle")
    assert (options.depth, options.optimizer, options.shuffle) == (5, "adamw", False)
    sources = {name: settings[name].source for name in ("depth", "optimizer", "shuffle", "data")}
    assert sources == {
        "depth": "command line",
        "optimizer": "file run.yaml",
        "shuffle": "command line",
        "data": "default",
    }


def test_a_dictionary_reaches_training_arguments_from_file_and_command_line(yaml_file):
    """YAML writes a dictionary as one, the command line as JSON; TrainingArguments gets a dictionary either way."""
    from transformers import TrainingArguments

    file = yaml_file("lr_scheduler_kwargs: {num_decay_steps: 3}\nlearning_rate: 1e-3\n")
    words = ["--lr_scheduler_kwargs", '{"num_decay_steps": 3}', "--learning_rate", "1e-3"]
    for argv in (["--config", file], words):
        _, arguments, settings = parse_options(Options, TrainingArguments, argv=argv)
        assert arguments.lr_scheduler_kwargs == {"num_decay_steps": 3}
        assert arguments.learning_rate == 0.001
        assert settings.build(TrainingArguments).lr_scheduler_kwargs == {"num_decay_steps": 3}


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dpeth", "3"], ["--dpeth", "--depth?"]),
        (["--dpeth=3"], ["unknown option --dpeth;", "--depth?"]),
        (["--drop-out", "3"], ["--drop-out", "--dropout?"]),
        (["--dept", "3"], ["--dept;", "--depth?"]),  # no abbreviations: tomorrow another option may begin so
        (["--opt", "adamw"], ["--opt;", "--optimizer?"]),
        (["--zzzzzzzz"], ["--zzzzzzzz", "--help"]),
        (["--depth", "three"], ["--depth", "int", "'three'", "command line"]),
        (["--depth", "3.5"], ["--depth", "int", "'3.5'"]),
        (["--depth", "3", "4"], ["--depth", "one value", "'3 4'"]),
        (["--depth"], ["--depth", "one argument"]),
        (["--dropout", "much"], ["--dropout", "float", "'much'"]),
        (["--dropout", "nan"], ["--dropout", "number", "nan"]),
        (["--optimizer", "sgd"], ["--optimizer", "'sgd'", "muon", "adamw"]),
        (["--overwrite", "maybe"], ["--overwrite", "maybe", "true/false"]),
        (["--no_shuffle=1"], ["--no_shuffle", "'1'"]),
        (["--schedule", "{steps: 3}"], ["--schedule", "{steps: 3}", "JSON"]),
        (["texts/"], ["'texts/'", "--option texts/"]),
        (["--depth", "3", "--depth", "4"], ["--depth is given twice"]),
        (["--shuffle", "true", "--no_shuffle"], ["--no_shuffle is given twice"]),
        (["--config"], ["--config takes one YAML file"]),
        (["--config", "missing.yaml"], ["--config missing.yaml", "no such file"]),
        (["--config", "."], ["--config .", "directory"]),
    ],
)
def test_command_line_is_refused(words, expected):
    (problem,) = problems(*words)
    for part in expected:
        assert part in problem
    assert "/--" not in problem  # argparse would name both spellings of an option


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dpeth: 3", ["run.yaml", "unknown key 'dpeth'", "did you mean depth?"]),
        ("zzzzzzzz: 3", ["'zzzzzzzz'", "--help"]),
        ("config: other.yaml", ["unknown key 'config'"]),
        ("help: true", ["unknown key 'help'"]),
        ("3: 3", ["unknown key 3"]),
        ("depth: three", ["--depth", "int", "'three'", "run.yaml"]),
        ("depth: 3.0", ["--depth", "int", "'3.0'", "run.yaml"]),
        ("depth: true", ["--depth", "int", "'True'", "run.yaml"]),
        ("depth: [3, 4]", ["--depth", "one value", "'3 4'", "run.yaml"]),
        ("depth: {a: 3}", ["--depth", "int", "run.yaml"]),
        ("dropout: much", ["--dropout", "float", "'much'", "run.yaml"]),
        ("dropout: .nan", ["--dropout", "number", "nan", "run.yaml"]),
        ("optimizer: sgd", ["--optimizer", "'sgd'", "muon", "adamw", "run.yaml"]),
        ("overwrite: maybe", ["--overwrite", "maybe", "run.yaml"]),
        ("no_shuffle: true", ["run.yaml", "no_shuffle", "shuffle: false"]),
        ("depth: 3\ndepth: 4", ["run.yaml", "depth is given twice"]),
        ("no-such: 3", ["run.yaml", "'no-such'"]),
        ("- depth", ["--config run.yaml", "option: value", "list"]),
        ("just words", ["--config run.yaml", "option: value", "str"]),
        ("", ["--config run.yaml", "option: value"]),
        ("depth: [3", ["--config run.yaml", "line"]),
        ("depth: 3\n\tdropout: 1", ["--config run.yaml", "line 2"]),
    ],
)
def test_file_is_refused(yaml_file, text, expected):
    (problem,) = problems("--config", yaml_file(text + "\n"))
    for part in expected:
        assert part in problem


def test_file_that_is_no_text_is_refused(yaml_file, tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"data: caf\xe9\n")
    (problem,) = problems("--config", "run.yaml")
    assert "--config run.yaml" in problem
    assert "0xe9" in problem


def test_two_spellings_of_one_key_are_given_twice(yaml_file):
    from transformers import TrainingArguments

    file = yaml_file("learning_rate: 1\nlearning-rate: 2\n")
    with pytest.raises(UserError, match=r"run\.yaml: learning-rate is given twice"):
        parse_options(Options, TrainingArguments, argv=["--config", file])


def test_all_problems_are_said_at_once(yaml_file):
    """A person mends a file and a command in one go; words behind an unknown option are no problem of their own."""
    file = yaml_file("dpeth: 3\noptimizer: sgd\noverwrite: maybe\n")
    found = problems(
        "--config", file, "--dropout", "much", "--unheard", "of", "--depth", "3", "--depth", "x", "--columns"
    )
    expected = [
        "unknown option --unheard",
        "--depth is given twice",
        "unknown key 'dpeth'",
        "--optimizer: ",
        "--overwrite: ",
        "--dropout: ",
        "--depth: ",
        "--columns: ",
    ]
    assert len(found) == len(expected)
    for part in expected:
        assert sum(part in problem for problem in found) == 1, part


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--eval_strategy steps --logging_steps 0", ["--eval_steps or --logging_steps"]),
        ("--eval_strategy sometimes --seed 3", ["--eval_strategy sometimes is not", "steps", "epoch"]),
        ("--deepspeed missing.json", ["deepspeed"]),
    ],
)
def test_what_training_arguments_refuses_is_a_problem_and_no_traceback(words, expected):
    from transformers import TrainingArguments

    @dataclass
    class Arguments(TrainingArguments):
        eval_strategy: str = "no"  # a default of one's own leaves the choices to TrainingArguments

    with pytest.raises(UserError) as refused:
        parse_options(Options, Arguments, argv=words.split())
    (problem,) = refused.value.problems
    for part in expected:
        assert part in problem


# ---------------------------------------------------------------------------------------------- help


def test_help_shows_own_options_first_with_their_defaults(capsys):
    from transformers import TrainingArguments

    with pytest.raises(SystemExit) as left:
        parse_options(Options, TrainingArguments, "Train something.", ["--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.index("Train something.") < text.index(" llmkit: ") < text.index("transformers.TrainingArguments")
    own, rest = text[text.index(" llmkit: ") :].split("training (transformers.TrainingArguments)")
    assert "--dropout DROPOUT Share that is dropped. (default: 0.1)" in own
    assert "{muon,adamw}" in own
    assert "File; 100 % of it is read. (default: None)" in own
    assert "--learning_rate" not in own
    assert "--learning_rate" in rest
    assert "(default: 5e-05)" in rest


def test_help_wins_over_problems(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--dpeth", 3, "-h")
    assert left.value.code == 0
    assert "--depth" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- settings


@pytest.fixture
def settings() -> Settings:
    return Settings(
        default=Setting(None, "default"),
        command_line=Setting(1, "command line"),
        file=Setting(2, "file run.yaml"),
        derived=Setting(3, "derived", "earlier"),
        inherited=Setting(4, "inherited from runs/gpt"),
    )


def test_only_the_user_gives(settings):
    assert settings.given_values() == {"command_line": 1, "file": 2}


def test_derive_fills_in_a_default_with_its_reason(settings):
    assert settings.derive("default", 7, "by depth") == 7
    assert settings["default"] == Setting(7, "derived", "by depth")


def test_inherit_fills_in_a_default_with_its_folder(settings):
    assert settings.inherit("default", 7, "runs/gpt") == 7
    assert settings["default"] == Setting(7, "inherited from runs/gpt")


@pytest.mark.parametrize("name", ["command_line", "file", "derived", "inherited"])
def test_derive_and_inherit_never_change_a_value_that_is_there(settings, name):
    before = settings[name]
    assert settings.derive(name, 7, "by depth") == before.value
    assert settings.inherit(name, 7, "runs/gpt") == before.value
    assert settings[name] is before


def test_a_given_value_that_equals_the_default_is_given():
    _, settings = parse("--dropout", "0.1")
    assert settings.derive("dropout", 0.5, "by depth") == 0.1
    assert settings["dropout"].source == "command line"


def test_settings_survive_json(settings):
    import json

    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_build_takes_all_but_defaults():
    """A dataclass that adds to its defaults when it is made sees only what is not default."""
    _, settings = parse("--dropout", "0.5")
    settings.derive("depth", 4, "by budget")
    assert settings.build(Options) == Options(dropout=0.5, depth=4)
