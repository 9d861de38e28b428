"""Training speed on a GPU: 124 M parameters, context 1024, bfloat16, compiled, as a share of the card's matrix peak.

    python benchmarks/gpu.py [--steps 60]

The recipe as a user runs it, on the bundled text (its content does not matter for speed). Without a GPU it says so.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("not measured: this machine has no GPU")
    with tempfile.TemporaryDirectory() as folder:
        words = {
            "output_dir": f"{folder}/gpt", "depth": 12, "intermediate_size": 3840, "context_length": 1024, "per_device_train_batch_size": options.batch,
            "gradient_accumulation_steps": 1, "max_steps": options.steps, "logging_steps": 5, "bf16": True, "torch_compile": True,
            "eval_strategy": "no", "save_strategy": "no",
        }  # fmt: skip
        command = [sys.executable, str(HERE.parent / "recipes" / "pretrain_gpt.py")]
        command += [str(word) for name, value in words.items() for word in (f"--{name}", value)]
        subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        lines = [json.loads(line) for line in Path(folder, "gpt", "metrics.jsonl").read_text().splitlines()]
        metrics = json.loads(Path(folder, "gpt", "metrics.json").read_text())
    lines = [line for line in lines if "tokens_per_second" in line][3:]
    speed, share = (
        statistics.median(line[k] for line in lines) for k in ("tokens_per_second", "model_flops_utilization")
    )
    print("| card | parameters | tokens/s | MFU |\n| --- | --- | --- | --- |")
    print(f"| {torch.cuda.get_device_name()} | {metrics['parameters'] / 1e6:.0f} M | {speed:,.0f} | {share:.0%} |")
    result = {"card": torch.cuda.get_device_name(), "tokens_per_second": speed, "model_flops_utilization": share}
    (HERE / "gpu.json").write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
