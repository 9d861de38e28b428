"""From a corpus, a machine and a budget to every number of a pretraining run, each with its reason.

The order matters: the text decides the vocabulary, the machine the precision, both with the budget the depth, and the
depth everything else. Nothing here overrides what the user gave. What is a rule of thumb, and was found on which
runs, is said where the rule stands.
"""

import math
from dataclasses import replace

import torch

from llmkit.errors import UserError
from llmkit.modeling.sizes import Shape, key_value_heads_for, shape_of_depth
from llmkit.options import Settings

# Share of the measured matrix peak that training reaches, as a first guess; steps are planned from a measured step.
EFFICIENCY = {"cpu": 0.35, "cuda": 0.4}
# Tokens that a parameter has to see for a model of this size to be worth its time, in a short run with repeats: on
# tinyshakespeare in 190 s, 2.5 M parameters at 1.2 tokens and 5 M at 0.33 were equally good. Web-scale runs to a compute
# optimum use about 20 (Hoffmann et al., "Training Compute-Optimal Large Language Models", 2022).
TOKENS_PER_PARAMETER = 0.5
COMPUTE_OPTIMAL_TOKENS_PER_PARAMETER = 20
# Passes over a text after which more of the same only make a model learn it by heart (Muennighoff et al., "Scaling
# Data-Constrained Language Models", 2023, put the knee at 4). On tinyshakespeare 6 passes ended at 2.06 bits per byte and 8 at
# 2.13, with weight decay by the rule below.
MOST_PASSES = 6
DEEPEST = 32
# How many times over a run forgets its weights, and the most that one step may forget relative to its learning rate. On
# tinyshakespeare in 720 steps (6 passes): 2.170 bits per byte without decay, 2.088 at 1.4 times, 2.055 at 2.9 times.
DECAYS_PER_RUN = 3.0
LARGEST_WEIGHT_DECAY = 0.3
EVALUATIONS = 6  # on the way
SAMPLE_SECONDS = 1.5  # to write samples at each of them
START_SECONDS = 15  # to import, read, split and tokenize a small text
COMPILE_SECONDS = 25  # to compile a decoder layer, forward and backward, on two cores without a cache
# Operations of a run from which compiling wins back more than it costs: it saves about a third of a step, so that 80 s of steps
# pay for 25 s of compiling, on two cores at 300 GFLOP/s; on a GPU it takes a minute.
COMPILE_FLOPS = {"cpu": 2.5e13, "cuda": 1e16}
NARROWEST_IN_BFLOAT16 = 128

BATCH_TOKENS = 4096  # for the horizon below
_BATCH_HORIZON = 3_000_000
_BATCH_EXPONENT = 0.383  # Bergsma et al., "Power Lines", 2025: the best batch grows with the tokens of a run


def plan_precision(settings: Settings, hidden_size: int, has_bfloat16: bool) -> torch.dtype | None:
    """bfloat16 where this machine is faster with it; returns the dtype to compute in, None for float32.

    A rule and no measurement, so that the same command gives the same weights: on processors with bfloat16 products a
    layer of width 128 trains 2.5 to 4 times as fast under autocast, and one of width 64 between 0.8 and 2 times.
    """
    if settings["fp16"].value:
        settings.derive("bf16", False, "--fp16 was given")
        return torch.float16
    wide = hidden_size >= NARROWEST_IN_BFLOAT16
    reason = "this machine has no bfloat16 products"
    if has_bfloat16:
        reason = f"this machine has bfloat16 products, and they gain {'much' if wide else 'little'} at this width"
    return torch.bfloat16 if settings.derive("bf16", has_bfloat16 and wide, reason) else None


def plan_context(settings: Settings, device: torch.device) -> int:
    if device.type == "cuda":
        return settings.derive("context_length", 1024, "usual at this size; attention is cheap on a GPU")
    return settings.derive(
        "context_length", 256, "a page of text; on a CPU attention over more costs more than it tells"
    )


