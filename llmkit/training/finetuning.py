"""The preparation of a fine-tuning run: which rows, which model, and every number, inherited where nothing was given."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from llmkit.data.chat_samples import Fitted, fit
from llmkit.data.conversations import Conversation, RowOptions, Rows, conversation_from, open_rows, tutor_rows
from llmkit.errors import UserError, noting
from llmkit.evaluation.chat import Answers, answer_rows
from llmkit.folder import Run, require_model_folder
from llmkit.options import Settings, option
from llmkit.tokenization.chat import encode_conversations
from llmkit.training import plan
from llmkit.training.checks import problems_of_training
from llmkit.training.measure import has_bfloat16

# What a run that goes on from llmkit's own GPT takes of its learning rates. On the tutor (0.9 M parameters, 24,000 and 32,000
# rows) all of them with batches of 16 and little weight decay left 39 % of the definitions wrong, half of them with batches of
# 32 and the decay of pretraining 47 % after twice as many of them.
SHARE_OF_PRETRAINING = 1.0
SHARE_FOR_LORA = 0.5
LORA_LEARNING_RATE = 2e-4  # Dettmers et al., "QLoRA", 2023
LEARNING_RATE = 2e-5  # of a model from elsewhere: what TRL takes for supervised fine-tuning
MOST_ANSWERED = 2000  # held-out questions that are answered at the end of a run
WEIGHT_DECAY = 0.05  # answers are to be known by heart, which decay prevents
LONGEST_EXACT = 64  # tokens of an answer, in the middle of all, that can be asked to be exactly right


@dataclass
class FinetuneOptions(RowOptions):
    """What every recipe takes that goes on from a model."""

    model: str = option("runs/gpt", "Model folder or Hub id to go on from.")
    tutor_rows: int = option(24_000, "Conversations of the bundled tutor, where --data is not given.")
    system_prompt: str | None = option(None, "Put before conversations that have no system message.")
    too_long: Literal["drop", "truncate", "error"] = option("drop", "What happens to rows longer than --max_length.")
    overwrite: bool = option(False, "Delete a run of other options in output_dir.")


@dataclass
class FullOptions(FinetuneOptions):
    """Options of training all weights."""

    optimizer: Literal["muon", "adamw"] = option("muon", "For hidden matrices; the rest is AdamW's.")
    muon_learning_rate: float | None = option(None, "Of hidden matrices; --learning_rate is AdamW's.")
    adamw_weight_decay: float = option(0.0, "Of embeddings; --weight_decay is the hidden matrices'.")
    decay_share: float = option(0.5, "Share of the steps over which the learning rate falls to 0.")


@dataclass
class LoraOptions(FinetuneOptions):
    """Options of training an adapter beside the weights."""

    lora_r: int = option(16, "Rank: inner width of the matrices beside each layer.")
    lora_alpha: int = option(32, "Their scale, divided by the rank.")
    lora_dropout: float = option(0.0, "Share of inputs that they do not see, while training.")
    target_modules: str | None = option(None, "Layers, by the ends of their names, with commas; None: all linear ones.")
    use_dora: bool = option(False, "DoRA: the length of each weight column is learned apart.")
    use_rslora: bool = option(False, "rsLoRA: alpha is divided by the root of the rank.")
    load_in_4bit: bool = option(False, "QLoRA: the base in 4 bits (nf4, double quantization).")
    load_in_8bit: bool = option(False, "The base in 8 bits.")
    merge: bool = option(False, "Write the merged stock model as well, to output_dir/merged.")
    decay_share: float = option(0.5, "Share of the steps over which the learning rate falls to 0.")


def open_conversations(options: FinetuneOptions, problems: list[str]) -> Rows[Conversation] | None:
    """The rows that the options name, with the system prompt; problems are added to the list."""
    rows = None
    if options.data is None:
        if options.tutor_rows < 1:
            problems.append(f"--tutor_rows {options.tutor_rows}: must be 1 or more")
        else:
            rows = tutor_rows(options.tutor_rows, options.split_seed)
    else:
        with noting(problems):
            rows = open_rows(options, conversation_from)
    if rows is not None and options.system_prompt:
        for side in (rows.train, rows.validation, *rows.further.values()):
            side[:] = [_with_system_prompt(row, options.system_prompt) for row in side]
    return rows


def problems_of(options: FinetuneOptions, settings: Settings, unused: dict[str, tuple[str, ...]]) -> list[str]:
    """What is wrong with a recipe's options by themselves."""
    problems = problems_of_training(settings, unused)
    if options.data is None and (options.validation_data or settings.given("validation_fraction")):
        problems.append(
            "--validation_data and --validation_fraction: the bundled data has its own test; give --data, or leave them out"
        )
    if options.data is not None and settings.given("tutor_rows"):
        problems.append(
            f"--tutor_rows {options.tutor_rows}: is of the bundled data, and --data is given; leave one of the two out"
        )
    if "max_length" in settings and settings["max_length"].value is not None and settings["max_length"].value < 2:
        problems.append(f"--max_length {settings['max_length'].value}: must be 2 or more")
    if "decay_share" in settings and not 0 <= settings["decay_share"].value <= 1:
        problems.append(f"--decay_share {settings['decay_share'].value}: must be between 0 and 1")
    return problems


def problems_of_lora(options: LoraOptions) -> list[str]:
    """What is wrong with the options of an adapter."""
    from llmkit.modeling.adapters import problems_of_quantization

    problems = problems_of_quantization(options.load_in_4bit, options.load_in_8bit)
    for name in ("lora_r", "lora_alpha"):
        if getattr(options, name) < 1:
            problems.append(f"--{name} {getattr(options, name)}: must be 1 or more")
    if not 0 <= options.lora_dropout < 1:
        problems.append(f"--lora_dropout {options.lora_dropout}: must be from 0 to below 1")
    return problems


