"""The model folder: what every recipe writes and everything else reads.

    config.json, model.safetensors, tokenizer.json …   stock transformers files
    llmkit.json      how it was made: recipe, options and their sources, data, parent, versions, times
    metrics.json     the final figures, flat
    metrics.jsonl    one line per logging step
    wrong_answers.json   of a chat model, questions that it got wrong
    README.md, report.html   the same for a person
    checkpoint-N/    only while training

`llmkit.json` is written when a run starts, with the status "running" and every value that was derived, so that the
same command goes on where a killed run stopped, with the same values. It says "finished" after everything else is saved.
"""

import contextlib
import datetime
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import llmkit
from llmkit.errors import UserError
from llmkit.options import SECRETS, Settings

MOST_WRONG_ANSWERS = 100  # that are kept of each held-out set
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
# Options that say where a run writes and what it shows, not what it makes.
_NOT_PART_OF_THE_RESULT = {
    "output_dir", "overwrite", "report_to", "run_name", "project", "logging_steps", "disable_tqdm", "log_level",
    "push_to_hub", "hub_token", "hub_model_id", "hub_private_repo", "hub_revision", "save_total_limit", "save_steps",
}  # fmt: skip
_OWN_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt",
    "adapter_config.json", "adapter_model.safetensors", "merged", "README.md", "llmkit.json", "metrics.json", "metrics.jsonl", "wrong_answers.json", "report.html", "checkpoint-*",
)  # fmt: skip
_ON_THEIR_WAY = (".saving-*", ".llmkit.json-*", ".metrics.json-*", ".README.md-*", ".report.html-*")


# ---------------------------------------------------------------------------------------------- small tools


