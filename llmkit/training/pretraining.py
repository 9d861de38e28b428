"""The preparation of a pretraining run: a machine that is measured, a plan that is complete, a model that fits both."""

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmkit.data.check import problem_of_length
from llmkit.data.packing import PackedSamples, TokenFile
from llmkit.errors import UserError, noting, refuse
from llmkit.modeling.models import choose_attention, compile_layers, new_model
from llmkit.modeling.sizes import Shape, shape_of_config
from llmkit.options import Settings
from llmkit.training import plan
from llmkit.training.budget import parse_budget, seconds_since_start, steps_within
from llmkit.training.checks import problems_of_training
from llmkit.training.measure import has_bfloat16, matrix_peaks
from llmkit.training.processes import agreed
from llmkit.training.trainer import GLANCE_TOKENS, UNUSED, measured_step


@dataclass
class Machine:
    """What a run computes with.

    Attributes:
        device: where this process keeps its model.
        processes: of the whole run.
        float32_peak, bfloat16_peak: measured floating-point operations per second of a large matrix product, of one process.
    """

    device: torch.device
    processes: int
    float32_peak: float
    bfloat16_peak: float

    @classmethod
    def measured(cls, device: torch.device, processes: int) -> "Machine":
        return cls(device, processes, *agreed(matrix_peaks(device)))

    def peak(self, autocast: torch.dtype | None) -> float:
        """Of all processes together."""
        return self.processes * (self.bfloat16_peak if autocast else self.float32_peak)


@dataclass
class Plan:
    """A model that is ready to be trained.

    Attributes:
        model: on its device, compiled if the plan says so.
        autocast: the dtype to compute in; None: float32.
        forecast: {"train_seconds", "memory_gb"}, to be compared with what happens.
    """

    model: Any
    autocast: torch.dtype | None
    forecast: dict[str, float]


def problems_of(options: Any, settings: Settings) -> list[str]:
    """What is wrong with the recipe's options by themselves."""
    problems = problems_of_training(settings, UNUSED)
    if settings.given("max_steps") and options.time_budget:
        problems.append(
            f"--max_steps {settings['max_steps'].value} and --time_budget {options.time_budget}: both say how long; give one"
        )
    if settings.given("num_train_epochs") and options.time_budget:
        problems.append(
            f"--num_train_epochs {settings['num_train_epochs'].value} and --time_budget {options.time_budget}: both say how long; "
            "give one"
        )
    if options.time_budget is not None:
        with noting(problems):
            parse_budget(options.time_budget)
    sizes = (
        "depth",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "context_length",
    )
    for name in sizes:
        value = getattr(options, name)
        least = 2 if name == "context_length" else 1
        if value is not None and value < least:
            problems.append(f"--{name} {value}: must be {least} or more")
        if value is not None and options.model is not None and name != "context_length":
            problems.append(f"--{name} {value}: the model {options.model} has its own; leave one of the two out")
    given_tokenizer = options.tokenizer or options.model
    if options.vocab_size is not None and given_tokenizer:
        problems.append(
            f"--vocab_size {options.vocab_size}: the tokenizer of {given_tokenizer} is given; leave one of the two out"
        )
    if not 0 <= options.decay_share <= 1:
        problems.append(f"--decay_share {options.decay_share}: must be between 0 and 1")
    return problems


def plan_context(settings: Settings, device: torch.device, given_model: Any, name: str | None) -> None:
    """The context length: the given model's, or by the device.

    Raises:
        UserError: longer than the given model can look back.
    """
    if given_model is None:
        plan.plan_context(settings, device)
        return
    longest = given_model.config.max_position_embeddings
    context = settings.inherit("context_length", longest, name)
    if context > longest:
        raise UserError(f"--context_length {context}: the model {name} looks back over {longest} tokens at most")


def check_text(train: TokenFile, validation: TokenFile, byte_lengths: np.ndarray, settings: Settings) -> None:
    """Refuse tokens that lose text, and a text that is too short for one batch, before a model is made."""
    problems = []
    covered = int(byte_lengths[validation.ids].sum())
    if covered != validation.text_bytes:
        problems.append(
            f"the tokenizer keeps {covered:,} of {validation.text_bytes:,} bytes of the held-out text, and bits per byte need all; "
            "leave --tokenizer out, or make one with recipes/train_tokenizer.py"
        )
    context = settings["context_length"].value
    samples = (len(train.ids) - 1) // context - 1
    batch = settings["per_device_train_batch_size"]
    if too_short := problem_of_length(len(train.ids), train.documents, context):
        problems.append(too_short)
    elif batch.source != "default" and batch.value > samples:
        problems.append(
            f"--per_device_train_batch_size {batch.value}: the training side is {samples} samples of {context} tokens, too few "
            "for one batch; ask for fewer, shorten --context_length or give more text"
        )
    refuse(problems)


