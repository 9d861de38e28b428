"""What a fine-tuning run says to a person: its rows, its result."""

from pathlib import Path
from typing import Any

from llmkit.data.chat_samples import Fitted
from llmkit.data.conversations import Rows
from llmkit.evaluation.chat import Answers
from llmkit.training.budget import seconds_since_start
from llmkit.training.measure import peak_memory_gb

SHOWN = (
    "model", "max_length", "packing", "packing_strategy", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps",
    "warmup_steps", "lr_scheduler_type", "optimizer", "muon_learning_rate", "learning_rate", "weight_decay", "bf16",
)  # fmt: skip


def of_rows(rows: Rows, train: Fitted, validation: Fitted, template: str, state: Any) -> str:
    dropped = [
        f"{n:,} {what}"
        for n, what in ((rows.copies, "copies"), (rows.near_copies, "near copies of held-out rows"))
        if n
    ]
    lines = [
        f"data: {rows.name} ({rows.format})" + (f"; left out: {', '.join(dropped)}" if dropped else ""),
        f"  train {len(train.samples):,} conversations, {train.tokens:,} tokens, {train.trained_tokens / train.tokens:.0%} of them trained",
        f"  held out {len(validation.samples):,} conversations"
        + "".join(f", {name} {len(more):,}" for name, more in rows.further.items()),
        f"  chat template: {template}",
    ]
    for side, name in ((train, "train"), (validation, "held out")):
        if side.too_long or side.dropped:
            lines.append(
                f"  {name}: {side.too_long:,} rows are too long; {side.dropped:,} are dropped, {side.cut_tokens:,} trained tokens are cut off"
            )
    lines.append(
        f"{state.num_processes} process{'es' if state.num_processes > 1 else ''} on {state.device.type}"
        + (f", {state.threads} threads each" if state.threads else "")
    )
    return "\n".join(lines)


def metrics_of(trainer: Any, before: float, answers: dict[str, Answers]) -> dict[str, Any]:
    """The final figures, as metrics.json has them.

    Args:
        before: the loss on the held-out answers before the first step.
        answers: of the validation side under "", and of further rows by their names.
    """
    journal, steps = trainer.journal, trainer.state.global_step
    metrics: dict[str, Any] = {}
    for name, given in answers.items():
        metrics |= given.metrics(f"exact_match_{name}" if name else "exact_match")
    return metrics | {
        "validation_loss": trainer.validation_loss(),
        "validation_loss_n": len(trainer.validation),
        "baseline_validation_loss": before,
        "parameters": trainer.model.num_parameters(),
        "trained_parameters": trainer.model.num_parameters(only_trainable=True),
        "train_seconds": journal.ended,
        "train_tokens": round(steps * journal.tokens_per_step),
        "tokens_per_second": journal.tokens_per_second,
        "peak_memory_gb": peak_memory_gb(),
        "start_seconds": journal.start_seconds,
        "total_seconds": seconds_since_start(),
    }


def of_result(folder: Path, metrics: dict[str, Any], answers: dict[str, Answers]) -> str:
    lines = [
        f"loss on held-out answers {metrics['validation_loss']:.3f}, before {metrics['baseline_validation_loss']:.3f} "
        f"({metrics['validation_loss_n']:,} rows)"
    ]
    for name, given in answers.items():
        lines.append(f"exactly right{f', {name} questions' if name else ''}:")
        key = f"exact_match_{name}" if name else "exact_match"
        rows = [key, *(k for k in given.metrics(key) if k.startswith(f"{key}_") and not k.endswith(("_ci", "_n")))]
        for row in rows:
            low, high = metrics[f"{row}_ci"]
            kind = row.removeprefix(key).lstrip("_").replace("_", " ") or "all"
            lines.append(f"  {kind:<12} {metrics[row]:6.1%}  ({low:.1%} to {high:.1%}, n = {metrics[f'{row}_n']:,})")
    lines.append(
        f"{metrics['trained_parameters'] / 1e6:.2f} M of {metrics['parameters'] / 1e6:.2f} M parameters trained, "
        f"{metrics['train_tokens'] / 1e6:.2f} M tokens in {metrics['train_seconds']:.0f} s ({metrics['tokens_per_second']:,.0f} tokens/s); "
        f"{metrics['total_seconds']:.0f} s in all, {metrics['peak_memory_gb']:.1f} GB"
    )
    lines.append(f"wrote {folder} (report.html shows how it went); next: llmkit chat {folder}")
    return "\n".join(lines)
