"""Time to the quality of nanoGPT's CPU configuration on tinyshakespeare.

    python benchmarks/time_to_quality.py [--data FILE] [--seeds 3]

Both sides train on the first 90 % of the text and are measured on all of the last 10 %, by windows of 64 bytes that do not
overlap, in this order: baseline, llmkit, baseline, llmkit … The baseline is the configuration that nanoGPT's README gives
for a CPU (4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps of AdamW at 1e-3 with 100 steps of warmup and
a cosine to 1e-4), GPT-2 written by hand. llmkit is the recipe as a user runs it, bytes as tokens, the same sizes.
Training seconds leave out evaluation, imports and saving; total seconds are from process start to saved files.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PUBLISHED = 1.898 / math.log(2)  # bits per byte


def baseline(text: bytes, seed: int) -> dict[str, float]:
    """Train the baseline in this process."""
    import torch
    import torch.nn.functional as F
    from gpt2_by_hand import GPT2

    torch.manual_seed(seed)
    values = sorted(set(text))
    ids = np.array([values.index(byte) for byte in text])
    cut = int(0.9 * len(ids))
    train, held_out = (torch.from_numpy(part) for part in (ids[:cut], ids[cut:]))
    model = GPT2(len(values), context_length=64, layers=4, heads=4, width=128)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    started = time.perf_counter()
    for step in range(2000):
        if step < 100:
            rate = 1e-3 * (step + 1) / 101
        else:
            rate = 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / 1900)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(train) - 64, (12,))
        rows = torch.stack([train[i : i + 65] for i in starts])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - started
    nats = count = 0.0
    with torch.inference_mode():
        for start in range(0, len(held_out) - 1, 64):
            row = held_out[start : start + 65][None]
            nats += F.cross_entropy(model(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten(), reduction="sum").item()
            count += row.shape[1] - 1
    return {"bits_per_byte": nats / count / math.log(2), "train_seconds": seconds}


def run_baseline(data: Path, seed: int) -> dict[str, float]:
    """The baseline in a process of its own, from its start to a saved file."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--data", str(data), "--baseline", str(seed)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result | {"total_seconds": time.perf_counter() - started}


def run_llmkit(data: Path, seed: int, folder: Path, steps: int) -> dict[str, float]:
    """The recipe, with the baseline's sizes."""
    text = data.read_bytes()
    cut = int(0.9 * len(text))
    (folder / "train.txt").write_bytes(text[:cut])
    (folder / "held_out.txt").write_bytes(text[cut:])
    options = {
        "data": folder / "train.txt", "validation_data": folder / "held_out.txt", "output_dir": folder / f"run-{seed}",
        "vocab_size": 260, "context_length": 64, "depth": 4, "hidden_size": 128, "num_attention_heads": 4,
        "intermediate_size": 384, "per_device_train_batch_size": 12, "max_steps": steps, "seed": seed,
        "eval_strategy": "no", "save_strategy": "no",
    }  # fmt: skip
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    started = time.perf_counter()
    environment = os.environ | {
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }  # nothing is cached from before
    command = [sys.executable, str(HERE.parent / "recipes" / "pretrain_gpt.py"), *words]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    total = time.perf_counter() - started
    metrics = json.loads((folder / f"run-{seed}" / "metrics.json").read_text())
    return {name: metrics[name] for name in ("bits_per_byte", "train_seconds")} | {"total_seconds": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "tinyshakespeare.txt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250, help="of llmkit")
    parser.add_argument("--baseline", type=int, metavar="SEED", help="only train the baseline, print JSON")
    options = parser.parse_args()
    if options.baseline is not None:
        print(json.dumps(baseline(options.data.read_bytes(), options.baseline)))
        return
    ours, theirs = f"llmkit, {options.steps} steps", "GPT-2 by hand, 2,000 steps"
    rows: dict[str, list[dict[str, float]]] = {theirs: [], ours: []}
    for seed in range(1, options.seeds + 1):
        with tempfile.TemporaryDirectory() as name:
            rows[theirs].append(run_baseline(options.data, seed))
            rows[ours].append(run_llmkit(options.data, seed, Path(name), options.steps))
    medians = {
        who: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for who, runs in rows.items()
    }
    print("| | bits per byte | training s | everything s |\n| --- | --- | --- | --- |")
    for who, median in medians.items():
        print(
            f"| {who} | {median['bits_per_byte']:.3f} | {median['train_seconds']:.1f} | {median['total_seconds']:.1f} |"
        )
    ratio = {name: medians[theirs][name] / medians[ours][name] for name in ("train_seconds", "total_seconds")}
    print(
        f"| times as fast | published: {PUBLISHED:.3f} | {ratio['train_seconds']:.1f} | {ratio['total_seconds']:.1f} |"
    )
    (HERE / "time_to_quality.json").write_text(json.dumps({"runs": rows, "medians": medians, "ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()