def plan_run(
    settings: Settings, machine: Machine, train: TokenFile, validation: TokenFile, tokenizer: Any, given_model: Any
) -> "Plan":
    """Derive every number of the run that was not given, and make the model that they describe.

    With a time budget, the steps are planned from steps of that very model, timed on this machine now.

    Args:
        given_model: the model to go on from; None makes a new one.
    """
    from transformers import set_seed

    device = machine.device
    context = settings["context_length"].value
    left = _seconds_left(settings)
    guess = machine.peak(torch.bfloat16 if machine.bfloat16_peak > machine.float32_peak else None)
    flops = guess * plan.EFFICIENCY[device.type if device.type in plan.EFFICIENCY else "cuda"]

    if given_model is None:
        shape = plan.plan_shape(settings, len(tokenizer), context, len(train.ids), flops, left)
    else:
        shape = shape_of_config(given_model.config, context)
    horizon = _horizon(settings, shape, left, flops, len(train.ids))
    samples = plan.plan_batch(settings, horizon, context, machine.processes, (len(train.ids) - 1) // context - 1)
    batch_size = settings["per_device_train_batch_size"].value
    autocast = plan.plan_precision(settings, shape.hidden_size, has_bfloat16(device))
    plan.plan_learning(settings, shape.hidden_size, samples * context, given_model is not None)

    set_seed(settings["seed"].value)
    model = given_model or new_model(shape, tokenizer, settings["initializer_range"].value)
    model.config.use_cache = False
    model.to(device)
    choose_attention(model, device, context)
    can_compile = device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))
    if plan.plan_compilation(settings, horizon * shape.flops_per_token, device.type, can_compile):
        compile_layers(model)

    step_seconds = None
    if left is not None and settings["max_steps"].source == "default":
        batch = PackedSamples(train.ids, context, batch_size, settings["seed"].value).__getitems__(range(batch_size))
        accumulation = settings["gradient_accumulation_steps"].value
        step_seconds = agreed(accumulation * measured_step(model, batch, settings, autocast))
        # Evaluation is forward passes without compiled layers, at most 0.6 of a step: glances on the way, all of the text at
        # the end. Each glance comes with samples.
        evaluated = len(validation.ids) + plan.EVALUATIONS * min(len(validation.ids), GLANCE_TOKENS)
        reserve = 5 + plan.EVALUATIONS * plan.SAMPLE_SECONDS + 0.6 * step_seconds * evaluated / (samples * context)
        spent = agreed(seconds_since_start())
        steps = steps_within(parse_budget(settings["time_budget"].value), spent, reserve, step_seconds)
        plan.plan_steps_in_budget(settings, steps, samples * context, len(train.ids), step_seconds, reserve)
    plan.plan_horizon(settings, shape.parameters, samples * context, len(train.ids))
    plan.plan_schedule(settings)
    plan.plan_pace(settings, step_seconds)
    batch_tokens = samples * context
    seconds = settings["max_steps"].value * (step_seconds or batch_tokens * shape.flops_per_token / flops)
    memory = shape.training_bytes(batch_size * context, autocast is not None)
    return Plan(model, autocast, {"train_seconds": seconds, "memory_gb": memory / 1e9})


def _seconds_left(settings: Settings) -> float | None:
    """Seconds that the budget leaves for training, roughly; None without a budget."""
    if not any(settings.given(name) for name in ("time_budget", "depth", "max_steps", "num_train_epochs", "model")):
        settings.derive(
            "time_budget", "5m", "neither it nor --depth, --max_steps, --num_train_epochs or --model was given"
        )
    if settings["time_budget"].value is None or settings["max_steps"].source != "default":
        return None
    budget = parse_budget(settings["time_budget"].value)
    spent = agreed(seconds_since_start())
    steps_within(budget, spent, reserve=8, step_seconds=0.1)  # refuses before any work is done
    return max(budget - spent - 8 - plan.COMPILE_SECONDS, 1.0)


def _horizon(settings: Settings, shape: Shape, left: float | None, flops: float, tokens: int) -> int:
    """Tokens of the whole run, roughly: what the batch size is chosen by."""
    if left is not None:
        return int(min(left * flops / shape.flops_per_token, plan.MOST_PASSES * tokens))
    if settings.given("max_steps"):
        return settings["max_steps"].value * plan.BATCH_TOKENS
    if settings.given("num_train_epochs"):
        return int(settings["num_train_epochs"].value * tokens)
    return min(plan.COMPUTE_OPTIMAL_TOKENS_PER_PARAMETER * shape.parameters, plan.MOST_PASSES * tokens)
