"""Checkpoints that can be trusted: each carries a list of its files, written last."""

import json
import re
import warnings
from pathlib import Path

from llmkit.folder import write_json

_MANIFEST = "manifest.json"


def seal(checkpoint: Path) -> None:
    """Write the list of a checkpoint's files and sizes: from now on it is whole."""
    files = {
        file.name: file.stat().st_size
        for file in sorted(checkpoint.iterdir())
        if file.is_file() and file.name != _MANIFEST
    }
    write_json(checkpoint / _MANIFEST, files)


def unseal(checkpoint: Path) -> None:
    """Before a checkpoint is written over: what is half written must not pass for whole."""
    (checkpoint / _MANIFEST).unlink(missing_ok=True)


def problem_of(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    from safetensors import SafetensorError, safe_open

    try:
        expected = dict(json.loads((checkpoint / _MANIFEST).read_text()))
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError, TypeError):
        return f"its {_MANIFEST} cannot be read"
    for name, size in expected.items():
        file = checkpoint / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                return f"{name} cannot be read ({error})"
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that is whole; one that is not is passed over with a warning."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if number := re.fullmatch(r"checkpoint-(\d+)", path.name):
            found.append((int(number[1]), path))
    for _, path in sorted(found, reverse=True):
        problem = problem_of(path)
        if problem is None:
            return path
        warnings.warn(f"{path} is passed over: {problem}", stacklevel=2)
    return None