def _with_system_prompt(row: Conversation, text: str) -> Conversation:
    if row.messages[0]["role"] == "system":
        return row
    return dataclasses.replace(row, messages=({"role": "system", "content": text}, *row.messages))


def require_causal_model(name: str, option: str = "--model") -> dict[str, Any]:
    """Refuse a folder that holds no causal language model, before it is loaded.

    Returns:
        Its llmkit.json, or nothing where llmkit did not make it.

    Raises:
        UserError: no model folder, an adapter, an encoder or another architecture.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    require_model_folder(name, option)
    folder = Path(name)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UserError(
            f"{option} {name}: is an adapter; give the model that its base is, or a merged folder (--merge)"
        )
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {name}: its configuration cannot be read: {str(error).splitlines()[0]}") from None
    encoders = {"BertLMHeadModel", "RobertaForCausalLM"}
    architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")]
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) and name not in encoders for name in architectures):
        raise UserError(
            f"{option} {name}: is {', '.join(filter(None, architectures)) or config.model_type}, which does not continue text; give a "
            "causal language model (an encoder can become a classifier)"
        )
    record = folder / "llmkit.json"
    return json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}


def inherit(
    settings: Settings, config: Any, name: str, parent: dict[str, Any], device: torch.device
) -> torch.dtype | None:
    """Take over from the model what was not given: how far it looks back, its precision, and the scale of its learning rates.

    Args:
        config: the model's; its weights are not needed.
        parent: the model's llmkit.json, if it has one.

    Returns:
        The dtype to compute in; None for float32.

    Raises:
        UserError: `--max_length` is more than the model can look back over.
    """
    longest = config.max_position_embeddings
    length = settings.inherit("max_length", longest, name)
    if length > longest:
        raise UserError(f"--max_length {length}: the model {name} looks back over {longest} tokens at most")
    options = parent.get("options", {})
    bf16 = options.get("bf16", {}).get("value")
    if bf16 is not None and not settings["fp16"].value and (not bf16 or has_bfloat16(device)):
        settings.inherit("bf16", bf16, name)
    dtype = plan.plan_precision(settings, config.hidden_size, has_bfloat16(device))
    if "learning_rate" not in settings:  # a look at data takes no steps
        return dtype
    if "optimizer" not in settings:
        if "learning_rate" in options and "muon_learning_rate" in options:
            value = options["learning_rate"]["value"]
            reason = f"{SHARE_FOR_LORA:g} of the {value:g} of {name}"
            settings.derive("learning_rate", round(value * SHARE_FOR_LORA, 6), reason)
        else:
            settings.derive("learning_rate", LORA_LEARNING_RATE, "usual for an adapter of a large model")
        return dtype
    if "muon_learning_rate" not in options:
        settings.derive("optimizer", "adamw", f"{name} was not trained with llmkit's Muon")
        settings.derive("learning_rate", LEARNING_RATE, "usual for fine-tuning all weights of a large model")
        settings.derive("muon_learning_rate", LEARNING_RATE, "of no use: all weights are AdamW's")
        return dtype
    for rate in ("muon_learning_rate", "learning_rate"):
        value = options[rate]["value"]
        settings.derive(
            rate, round(value * SHARE_OF_PRETRAINING, 6), f"{SHARE_OF_PRETRAINING:g} of the {value:g} of {name}"
        )
    return dtype


def plan_steps(settings: Settings, samples: int, processes: int) -> None:
    """Steps, schedule and pace of a run over so many samples."""
    batch = settings["per_device_train_batch_size"].value * settings["gradient_accumulation_steps"].value * processes
    if settings["max_steps"].source == "default":
        if settings["data"].value is None:
            settings.derive("num_train_epochs", 1.0, "the bundled rows are made, as many as --tutor_rows says")
        epochs = settings["num_train_epochs"].value
        settings.derive(
            "max_steps",
            max(round(epochs * samples / batch), 1),
            f"{epochs:g} passes over {samples:,} samples, {batch} a step",
        )
    if "optimizer" in settings:
        settings.derive("weight_decay", WEIGHT_DECAY, "little: answers are to be known by heart")
    else:
        settings.derive("weight_decay", 0.0, "an adapter is small already")
    plan.plan_schedule(settings)
    plan.plan_pace(settings, None)


def encode_side(rows: list[Conversation], tokenizer: Any, settings: Settings, option: str = "--data") -> Fitted:
    """One side as samples that fit."""
    encoded = encode_conversations(tokenizer, [row.messages for row in rows])
    places = [row.place for row in rows]
    return fit(encoded, places, settings["max_length"].value, settings["too_long"].value, option)


def loss_before(trainer: Any, run: Run) -> float:
    """The loss on the held-out answers before the first step; a run that goes on has it in its record."""
    if "loss_before" not in run.record:
        run.save(loss_before=trainer.validation_loss())
    return run.record["loss_before"]


def answer_held_out(
    model: Any, tokenizer: Any, rows: Rows[Conversation], autocast: torch.dtype | None
) -> dict[str, Answers]:
    """Answers to the held-out questions (under "") and to further ones by name, where answers are short enough to be equal."""
    some = rows.validation[:MOST_ANSWERED]
    lengths = sorted(len(tokenizer(row.answer, add_special_tokens=False)["input_ids"]) for row in some)
    if lengths[len(lengths) // 2] > LONGEST_EXACT:
        return {}
    device = next(model.parameters()).device
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        return {name: answer_rows(model, tokenizer, some) for name, some in {"": some, **rows.further}.items()}
