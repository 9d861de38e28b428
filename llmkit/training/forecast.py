"""What a pretraining run on some data would take on this machine, without starting one."""

from typing import Any

import torch

from llmkit.options import Setting, Settings
from llmkit.tokenization.bpe import vocabulary_for
from llmkit.training import plan
from llmkit.training.budget import parse_budget
from llmkit.training.measure import matrix_peaks, use_all_cores

PROGRAM_GB = 0.7  # of torch and transformers, imported
BYTES_PER_TOKEN = 2.3  # of English text in a vocabulary of about 1,000; used where no tokenizer is given


def forecast(report: dict[str, Any], depth: int | None, time_budget: str) -> dict[str, Any]:
    """Parameters, memory, tokens and minutes.

    Args:
        report: of `check_text`, with token counts if a tokenizer is at hand.
        depth: of the model; chosen for the budget if None.
        time_budget: as in the recipe.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        use_all_cores()
    flops = max(matrix_peaks(device)) * plan.EFFICIENCY[device.type]
    vocab_size = report.get("vocab_size") or vocabulary_for(report["train_bytes"])
    tokens = report.get("train_tokens") or int(report["train_bytes"] / BYTES_PER_TOKEN)
    names = (
        "depth",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "context_length",
    )
    settings = Settings({name: Setting(None, "default") for name in names})
    if depth is not None:
        settings["depth"] = Setting(depth, "command line")
    context = plan.plan_context(settings, device)
    seconds = max(parse_budget(time_budget) - plan.START_SECONDS - plan.COMPILE_SECONDS, 1.0)
    shape = plan.plan_shape(settings, vocab_size, context, tokens, flops, seconds)
    rate = flops / shape.flops_per_token
    return {
        "depth": shape.num_hidden_layers,
        "parameters": shape.parameters,
        "vocabulary": vocab_size,
        "memory_gb": round(shape.training_bytes(plan.BATCH_TOKENS, autocast=True) / 1e9 + PROGRAM_GB, 2),
        "tokens_per_pass": tokens,
        "tokens_per_second": round(rate),
        "minutes_per_pass": round(tokens / rate / 60, 2),
        "minutes_of_training": round(min(seconds, plan.MOST_PASSES * tokens / rate) / 60, 2),
    }
