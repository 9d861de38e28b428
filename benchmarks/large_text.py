"""A gigabyte of text from check to the first training steps: time, memory, and what a second start takes.

    python benchmarks/large_text.py [--megabytes 1000]

The text is made of the running Python's docstrings, shuffled and with numbers drawn anew, so that documents differ. Each step is
a process of its own, whose largest resident memory is read from the system. Packing is compared with the tutorial way,
`datasets.map` with a batched tokenizer call and grouping into blocks, on the first 20 MB.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes"


def make_text(file: Path, megabytes: int) -> None:
    """One JSON object a line, until the file is of the wanted size."""
    from llmkit.data.bundled import corpus

    pages = [text for _, text in corpus.source().rows()]
    draw = random.Random(0)
    words = sorted({word for page in pages for word in re.findall(r"[a-z]{4,}", page)})
    size = 0
    with open(file, "w", encoding="utf-8") as stream:
        while size < megabytes * 1_000_000:
            parts = [" ".join(draw.choices(words, k=60)), *draw.sample(pages, 3), str(draw.random())]
            draw.shuffle(parts)
            line = json.dumps({"text": "\n".join(parts)}) + "\n"
            stream.write(line)
            size += len(line)


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(seconds, GB resident at most) of a command."""
    started = time.perf_counter()
    code = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return time.perf_counter() - started, int(done.stdout) / 1e6


def packing_speeds(file: Path, tokenizer_folder: Path, megabytes: int = 20) -> dict[str, float]:
    """MB/s of text to token blocks: llmkit, and datasets.map."""
    import datasets
    from transformers import AutoTokenizer

    from llmkit.data.packing import write_tokens

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    texts, size = [], 0
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size > megabytes * 1_000_000:
                break
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_tokens(iter(texts), tokenizer, Path(folder, "tokens.bin"))
        ours = time.perf_counter() - started

        def tokenize(rows: dict) -> dict:
            return {"input_ids": tokenizer(rows["text"])["input_ids"]}

        def group(rows: dict) -> dict:
            flat = [i for ids in rows["input_ids"] for i in [*ids, tokenizer.eos_token_id]]
            return {"input_ids": [flat[i : i + 256] for i in range(0, len(flat) // 256 * 256, 256)]}

        started = time.perf_counter()
        rows = datasets.Dataset.from_dict({"text": texts})
        rows = rows.map(tokenize, batched=True, remove_columns=["text"]).map(group, batched=True)
        theirs = time.perf_counter() - started
    return {"llmkit_megabytes_per_second": size / ours / 1e6, "datasets_megabytes_per_second": size / theirs / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.jsonl"
        make_text(text, options.megabytes)
        environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        recipe = [sys.executable, str(RECIPES / "pretrain_gpt.py"), "--data", str(text), "--depth", "4", "--max_steps", "10",
                  "--tokenizer", str(folder / "tokenizer"), "--save_strategy", "no", "--eval_strategy", "no"]  # fmt: skip
        steps = {
            "check": [sys.executable, "-m", "llmkit", "check", str(text)],
            "tokenizer": [sys.executable, str(RECIPES / "train_tokenizer.py"), "--data", str(text), "--vocab_size", "4096",
                          "--output_dir", str(folder / "tokenizer")],
            "pack and first steps": [*recipe, "--output_dir", str(folder / "first")],
            "second start": [*recipe, "--output_dir", str(folder / "second")],
        }  # fmt: skip
        results = {}
        print(f"| {options.megabytes} MB | seconds | GB resident |\n| --- | --- | --- |")
        for step, command in steps.items():
            seconds, memory = measured(command, environment)
            results[step] = {"seconds": seconds, "memory_gb": memory}
            print(f"| {step} | {seconds:.0f} | {memory:.2f} |", flush=True)
        # What follows is ten steps and the evaluation of all the held-out text.
        ready = json.loads((folder / "second" / "metrics.json").read_text())["start_seconds"]
        results["second start"]["seconds_to_first_step"] = ready
        print(f"| second start, to the first step | {ready:.1f} | |")
        results |= packing_speeds(text, folder / "tokenizer")
        print(
            f"packing: {results['llmkit_megabytes_per_second']:.1f} MB/s, "
            f"datasets.map {results['datasets_megabytes_per_second']:.1f} MB/s"
        )
        (HERE / "large_text.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
