"""What a pretraining run says to a person: its data, its plan, its samples, its result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkit.data.packing import TokenFile
from llmkit.data.splits import Split
from llmkit.evaluation.bits_per_byte import BitsPerByte
from llmkit.evaluation.samples import TrainingText, generate_samples
from llmkit.options import Settings
from llmkit.training.budget import seconds_since_start
from llmkit.training.measure import peak_memory_gb

SAMPLE_TOKENS = 80
_SHOWN = (
    "time_budget", "depth", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "context_length", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "warmup_steps",
    "lr_scheduler_kwargs", "muon_learning_rate", "learning_rate", "weight_decay", "initializer_range", "bf16", "torch_compile",
)  # fmt: skip


def of_data(sides: Split, tokenizer: Any, train: TokenFile, validation: TokenFile, xz: float, state: Any) -> str:
    dropped = [
        f"{n:,} {what}"
        for n, what in (
            (sides.empty, "empty"),
            (sides.copies, "exact copies"),
            (sides.near_copies, "near copies of held-out text"),
        )
        if n
    ]
    lines = [
        f"data: {sides.source.name} ({sides.source.format}), {sides.documents:,} documents"
        + (f"; left out: {', '.join(dropped)}" if dropped else ""),
        f"  train {sides.train_bytes / 1e6:.2f} MB in {sides.train_documents:,} documents, {len(train.ids):,} tokens of {len(tokenizer):,} kinds",
        f"  held out {sides.validation_bytes / 1e6:.2f} MB in {sides.validation_documents:,} documents, {len(validation.ids):,} tokens; "
        f"xz -9e needs {xz:.3f} bits per byte of it, having seen the training text",
        f"{state.num_processes} process{'es' if state.num_processes > 1 else ''} on {state.device.type}"
        + (f", {state.threads} threads each" if state.threads else ""),
    ]
    return "\n".join(lines)


def of_plan(settings: Settings, forecast: dict[str, float] | None, shown: tuple[str, ...] = _SHOWN) -> str:
    rows = []
    for name in shown:
        setting = settings.get(name)
        if setting and setting.source != "default" and setting.value is not None:
            value = f"{setting.value:g}" if isinstance(setting.value, float) else str(setting.value)
            if name == "lr_scheduler_kwargs":
                value = (
                    f"{setting.value.get('num_decay_steps')} decay steps" if isinstance(setting.value, dict) else value
                )
            why = setting.reason or setting.source
            rows.append((name, value, why))
    wide = max(len(name) for name, _, _ in rows)
    long = max(len(value) for _, value, _ in rows)
    lines = ["plan:", *(f"  {name:<{wide}}  {value:<{long}}  {why}" for name, value, why in rows)]
    if forecast:
        lines.append(
            f"forecast: {forecast['train_seconds']:.0f} s of training, {forecast['memory_gb']:.1f} GB beside the program's own"
        )
    return "\n".join(lines)


def sampler(model: Any, tokenizer: Any, sides: Split, settings: Settings) -> Callable[[int], list[dict[str, Any]]]:
    """A function that writes samples at a step: one from nothing, one from the first words of a held-out document."""
    import torch

    text = TrainingText(sides.train())
    prompts = ["", " ".join(next(iter(sides.validation())).split()[:6])[:60]]

    def make(step: int) -> list[dict[str, Any]]:
        with torch.compiler.set_stance("force_eager"):
            samples = generate_samples(model, tokenizer, prompts, SAMPLE_TOKENS, seed=settings["seed"].value)
        return [
            {"prompt": prompt, "text": sample, "longest_copied_words": text.longest_run(sample)}
            for prompt, sample in zip(prompts, samples, strict=True)
        ]

    return make


def metrics_of(trainer: Any, result: BitsPerByte, xz: float, forecast: dict[str, float]) -> dict[str, Any]:
    """The final figures, as metrics.json has them."""
    journal = trainer.journal
    steps = trainer.state.global_step
    parameters = trainer.model.num_parameters()
    return {
        **result.metrics(),
        "xz_bits_per_byte": xz,
        "parameters": parameters,
        "train_seconds": journal.ended,
        "forecast_train_seconds": forecast["train_seconds"],
        "train_tokens": steps * journal.tokens_per_step,
        "train_passes": steps * journal.tokens_per_step / len(trainer.train_dataset.ids),
        "tokens_per_second": journal.tokens_per_second,
        "model_flops_utilization": journal.utilization,
        "peak_memory_gb": peak_memory_gb(),
        "forecast_memory_gb": forecast["memory_gb"],
        "start_seconds": journal.start_seconds,
        "total_seconds": seconds_since_start(),
    }


def of_result(folder: Path, metrics: dict[str, Any]) -> str:
    low, high = metrics["bits_per_byte_ci"]
    lines = [f"{metrics['bits_per_byte']:.3f} bits per byte of held-out text (95 % interval {low:.3f} to {high:.3f})"]
    below = 1 - metrics["bits_per_byte"] / metrics["xz_bits_per_byte"]
    side = "below" if below >= 0 else "ABOVE"
    lines.append(
        f"  {abs(below):.1%} {side} the {metrics['xz_bits_per_byte']:.3f} of xz -9e, which has seen the training text too"
    )
    lines.append(
        f"{metrics['parameters'] / 1e6:.2f} M parameters, {metrics['train_tokens'] / 1e6:.2f} M tokens in {metrics['train_seconds']:.0f} s "
        f"({metrics['tokens_per_second']:,.0f} tokens/s, MFU {metrics['model_flops_utilization']:.0%}); "
        f"{metrics['total_seconds']:.0f} s in all, {metrics['peak_memory_gb']:.1f} GB"
    )
    lines.append(f"  forecast was {metrics['forecast_train_seconds']:.0f} s of training")
    lines.append(f'wrote {folder} (report.html shows how it went); next: llmkit generate {folder} "The"')
    return "\n".join(lines)