def plan_shape(
    settings: Settings,
    vocab_size: int,
    context_length: int,
    tokens: int,
    flops: float,
    seconds: float | None,
) -> Shape:
    """The model's shape: by depth, which follows from the budget where it was not given.

    Args:
        vocab_size: of the tokenizer.
        context_length: input tokens of a sample.
        tokens: of the training side.
        flops: operations per second that training is expected to reach.
        seconds: of training that the budget leaves; None without a budget.
    """
    if settings["depth"].value is None:
        if seconds is None:
            settings.derive("depth", 6, "neither --depth nor --time_budget was given")
        else:
            settings.derive("depth", *_depth_for(vocab_size, context_length, tokens, flops, seconds))
    depth, by_depth = settings["depth"].value, "follows from --depth"
    width = settings.derive("hidden_size", shape_of_depth(depth, vocab_size, context_length).hidden_size, by_depth)
    shape = shape_of_depth(depth, vocab_size, context_length, width)
    heads = settings.derive("num_attention_heads", shape.num_attention_heads, by_depth)
    groups = settings.derive("num_key_value_heads", key_value_heads_for(heads), by_depth)
    inner = settings.derive("intermediate_size", shape.intermediate_size, by_depth)
    problems = []
    if width % heads:
        problems.append(f"--hidden_size {width} is not a multiple of --num_attention_heads {heads}")
    elif (width // heads) % 2:
        problems.append(f"--hidden_size {width} / --num_attention_heads {heads} must be even for rotary positions")
    if heads % groups:
        problems.append(f"--num_attention_heads {heads} is not a multiple of --num_key_value_heads {groups}")
    if problems:
        raise UserError(problems)
    return replace(
        shape,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=width // heads,
    )


def _depth_for(vocab_size: int, context_length: int, tokens: int, flops: float, seconds: float) -> tuple[int, str]:
    """The largest depth that this budget can feed, and the reason in words."""
    best = 1
    for depth in range(1, DEEPEST + 1):
        shape = shape_of_depth(depth, vocab_size, context_length)
        seen = min(seconds * flops / shape.flops_per_token, MOST_PASSES * tokens)
        if seen < TOKENS_PER_PARAMETER * shape.parameters:
            break
        best = depth
    return best, (
        f"the largest model whose every parameter sees {TOKENS_PER_PARAMETER:g} token or more in {seconds:.0f} s at "
        f"{flops / 1e9:.0f} GFLOP/s and {MOST_PASSES} passes over {tokens:,} tokens at most"
    )


def plan_batch(settings: Settings, horizon: int, context_length: int, processes: int, available: int) -> int:
    """Samples of one optimizer step over all processes; fills in the batch of one process.

    Args:
        horizon: tokens of the whole run, roughly.
        available: samples in one pass over the text.
    """
    wanted = BATCH_TOKENS * (horizon / _BATCH_HORIZON) ** _BATCH_EXPONENT
    samples = min(max(2 ** round(math.log2(wanted / context_length)), 1), available)
    per_process = max(samples // processes, 1)
    accumulation = settings["gradient_accumulation_steps"].value
    if settings["per_device_train_batch_size"].source == "default":
        most = 32 * max(1024 // context_length, 1)  # samples that a device takes at once
        if settings["gradient_accumulation_steps"].source == "default" and per_process > most:
            accumulation = math.ceil(per_process / most)
            settings.derive("gradient_accumulation_steps", accumulation, f"at most {most} samples at once")
        per_process = max(per_process // accumulation, 1)
    reason = (
        f"about {wanted:,.0f} tokens a step: the best batch grows with the tokens of the run, here some {horizon:,}"
    )
    per_device = settings.derive("per_device_train_batch_size", per_process, reason)
    return per_device * accumulation * processes


def plan_learning(settings: Settings, hidden_size: int, batch_tokens: int, continues: bool) -> None:
    """Learning rates and the initial scale.

    Args:
        continues: whether the model was trained before; it is then moved with smaller steps.
    """
    scale = math.sqrt(batch_tokens / BATCH_TOKENS) * (0.3 if continues else 1)
    note = ", and 0.3 of that because the model is trained already" if continues else ""
    reason = f"0.02 at {BATCH_TOKENS} tokens a step, by the root of the batch{note}"
    settings.derive("muon_learning_rate", round(0.02 * scale, 6), reason)
    at_192 = 0.003 if settings["optimizer"].value == "adamw" else 0.01
    reason = f"{at_192} at width 192, by the roots of batch and inverse width{note}"
    settings.derive("learning_rate", round(at_192 * math.sqrt(192 / hidden_size) * scale, 6), reason)
    if not continues:
        reason = "0.02 at width 768, as GPT-2 has it, by the inverse root of the width"
        settings.derive("initializer_range", round(0.02 * math.sqrt(768 / hidden_size), 4), reason)


def plan_compilation(settings: Settings, flops: float, device: str, can_compile: bool) -> bool:
    """Whether to compile: where a run is long enough to win back what compiling costs. A rule, as for the precision.

    Args:
        flops: floating-point operations of the whole run.
        device: its type.
        can_compile: whether there is what compiling needs.
    """
    if not can_compile:
        return settings.derive("torch_compile", False, "there is no C++ compiler on this machine")
    least = COMPILE_FLOPS.get(device, math.inf)
    reason = f"the run is {flops:.1e} operations, and compiling pays from {least:.1e} on"
    return settings.derive("torch_compile", flops >= least, reason)


def plan_steps_in_budget(
    settings: Settings, steps: int, batch_tokens: int, tokens: int, step_seconds: float, reserve: float
) -> None:
    """As many steps as the budget allows, and no more than the text is good for."""
    most = max(MOST_PASSES * tokens // batch_tokens, 1)
    reason = f"{step_seconds:.3f} s a step, measured; {reserve:.0f} s are kept for evaluation and saving"
    if steps > most:
        reason = f"{MOST_PASSES} passes over the text; the rest of the budget would only memorize it"
    settings.derive("max_steps", min(steps, most), reason)


def plan_horizon(settings: Settings, parameters: int, batch_tokens: int, tokens: int) -> None:
    """The number of steps where neither the user nor a budget has set it."""
    if settings.given("num_train_epochs"):
        passes = settings["num_train_epochs"].value
        settings.derive("max_steps", max(round(passes * tokens / batch_tokens), 1), f"{passes:g} passes over the text")
    wanted = COMPUTE_OPTIMAL_TOKENS_PER_PARAMETER * parameters
    reason = f"{COMPUTE_OPTIMAL_TOKENS_PER_PARAMETER} tokens for each parameter"
    if wanted > MOST_PASSES * tokens:
        reason = f"{MOST_PASSES} passes over the text; {reason} would be {wanted / tokens:.0f}"
    settings.derive("max_steps", max(round(min(wanted, MOST_PASSES * tokens) / batch_tokens), 1), reason)


def plan_schedule(settings: Settings) -> None:
    """Warmup, stable phase, decay, and how fast weights are forgotten: all of them by the number of steps.

    Weight decay times learning rate is the share of a weight that each step forgets; its inverse is how many steps back
    the weights remember, and that is best kept at a fixed share of the run (Wang and Aitchison, "How to set AdamW's weight
    decay as you scale model and dataset size", 2024).
    Without it, a text that is read several times is learned by heart.
    """
    steps = settings["max_steps"].value
    by_muon = "optimizer" in settings and settings["optimizer"].value == "muon"
    rate = settings["muon_learning_rate" if by_muon else "learning_rate"].value
    wanted = DECAYS_PER_RUN / (rate * steps) if rate > 0 else math.inf
    reason = f"the run forgets its weights {DECAYS_PER_RUN:g} times over, by {rate:g} x this at each step"
    if wanted > LARGEST_WEIGHT_DECAY:
        reason = f"the most; a run this short forgets less than {DECAYS_PER_RUN:g} times over"
    settings.derive("weight_decay", round(min(wanted, LARGEST_WEIGHT_DECAY), 4), reason)
    warmup = settings.derive("warmup_steps", min(max(round(0.02 * steps), 10), 200), "2 % of the steps, from 10 to 200")
    settings.derive("lr_scheduler_type", "warmup_stable_decay", "the stable part can be continued with more data")
    if settings["lr_scheduler_type"].value == "warmup_stable_decay":
        warmup = round(warmup if warmup >= 1 else warmup * steps)  # as Trainer reads it
        decay = min(round(settings["decay_share"].value * steps), max(steps - warmup, 0))
        kwargs = {"num_decay_steps": max(decay, 1), "decay_type": "linear"}
        settings.derive("lr_scheduler_kwargs", kwargs, f"the last {settings['decay_share'].value:.0%} of the steps")


def plan_pace(settings: Settings, step_seconds: float | None) -> None:
    """How often to log, evaluate and save."""
    steps = settings["max_steps"].value
    settings.derive("logging_steps", max(steps // 100, 1), "a hundred points on the curve")
    settings.derive("eval_steps", max(math.ceil(steps / EVALUATIONS), 1), f"{EVALUATIONS} evaluations")
    often = f"about once a minute at {step_seconds:.2f} s a step" if step_seconds else "ten checkpoints"
    settings.derive("save_steps", max(round(60 / step_seconds) if step_seconds else steps // 10, 1), often)
