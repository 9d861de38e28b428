"""What all tests share: no network, a cache of their own, a tiny text, a tiny model, and recipes as a user runs them."""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

# Before any import of Hugging Face libraries, which read these once.
_CACHE = tempfile.mkdtemp(prefix="llmkit-tests-")
os.environ |= {
    "HF_HOME": _CACHE,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "120",
}

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

_NOUNS = [
    "river",
    "house",
    "teacher",
    "garden",
    "letter",
    "window",
    "engine",
    "forest",
    "winter",
    "market",
    "singer",
    "bridge",
    "café",
    "naïve",
]
_VERBS = ["sees", "finds", "draws", "carries", "follows", "remembers", "paints", "leaves"]
_PLACES = [
    "in the north",
    "by the sea",
    "after the storm",
    "on the old road",
    "at noon",
    "before the war",
    "without a word",
    "🙂 again",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Simple sentences with some multi-byte characters: a language that a tiny model learns something of in seconds."""
    draw = random.Random(seed)
    return [
        f"The {draw.choice(_NOUNS)} {draw.choice(_VERBS)} the {draw.choice(_NOUNS)} {draw.choice(_PLACES)}, "
        f"and number {draw.randrange(10000)} {draw.choice(_VERBS)} {draw.choice(_PLACES)}."
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """About 60 kB of text in paragraphs."""
    file = tmp_path_factory.mktemp("text") / "tales.txt"
    lines = sentences(700)
    file.write_text("\n\n".join("\n".join(lines[i : i + 5]) for i in range(0, len(lines), 5)) + "\n", encoding="utf-8")
    return file


TINY = ["--depth", "1", "--context_length", "32", "--vocab_size", "300", "--per_device_train_batch_size", "4"]


def run_recipe(
    name: str, *words: object, cwd: Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess:
    """`python recipes/NAME.py …` in a folder, as a user would; output as text."""
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | environment, timeout=300)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def run_llmkit(*words: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess:
    """`llmkit …` in a folder."""
    command = [sys.executable, "-m", "llmkit", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ, timeout=300)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def gpt(tmp_path_factory, text_file) -> Path:
    """A model folder that the recipe made in a few steps."""
    folder = tmp_path_factory.mktemp("gpt")
    run_recipe("pretrain_gpt", "--data", text_file, *TINY, "--max_steps", 12, "--output_dir", "runs/gpt", cwd=folder)
    return folder / "runs" / "gpt"


@pytest.fixture
def shared_data() -> Path:
    """Real data beside the checkout; a test that needs it is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real data in {SHARED_DATA}, which is not here")
    return SHARED_DATA