def cache_folder(name: str) -> Path:
    """A folder for what can be made again, below the Hugging Face cache (moved by HF_HOME)."""
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME, "llmkit", name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[IO[str]]:
    """Write a text file whole or not at all."""
    file = Path(file)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            yield stream
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(file: Path, content: Any) -> None:
    with atomic_write(file) as stream:
        json.dump(content, stream, indent=2, ensure_ascii=False, default=str)
        stream.write("\n")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: the file is missing or broken.
    """
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is not JSON that can be read ({error})") from None


def fingerprint(path: str | Path) -> str:
    """The identity of a model or tokenizer folder (a hash of weights, configuration and tokenizer), or of one file.

    Equal content has an equal fingerprint wherever it lies. A Hub id is its own fingerprint.
    """
    path = Path(path)
    if not path.exists():
        return str(path)
    digest = hashlib.blake2b(digest_size=16)
    patterns = ("*.safetensors", "config.json", "adapter_config.json", "tokenizer.json", "chat_template.jinja")
    files = [path] if path.is_file() else sorted(file for pattern in patterns for file in path.glob(pattern))
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def require_model_folder(name: str, option: str, weights: bool = True) -> None:
    """Refuse a model folder that cannot be used, before anything is loaded. A Hub id passes if the Hub may be asked.

    Args:
        name: what the user gave.
        option: the option that brought it, for messages.
        weights: whether a model is wanted; a tokenizer alone otherwise.

    Raises:
        UserError: what is missing, what else lies near, and the fix.
    """
    from huggingface_hub import constants

    folder = Path(name)
    if not folder.is_dir():
        looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.parent.is_dir()
        if looks_like_path or constants.is_offline_mode():
            wanted = "config.json" if weights else "tokenizer.json"
            near = sorted(str(p.parent) for p in Path("runs").glob(f"*/{wanted}")) if Path("runs").is_dir() else []
            hint = f"; there are {', '.join(near)}" if near else ""
            offline = "" if looks_like_path else " (and HF_HUB_OFFLINE is set, so the Hub is not asked)"
            raise UserError(f"{option} {name}: there is no such folder{offline}{hint}")
        return
    missing = []
    if weights and not any((folder / file).exists() for file in ("config.json", "adapter_config.json")):
        missing.append("config.json")
    if weights and not any((folder / file).exists() for file in WEIGHTS):
        missing.append("weights (model.safetensors)")
    if not (folder / "tokenizer.json").exists() and not any(folder.glob("*.model")):
        missing.append("a tokenizer (tokenizer.json)")
    if not missing:
        return
    checkpoints = list(folder.glob("checkpoint-*"))
    hint = "; its run is not finished: run its recipe again" if checkpoints else ""
    kind = "model" if weights else "tokenizer"
    raise UserError(f"{option} {name}: is not a {kind} folder: it lacks {' and '.join(missing)}{hint}")


def machine() -> dict[str, Any]:
    """What this machine is, for the report: a speed means nothing without it."""
    import psutil
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("llmkit", "torch", "transformers", "tokenizers", "datasets", "accelerate", "trl", "peft"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def git_revision() -> str | None:
    """The commit of the code that runs, with a + if it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
        head, changes = (
            subprocess.run(c, cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")


def command_line() -> str:
    """The command that repeats this run, without its secrets."""
    import shlex

    words = []
    for word in sys.argv[1:]:
        name, equals, _ = word.partition("=")
        if name.lstrip("-").replace("-", "_") in SECRETS:
            words.append(f"{name}=SECRET" if equals else name)
        else:
            secret = words and words[-1].lstrip("-").replace("-", "_") in SECRETS
            words.append("SECRET" if secret else word)
    program = Path(sys.argv[0])
    with contextlib.suppress(ValueError):
        program = program.resolve().relative_to(Path.cwd())
    launcher = "accelerate launch" if program.suffix == ".py" else ""
    return " ".join(filter(None, [launcher, shlex.join([str(program), *words])]))


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------------------------------------- a run's folder


class Run:
    """A model folder in the making.

    Use `Run.start`; then `settings` hold the derived values (of the earlier start, if this run goes on), `log`
    adds a line to metrics.jsonl, and `finish` completes the folder.

    Attributes:
        folder: the model folder.
        settings: the options of this run.
        resumes: whether this is a run that was started before.
        finished: whether it was already finished then: there is nothing to do.
        writes: whether this process writes; in a run of several only the main one does.
    """

    def __init__(self, folder: Path, settings: Settings, record: dict[str, Any], resumes: bool):
        self.folder = folder
        self.settings = settings
        self.record = record
        self.resumes = resumes
        self.writes = True
        self._taken = resumes

    @classmethod
    def start(
        cls,
        recipe: str,
        settings: Settings,
        inputs: dict[str, str | None],
        overwrite: bool = False,
    ) -> "Run":
        """Choose the output folder for a run, or go on with the run that it holds.

        Nothing is written or deleted before the run first saves or logs: what is refused until then leaves no trace.

        Args:
            recipe: the recipe's name.
            settings: the options; `output_dir` names the folder.
            inputs: fingerprints of what the run reads ({"data": …, "model": …}); part of its identity.
            overwrite: whether to delete an earlier run of other options.

        Raises:
            UserError: the folder holds a run of other options or inputs, or files that llmkit did not write.
        """
        folder = Path(settings["output_dir"].value)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"--output_dir {folder}: {there} is a file; name a folder")
        if not os.access(there, os.W_OK):
            raise UserError(f"--output_dir {folder}: {there} may not be written to; choose another folder")
        earlier = None
        if (folder / "llmkit.json").exists():
            earlier = read_json(folder / "llmkit.json")
            differences = _differences(earlier, recipe, settings, inputs)
            if differences and not overwrite:
                raise UserError(
                    f"--output_dir {folder}: holds a run of other options ({'; '.join(differences)}); "
                    "choose another folder, or --overwrite to delete it"
                )
            if differences or (overwrite and earlier["status"] == "finished"):
                earlier = None
        elif folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise UserError(
                f"--output_dir {folder}: is not empty and llmkit did not write it; choose another folder, or --overwrite"
            )
        if earlier is not None:
            stored = Settings.from_json(earlier["options"])
            for name in settings.keys() & stored.keys() - {"output_dir"}:  # the folder may have moved
                if not settings.given(name):
                    settings[name] = stored[name]
            _mend(folder)
            return cls(folder, settings, earlier, resumes=True)

        record = {
            "llmkit_version": llmkit.__version__,
            "recipe": recipe,
            "status": "running",
            "command": command_line(),
            "options": {},
            "inputs": inputs,
            "seed": settings["seed"].value if "seed" in settings else None,
            "started": now(),
            "finished": None,
        }
        record |= {"versions": versions(), "git_revision": git_revision(), "machine": machine()}
        return cls(folder, settings, record, resumes=False)

    @property
    def finished(self) -> bool:
        return self.record["status"] == "finished"

    def _take_folder(self) -> None:
        """Before the first file of a new run: make its folder, without what another run has left there."""
        if not self._taken:
            _delete(self.folder, _OWN_FILES + _ON_THEIR_WAY)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._taken = True

    def save(self, **fields: Any) -> None:
        """Write llmkit.json as it stands, with further fields."""
        self.record |= fields
        self.record["options"] = self.settings.to_json()
        if self.writes:
            self._take_folder()
            write_json(self.folder / "llmkit.json", self.record)

    def log(self, **values: Any) -> None:
        """Add one line to metrics.jsonl; NaN and infinities become null."""
        if self.writes:
            self._take_folder()
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
                stream.write(json.dumps(_finite(values), ensure_ascii=False) + "\n")

    def seconds_at(self, step: int) -> float:
        """The training seconds that the run had used at a step, as its journal says."""
        seconds = 0.0
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                values = json.loads(line)
                if values["step"] <= step:
                    seconds = values.get("seconds", seconds)
        return seconds

    def save_model(self, model: Any, tokenizer: Any, weights: dict[str, Any] | None = None) -> None:
        """Save weights, configuration and tokenizer: all of them or none.

        Args:
            model: None saves the tokenizer alone.
            weights: the whole state dict of a model that is cut over processes.
        """
        if not self.writes:
            return
        self._take_folder()
        staging = self.folder / f".saving-{os.getpid()}"
        try:
            if model is not None:
                model.config.use_cache = True  # Trainer turns it off, and other programs read it
                model.save_pretrained(staging, state_dict=weights)
            tokenizer.save_pretrained(staging)
            for file in sorted(staging.iterdir()):
                file.chmod(0o644)  # safetensors writes for the owner alone, and a server may be somebody else
                os.replace(file, self.folder / file.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def save_answers(self, answers: dict[str, Any]) -> None:
        """Write the wrong answers of each held-out set to wrong_answers.json, which the report shows."""
        if self.writes:
            wrong = {name or "held out": given.wrong()[:MOST_WRONG_ANSWERS] for name, given in answers.items()}
            write_json(self.folder / "wrong_answers.json", wrong)

    def finish(self, metrics: dict[str, Any], keep_checkpoints: bool = False) -> None:
        """Write figures, card and report, delete the checkpoints, and only then call the run finished."""
        if not self.writes:
            return
        from llmkit.evaluation.card import write_card
        from llmkit.evaluation.report import write_report

        write_json(self.folder / "metrics.json", metrics)
        self.save(finished=now())
        write_card(self.folder)
        write_report(self.folder)
        self.save(status="finished")
        if not keep_checkpoints:
            for checkpoint in self.folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)

    def push(self) -> str | None:
        """Upload the finished folder to the Hub in one commit, as `hub_model_id` or under the folder's name.

        Returns:
            The commit's address; None where another process pushes.
        """
        if not self.writes:
            return None
        from huggingface_hub import HfApi

        value = {
            name: self.settings[name].value
            for name in ("hub_model_id", "hub_private_repo", "hub_revision", "hub_token")
        }
        api = HfApi(token=value["hub_token"])
        repository = api.create_repo(
            value["hub_model_id"] or self.folder.name, private=value["hub_private_repo"], exist_ok=True
        )
        commit = api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=self.folder,
            revision=value["hub_revision"],
            commit_message=f"{self.record['recipe']}: {self.record['command']}",
            ignore_patterns=["checkpoint-*", ".*", "runs/*"],
        )
        return commit.commit_url


