"""Training speed in tokens per second, beside a plain Llama under Accelerate and GPT-2 written by hand.

    python benchmarks/step_speed.py [--rounds 3]

Two sizes: about 0.8 M parameters at context 64 and batch 12, and about 10 M at context 256 and batch 8. The peers train as
their tutorials do: float32, AdamW, gradient clipping, no compilation (`LlamaForCausalLM` with `Accelerator()` as it comes;
GPT-2 in a bare loop). llmkit is the recipe as it plans a long run: precision measured, layers compiled, Muon. Each side
runs in a process of its own, in turn, and the median over its steps (warm-up left out) is the figure of a round.
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
SIZES = {
    "0.8 M, context 64": {"layers": 4, "heads": 4, "width": 128, "inner": 384, "vocab": 260, "batch": 12, "context": 64, "steps": 150},
    "10 M, context 256": {"layers": 6, "heads": 6, "width": 384, "inner": 1024, "vocab": 260, "batch": 8, "context": 256, "steps": 30},
}  # fmt: skip
SIDES = ("llama", "gpt2", "llmkit")


def peer(side: str, size: dict) -> float:
    """Tokens per second of a peer, in this process."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    if side == "llama":
        from accelerate import Accelerator
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=size["vocab"], hidden_size=size["width"], intermediate_size=size["inner"],
            num_hidden_layers=size["layers"], num_attention_heads=size["heads"], tie_word_embeddings=True,
            max_position_embeddings=size["context"],
        )  # fmt: skip
        accelerator = Accelerator(cpu=True)
        model = LlamaForCausalLM(config)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))

        def step(ids: torch.Tensor) -> None:
            loss = model(input_ids=ids, labels=ids).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    else:
        from gpt2_by_hand import GPT2

        model = GPT2(size["vocab"], size["context"], size["layers"], size["heads"], size["width"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def step(ids: torch.Tensor) -> None:
            loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    times = []
    for _ in range(size["steps"]):
        ids = torch.randint(size["vocab"], (size["batch"], size["context"]))
        started = time.perf_counter()
        step(ids)
        times.append(time.perf_counter() - started)
    return size["batch"] * size["context"] / statistics.median(times[len(times) // 5 :])


def llmkit(size: dict, data: Path, folder: Path) -> tuple[float, float]:
    """(tokens per second, MFU) of the recipe."""
    options = {
        "data": data, "output_dir": folder / "run", "vocab_size": size["vocab"], "context_length": size["context"],
        "depth": size["layers"], "hidden_size": size["width"], "num_attention_heads": size["heads"],
        "intermediate_size": size["inner"], "per_device_train_batch_size": size["batch"], "max_steps": size["steps"],
        "logging_steps": max(size["steps"] // 15, 1), "eval_strategy": "no", "save_strategy": "no", "torch_compile": True,
    }  # fmt: skip
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, str(HERE.parent / "recipes" / "pretrain_gpt.py"), *words]
    environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "tokens_per_second" in line][3:]
    return tuple(statistics.median(line[k] for line in lines) for k in ("tokens_per_second", "model_flops_utilization"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "tinyshakespeare.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", nargs=2, metavar=("SIDE", "SIZE"), help="one peer, one size, in this process")
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(peer(options.peer[0], SIZES[options.peer[1]])))
        return
    results: dict[str, dict[str, list[float]]] = {}
    for name, size in SIZES.items():
        rows = results[name] = {side: [] for side in (*SIDES, "mfu")}
        for _ in range(options.rounds):
            for side in SIDES[:2]:
                command = [sys.executable, __file__, "--peer", side, name]
                rows[side].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            with tempfile.TemporaryDirectory() as folder:
                speed, share = llmkit(size, options.data, Path(folder))
            rows["llmkit"].append(speed)
            rows["mfu"].append(share)
    print("| size | Llama + Accelerate | GPT-2 by hand | llmkit | MFU | to Llama | to GPT-2 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in results.items():
        m = {side: statistics.median(values) for side, values in rows.items()}
        print(
            f"| {name} | {m['llama']:,.0f} tok/s | {m['gpt2']:,.0f} | {m['llmkit']:,.0f} | {m['mfu']:.0%} | "
            f"{m['llmkit'] / m['llama']:.2f} | {m['llmkit'] / m['gpt2']:.2f} |"
        )
    (HERE / "step_speed.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
