"""Quality within five minutes: the recipe with nothing but a time budget, everything included.

    python benchmarks/time_budget.py [--budget 5m] [--runs 3]

1. tinyshakespeare, the last 10 % held out, against `xz -9e`, nanoGPT's CPU configuration (2.74 bits per byte) and nanoGPT's
   GPU configuration after three minutes of an A100 (2.12).
2. The bundled text, `make pretrain` after installation, against `xz -9e`.

Every run has an empty cache: tokenizer, tokens and compiled code are made anew, inside the budget.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIGURES = ("bits_per_byte", "xz_bits_per_byte", "parameters", "train_seconds", "forecast_train_seconds", "train_passes",
           "tokens_per_second", "model_flops_utilization", "peak_memory_gb")  # fmt: skip


def train(words: list[str], budget: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "HF_HOME": f"{folder}/cache",
            "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled",
        }
        launcher = [str(Path(sys.executable).with_name("accelerate")), "launch"]
        recipe = [
            str(HERE.parent / "recipes" / "pretrain_gpt.py"),
            "--output_dir",
            f"{folder}/gpt",
            "--time_budget",
            budget,
        ]
        started = time.perf_counter()
        subprocess.run([*launcher, *recipe, *words], check=True, capture_output=True, env=environment)
        seconds = time.perf_counter() - started
        metrics = json.loads(Path(folder, "gpt", "metrics.json").read_text())
    return {name: metrics[name] for name in FIGURES} | {"everything_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "tinyshakespeare.txt")
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    results = {"tinyshakespeare": [], "bundled text": []}
    with tempfile.TemporaryDirectory() as folder:
        text = options.data.read_bytes()
        cut = int(0.9 * len(text))
        sides = [Path(folder, "train.txt"), Path(folder, "held_out.txt")]
        sides[0].write_bytes(text[:cut])
        sides[1].write_bytes(text[cut:])
        for seed in range(1, options.runs + 1):
            words = ["--seed", str(seed)]
            given = ["--data", str(sides[0]), "--validation_data", str(sides[1])]
            results["tinyshakespeare"].append(train([*given, *words], options.budget))
            results["bundled text"].append(train(words, options.budget))
    print("| text | bits per byte | xz -9e | below xz | parameters | passes | tokens/s | MFU | memory | everything |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, runs in results.items():
        m = {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
        print(
            f"| {name} | {m['bits_per_byte']:.3f} | {m['xz_bits_per_byte']:.3f} | "
            f"{1 - m['bits_per_byte'] / m['xz_bits_per_byte']:.1%} | {m['parameters'] / 1e6:.2f} M | {m['train_passes']:.1f} | "
            f"{m['tokens_per_second']:,.0f} | {m['model_flops_utilization']:.0%} | {m['peak_memory_gb']:.1f} GB | "
            f"{m['everything_seconds']:.0f} s |"
        )
    (HERE / "time_budget.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
