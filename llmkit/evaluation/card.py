"""The model card, README.md of a model folder, written from the numbers that the folder holds."""

import json
from pathlib import Path

from llmkit.folder import atomic_write

_WHAT = {
    "pretrain_gpt": ("text-generation", "a small GPT, pretrained from text"),
    "finetune_instruct": ("text-generation", "a chat model, fine-tuned on conversations"),
    "finetune_lora": ("text-generation", "an adapter that makes a chat model of its base"),
    "align_dpo": ("text-generation", "a chat model, tuned on preferences"),
    "align_grpo": ("text-generation", "a chat model, tuned on rewards that can be checked"),
    "train_tokenizer": (None, "a byte-level BPE tokenizer"),
}
_LOAD_ADAPTER = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""
_LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""


def write_card(folder: Path) -> Path:
    """Write README.md from llmkit.json and metrics.json."""
    record = json.loads((folder / "llmkit.json").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    pipeline, what = _WHAT.get(record["recipe"], (None, f"made by {record['recipe']}"))
    lines = ["---", f"library_name: {'peft' if record.get('base') else 'transformers'}", "tags: [llmkit]"]
    if pipeline:
        lines.append(f"pipeline_tag: {pipeline}")
    lines += [
        "---",
        "",
        f"# {folder.name}",
        "",
        f"This is {what}, made with llmkit by",
        "",
        f"    {record['command']}",
        "",
    ]
    data = record.get("data", {})
    if data:
        lines += [f"Data: {data.get('name')}, fingerprint `{data.get('fingerprint')}`.", ""]
    lines += ["| figure | value |", "| --- | --- |"]
    for name, value in metrics.items():
        if name.endswith(("_ci", "_n")):
            continue
        shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        if f"{name}_ci" in metrics:
            shown += " ({:.4g} to {:.4g})".format(*metrics[f"{name}_ci"])
        if f"{name}_n" in metrics:
            shown += f", n = {metrics[f'{name}_n']:,}"
        lines.append(f"| {name} | {shown} |")
    if pipeline:
        base = record.get("base")
        load = _LOAD_ADAPTER.format(base=base["name"], name=folder.name) if base else _LOAD.format(name=folder.name)
        lines += ["", load]
    lines += [
        "",
        "It repeats what stands in its training text, right or wrong, and was not made safe for use by others.",
    ]
    lines += ["How it was made, in full: `llmkit.json`; curves and samples: `report.html`.", ""]
    if not pipeline:
        lines.remove(
            "It repeats what stands in its training text, right or wrong, and was not made safe for use by others."
        )
    with atomic_write(folder / "README.md") as stream:
        stream.write("\n".join(lines))
    return folder / "README.md"
