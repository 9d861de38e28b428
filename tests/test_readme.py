"""Every command of the README is run, on a small text and for a few steps."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, sentences

from llmkit.data.bundled.corpus import page
from llmkit.data.bundled.handbook import read_handbook

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkout in miniature, with the texts that the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "my_texts").mkdir()
    for number, term in enumerate(read_handbook()):
        (folder / "my_texts" / f"{number}.txt").write_text(page(term), encoding="utf-8")
    rows = {
        "chats.jsonl": [{"prompt": f"What is {term.term}?", "completion": term.definition} for term in read_handbook()],
        "preferences.jsonl": [
            {"prompt": f"What is {term.term}?", "chosen": term.definition, "rejected": "No idea."}
            for term in read_handbook()
        ],
        "sums.jsonl": [{"prompt": f"What is {n} and {n % 7}?", "answer": str(n + n % 7)} for n in range(60)],
    }
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "other.txt").write_text("\n".join(sentences(20, seed=99)), encoding="utf-8")
    return folder


def shortened(words: list[str]) -> list[str]:
    """The command with a few steps in place of its budget or horizon, and the small text in place of the bundled one."""
    if "--time_budget" in words:
        at = words.index("--time_budget")
        words = words[:at] + words[at + 2 :]
    if "recipes/pretrain_gpt.py" in words:
        words = [*words, "--max_steps", "2"] + ([] if "--data" in words else ["--data", "my_texts/"])
        words += [] if "--output_dir" in words else ["--output_dir", "runs/here"]
    if words[-1].startswith("runs/") and words[2].startswith(("recipes/finetune", "recipes/align")):
        words = [*words, "--max_steps", "2", "--per_device_train_batch_size", "8"]
    if "recipes/align_grpo.py" in words:  # after two steps of pretraining there is nothing to earn
        words = [*words, "--skip_headroom_check", "--max_completion_length", "8"]
    return words


@pytest.mark.slow
def test_every_command_runs(folder):
    """In the README's order, since later commands use what earlier ones made."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = 0
    for command in COMMANDS:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        elif words[0] == "source" or "INDEX" in words or "venv" in words:
            assert ".venv" in command  # the environment that the Makefile makes, and this test runs in its like
            continue
        elif "multi_gpu.yaml" in command:
            from accelerate.commands.config.config_args import load_config_from_file

            load_config_from_file(str(ROOT / words[words.index("--config_file") + 1]))
            continue
        else:
            assert words[0] in ("llmkit", "accelerate", "torchrun"), (
                f"the README has a command that nobody tests: {command}"
            )
            done = subprocess.run(
                shortened(words), cwd=folder, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
            )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 8


def test_extras_that_are_named_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in re.findall(r"pip install -e '\.\[(\w+)\]'", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert name in extras


def test_files_that_are_named_exist():
    for name in re.findall(r"\]\(([\w./-]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name