def _differences(earlier: dict[str, Any], recipe: str, settings: Settings, inputs: dict[str, str | None]) -> list[str]:
    """What a stored run has that this one has not, in words."""
    if earlier.get("recipe") != recipe:
        return [f"it is of {earlier.get('recipe')}"]
    before = Settings.from_json(earlier["options"]).given_values()
    today = settings.given_values()
    found = []
    read = earlier.get("inputs", {})
    for name in sorted((before.keys() | today.keys()) - _NOT_PART_OF_THE_RESULT - read.keys() - inputs.keys()):
        if before.get(name, "default") != today.get(name, "default"):
            found.append(f"--{name} was {before.get(name, 'not given')} and is {today.get(name, 'not given')}")
    for name in sorted(read.keys() | inputs.keys()):  # compared by content, so that a file may move
        if read.get(name) != inputs.get(name):
            old, new = before.get(name, "not given"), today.get(name, "not given")
            found.append(f"--{name} was {old} and is {new}" if old != new else f"the {name} ({new}) has changed")
    return found


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _mend(folder: Path) -> None:
    """A kill can leave the last line of the journal half written, and files that were on their way."""
    journal = folder / "metrics.jsonl"
    if journal.exists():
        content = journal.read_bytes()
        if not content.endswith(b"\n"):
            with open(journal, "r+b") as stream:
                stream.truncate(content.rfind(b"\n") + 1)
    _delete(folder, _ON_THEIR_WAY)


def _delete(folder: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
