"""TRL's DPOTrainer for preferences that are encoded and fitted beforehand, and the preparation of its run.

The reference is the model that the run starts from. Its log-probabilities are computed once, before the first step, so that
no second model is held; they are also what the model itself ranked by before training, which is the baseline.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer

from llmkit.data.chat_samples import TooLong, training_order
from llmkit.data.conversations import Preference, RowOptions, Rows
from llmkit.errors import UserError, nearest
from llmkit.evaluation.chat import share_of_right
from llmkit.folder import Run
from llmkit.modeling import adapters
from llmkit.options import Settings, option
from llmkit.tokenization.chat import Encoded, encode_conversations, prompt_ids
from llmkit.training import finetuning_summary
from llmkit.training.callbacks import Journal
from llmkit.training.careful import Careful
from llmkit.training.checks import problems_of_training
from llmkit.training.optimizer import MuonAdamW
from llmkit.training.trainer import groups_of

# What a run takes of the learning rates of the model that it goes on from: a tenth of those of supervised fine-tuning, which took
# half of those of pretraining; and all of those of a model that was aligned already.
SHARE = 0.1
SHARE_BY_RECIPE = {"pretrain_gpt": 0.05, "align_dpo": 1.0, "align_grpo": 1.0}
LEARNING_RATE = 2e-6  # of all weights of a model from elsewhere: a tenth of what supervised fine-tuning takes
# An adapter of a model from elsewhere, and of our own relative to AdamW's rate for all weights (Schulman et al., "LoRA Without
# Regret", 2025, find about ten times; AdamW's rate of our GPT is that of its embeddings, which is high already).
LORA_LEARNING_RATE = 2e-5
LORA_TIMES = 2.0
LORA_RANK, LORA_ALPHA = 16, 32
GLANCE_ROWS = 256  # held-out pairs at the evaluations on the way; the last one is over all of them

# The losses of TRL; those whose every term is a difference of the two rewards, which other divergences allow; and those that
# an option belongs to.
LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
    "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_OF_DIFFERENCES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
_LOSSES_OF_OPTION = {
    "beta": tuple(loss for loss in LOSSES if loss != "sft"),
    "label_smoothing": ("robust", "exo_pair", "aot", "aot_unpaired"),
    "discopop_tau": ("discopop",),
}
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")

# Options of DPOConfig that could change nothing here, and why; giving one is refused.
UNUSED = {
    "the optimizer is chosen by --optimizer": ("optim", "optim_args", "optim_target_modules"),
    "the model after the last step is the result": ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    "samples are laid out beforehand, see --seed": ("train_sampling_strategy", "dataloader_drop_last", "data_seed"),
    "--per_device_train_batch_size says it": ("auto_find_batch_size",),
    "these models train uncompiled: every batch has another shape": ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "evaluation is the ranking of held-out pairs, and the loss on them at the end": (
        "batch_eval_metrics", "eval_accumulation_steps", "include_for_metrics", "prediction_loss_only", "label_names",
    ),
    "evaluation computes as training does": ("bf16_full_eval", "fp16_full_eval"),
    "evaluations take different rows": ("dataloader_persistent_workers",),
    "the recipe trains and evaluates": ("do_train", "do_eval", "do_predict"),
    "the same command goes on by itself": ("resume_from_checkpoint", "ignore_data_skip"),
    "the recipe loads the model": ("model_init_kwargs", "trust_remote_code", "router_aux_loss_coef"),
    "rows are read and encoded by the recipe": ("dataset_num_proc", "pad_token"),
    "--too_long says what happens to long rows": ("truncation_mode",),
    "the loss is chosen by --loss_type": ("label_smoothing_factor",),
    "the reference is the model that the run starts from, scored once before the first step": (
        "precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps",
    ),
    "an answer's reward is the sum over all of its tokens": ("ld_alpha",),
    "TRL has switched it off": ("padding_free",),
    "it is no longer used by TRL": ("use_liger_kernel", "liger_kernel_config"),
}  # fmt: skip
SHOWN = (
    "model", "max_length", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "warmup_steps",
    "lr_scheduler_type", "loss_type", "loss_weights", "beta", "optimizer", "muon_learning_rate", "learning_rate", "weight_decay",
    "bf16",
)  # fmt: skip
# Figures of TRL's log of the training pairs, and their names in metrics.jsonl.
_CURVES = {"rewards/margins": "reward_margin", "rewards/accuracies": "reward_accuracy"}


# ---------------------------------------------------------------------------------------------- options


@dataclass
class PreferenceOptions(RowOptions):
    """What the recipe takes beside the arguments of the trainer."""

    data: str | None = option(None, "Preferences: file, folder or Hub dataset id. Required: none are bundled.")
    model: str = option("runs/chat", "Model folder or Hub id to go on from; it is the reference as well.")
    too_long: Literal["drop", "truncate", "error"] = option(
        "drop", "What happens to pairs of which an answer is longer than --max_length."
    )
    chat_template_path: str | None = option(None, "A .jinja file in place of the tokenizer's own template.")
    overwrite: bool = option(False, "Delete a run of other options in output_dir.")
    use_lora: bool = option(False, "Train an adapter, merged into the model at the end, and not all weights.")
    optimizer: Literal["muon", "adamw"] = option("muon", "For hidden matrices; the rest is AdamW's.")
    muon_learning_rate: float | None = option(None, "Of hidden matrices; --learning_rate is AdamW's.")
    adamw_weight_decay: float = option(0.0, "Of embeddings; --weight_decay is the hidden matrices'.")
    decay_share: float = option(0.5, "Share of the steps over which the learning rate falls to 0.")


@dataclass
class PreferenceArguments(DPOConfig):
    """DPOConfig with the defaults of this project; None is filled in by the plan and printed."""

    output_dir: str = "runs/preferred"
    per_device_train_batch_size: int = dataclasses.field(
        default=16, metadata={"help": "Pairs that a device takes at once; each is two answers."}
    )
    per_device_eval_batch_size: int = 32
    num_train_epochs: float = dataclasses.field(default=3.0, metadata={"help": "Passes over the training pairs."})
    # With the second term the preferred answer stays likely; the first alone only keeps it ahead of the rejected one, and both
    # may fall together.
    loss_type: list[str] = dataclasses.field(
        default_factory=lambda: ["sigmoid", "sft"],
        metadata={"help": f"Losses that are added: {', '.join(LOSSES)}. --loss_weights weighs them."},
    )
    bf16: bool | None = dataclasses.field(default=None, metadata={"help": "bfloat16; None: as the model was trained."})
    pad_to_multiple_of: int | None = 16  # few shapes: each new one costs time and memory on a CPU
    max_length: int | None = dataclasses.field(
        default=None,
        metadata={"help": "Tokens of the longest prompt and answer; None: all that the model can look back over."},
    )
    activation_checkpointing: bool | None = False
    adam_beta2: float = 0.99
    eval_strategy: str = "steps"
    save_strategy: str = "steps"
    save_total_limit: int | None = 2
    train_sampling_strategy: str = "sequential"
    dataloader_pin_memory: bool = dataclasses.field(default_factory=torch.cuda.is_available)
    ddp_find_unused_parameters: bool | None = False
    logging_nan_inf_filter: bool = False
    disable_tqdm: bool | None = False

    def __post_init__(self):
        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            self.use_cpu = True
        self.bf16 = bool(self.bf16)
        self.push_to_hub = False  # the finished folder is pushed; Trainer would push every checkpoint
        super().__post_init__()


def problems_of(options: PreferenceOptions, settings: Settings) -> list[str]:
    """What is wrong with the recipe's options by themselves."""
    problems = problems_of_training(settings, UNUSED) + _problems_of_loss(settings)
    if options.data is None:
        problems.append(
            "--data: is required, since no preferences are bundled; give a file, folder or Hub dataset id whose rows have the "
            "columns prompt, chosen and rejected"
        )
    length = settings["max_length"].value
    if length is not None and length < 2:
        problems.append(f"--max_length {length}: must be 2 or more")
    if not 0 <= options.decay_share <= 1:
        problems.append(f"--decay_share {options.decay_share}: must be between 0 and 1")
    if options.use_lora:
        if settings.given("optimizer") and options.optimizer == "muon":
            problems.append(
                "--optimizer muon: is for whole matrices, and --use_lora trains thin factors; leave one of the two out"
            )
        problems += [
            f"--{name} {settings[name].value}: changes nothing with --use_lora, whose matrices are all AdamW's; leave it out"
            for name in ("muon_learning_rate", "adamw_weight_decay")
            if settings.given(name)
        ]
    return problems


def _problems_of_loss(settings: Settings) -> list[str]:
    """TRL finds these at the first step, or not at all."""
    value = {name: setting.value for name, setting in settings.items()}
    losses, divergence = value["loss_type"], value["f_divergence_type"]
    unknown = [loss for loss in losses if loss not in LOSSES]
    problems = [
        f"--loss_type {loss}: is no loss{nearest(loss, LOSSES) or '; known are ' + ', '.join(LOSSES)}"
        for loss in unknown
    ]
    problems += [
        f"--{name} {value[name]}: changes nothing with --loss_type {' '.join(losses)}; it belongs to {', '.join(of)}; leave it out"
        for name, of in _LOSSES_OF_OPTION.items()
        if settings.given(name) and not unknown and not set(of) & set(losses)
    ]
    if value["beta"] <= 0:
        problems.append(f"--beta {value['beta']}: must be above 0")
    smoothing = value["label_smoothing"]
    if not 0 <= smoothing < 0.5:
        problems.append(
            f"--label_smoothing {smoothing}: must be from 0 to below 0.5, since it is a share of wrong rows"
        )
    elif "exo_pair" in losses and smoothing == 0:
        problems.append("--loss_type exo_pair: needs --label_smoothing above 0, such as 0.001")
    if divergence not in DIVERGENCES:
        problems.append(f"--f_divergence_type {divergence}: is none of {', '.join(DIVERGENCES)}")
    elif divergence != "reverse_kl" and (others := set(losses) - _OF_DIFFERENCES - set(unknown)):
        problems.append(
            f"--f_divergence_type {divergence}: is not defined for --loss_type {' '.join(sorted(others))}; leave it out, or take "
            f"{', '.join(sorted(_OF_DIFFERENCES))}"
        )
    if settings.given("f_alpha_divergence_coef") and divergence != "alpha_divergence":
        problems.append(
            f"--f_alpha_divergence_coef {value['f_alpha_divergence_coef']}: changes nothing without --f_divergence_type "
            "alpha_divergence; leave it out"
        )
    if value["use_weighting"] and {"aot", "aot_unpaired"} & set(losses):
        problems.append(
            "--use_weighting: is not defined for --loss_type aot and aot_unpaired, which sort; leave it out"
        )
    return problems


def plan_rates(settings: Settings, name: str, parent: dict[str, Any]) -> None:
    """Optimizer and learning rates on the scale of the model; before `finetuning.inherit`, which keeps what stands.

    Args:
        name: of the model.
        parent: its llmkit.json, if it has one.
    """
    lora = settings["use_lora"].value
    of_parent = {
        rate: parent.get("options", {}).get(rate, {}).get("value") for rate in ("muon_learning_rate", "learning_rate")
    }
    share = SHARE_BY_RECIPE.get(parent.get("recipe", ""), SHARE)
    if lora:
        settings.derive("optimizer", "adamw", "the matrices of an adapter are thin factors")
    if None in of_parent.values():
        settings.derive("optimizer", "adamw", f"{name} was not trained with llmkit's Muon")
        value, reason = LEARNING_RATE, "usual for preferences and all weights of a large model"
        if lora:
            value, reason = LORA_LEARNING_RATE, "usual for preferences and an adapter of a large model"
        settings.derive("learning_rate", value, reason)
        settings.derive("muon_learning_rate", value, "of no use: all weights are AdamW's")
    else:
        share *= LORA_TIMES if lora else 1
        for rate, value in of_parent.items():
            settings.derive(rate, round(value * share, 8), f"{share:g} of the {value:g} of {name}")
    settings.derive(
        "weight_decay", 0.0, "forgetting would lead away from the reference, near which --beta keeps the model"
    )


# ---------------------------------------------------------------------------------------------- pairs of answers


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers as token ids; each answer ends with the token that ends it, and is trained as a whole."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def tokens(self) -> int:
        """Of both sequences."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass
class FittedPairs:
    """What is left of a side after it was fitted into the context.

    Attributes:
        samples: pairs whose sequences are of `max_length` tokens at most, each with two different answers.
        too_long: pairs that were longer.
        dropped: pairs that are gone: too long, or with nothing left to prefer.
        cut_tokens: tokens of answers that cutting has lost.
    """

    samples: list[Pair]
    too_long: int = 0
    dropped: int = 0
    cut_tokens: int = 0

    @property
    def tokens(self) -> int:
        return sum(pair.tokens for pair in self.samples)

    def as_dataset(self) -> Any:
        """The pairs as the `datasets.Dataset` that TRL's collator takes."""
        from datasets import Dataset

        return Dataset.from_dict(
            {
                "prompt_ids": [pair.prompt for pair in self.samples],
                "chosen_ids": [pair.chosen for pair in self.samples],
                "rejected_ids": [pair.rejected for pair in self.samples],
            }
        )


def encode_pairs(tokenizer: Any, rows: Sequence[Preference]) -> list[Pair]:
    """Preferences as tokens: the prompt as it is served, the answers as they are trained.

    What a template writes behind the end of an answer (a line break, as a rule) is left out: nothing that is trained follows.

    Raises:
        UserError: the template writes a prompt differently once its answer is there.
    """
    conversations = [
        (*row.prompt, {"role": "assistant", "content": answer}) for row in rows for answer in (row.chosen, row.rejected)
    ]
    encoded = encode_conversations(tokenizer, conversations)
    return [
        _pair(prompt_ids(tokenizer, row.prompt), encoded[2 * number : 2 * number + 2])
        for number, row in enumerate(rows)
    ]


def _pair(prompt: list[int], sides: Sequence[Encoded]) -> Pair:
    answers = []
    for side in sides:
        end = max(place for place, is_trained in enumerate(side.trained) if is_trained) + 1
        if side.ids[: len(prompt)] != prompt or not all(side.trained[len(prompt) : end]):
            raise UserError(
                "the chat template writes what stands before an answer differently once the answer is there, so a model trained "
                "on it would be asked with other tokens; give another with --chat_template_path"
            )
        answers.append(side.ids[len(prompt) : end])
    return Pair(prompt, *answers)


def fit_pairs(
    pairs: Sequence[Pair], places: Sequence[str], max_length: int, too_long: TooLong, option: str
) -> FittedPairs:
    """Fit pairs into the context: as `chat_samples.fit`, where a pair is as long as its longer sequence.

    Args:
        pairs: encoded preferences.
        places: where each stands, for messages.
        max_length: tokens of the longest sequence.
        too_long: leave longer ones out, cut their answers, or refuse them.
        option: the option that brought the data.

    Raises:
        UserError: `too_long` is "error" and a pair is; or no pair is left.
    """
    fitted = FittedPairs([])
    longer = []
    for pair, place in zip(pairs, places, strict=True):
        if pair.length > max_length:
            fitted.too_long += 1
            longer.append(f"{place} ({pair.length} tokens)")
            if too_long != "truncate":
                fitted.dropped += 1
                continue
            room = max(max_length - len(pair.prompt), 0)
            cut = Pair(pair.prompt, pair.chosen[:room], pair.rejected[:room])
            fitted.cut_tokens += pair.tokens - cut.tokens
            if cut.chosen == cut.rejected:  # they differ behind the cut, or the prompt leaves no room for an answer
                fitted.dropped += 1
                continue
            pair = cut
        fitted.samples.append(pair)
    if longer and too_long == "error":
        raise UserError(
            f"--too_long error: {len(longer)} of {len(pairs)} pairs are longer than {max_length} tokens: "
            f"{', '.join(longer[:5])}{' …' if len(longer) > 5 else ''}; raise --max_length, or drop or truncate them"
        )
    if not fitted.samples:
        raise UserError(
            f"{option}: none of {len(pairs)} pairs fits into {max_length} tokens with something to prefer; the shortest of them is "
            f"{min(pair.length for pair in pairs):,} tokens; raise --max_length, or take a model that looks back further"
        )
    return fitted


def encode_side(rows: list[Preference], tokenizer: Any, settings: Settings, option: str = "--data") -> FittedPairs:
    """One side as pairs that fit."""
    places = [row.place for row in rows]
    pairs = encode_pairs(tokenizer, rows)
    return fit_pairs(pairs, places, settings["max_length"].value, settings["too_long"].value, option)


# ---------------------------------------------------------------------------------------------- training


@dataclass
class Ranking:
    """How a model ranks the two answers of each pair.

    Attributes:
        policy: float32 [pairs, 2], the log-probability of the chosen and of the rejected answer: the plain sum over the answer's
            tokens and the one that ends it, as the loss and its reward take it. A longer answer is less likely.
        reference: the same by the model that the run started from.
        beta: scale of the reward, beta * (policy - reference).
    """

    policy: torch.Tensor
    reference: torch.Tensor
    beta: float

    @property
    def right(self) -> list[bool]:
        """For each pair, whether the model gives the chosen answer the higher probability."""
        return _first_is_more(self.policy)

    def metrics(self) -> dict[str, Any]:
        """Two accuracies that answer different questions, with counts and 95 % intervals.

        preference_accuracy asks which answer the model itself finds more likely; before training it is that of the reference.
        reward_accuracy asks whose probability has grown more since, which is undefined before training.
        """
        rewards = self.beta * (self.policy - self.reference)
        return {
            **share_of_right("preference_accuracy", self.right),
            **share_of_right("baseline_preference_accuracy", _first_is_more(self.reference)),
            **share_of_right("reward_accuracy", _first_is_more(rewards)),
            "reward_margin": float((rewards[:, 0] - rewards[:, 1]).mean()),
            "reward_margin_n": len(rewards),
        }


def _first_is_more(values: torch.Tensor) -> list[bool]:
    return (values[:, 0] > values[:, 1]).tolist()


class PreferenceTrainer(Careful, DPOTrainer):
    """DPOTrainer over encoded pairs.

    Two steps of TRL's preparation are replaced. It takes texts only, and encodes them in its own way, in which control tokens
    that somebody types are real; rows that are encoded already are passed on instead (`_prepare_dataset`). And it caches the
    reference's log-probabilities in a file that the processes of a run would not find, since rows in memory have no cache
    folder in common; here they become columns (`_precompute_ref_logps`).

    Args:
        model: the model that is trained, and the reference.
        train: the training side.
        validation: the held-out side; the evaluations on the way take the first `GLANCE_ROWS` of it.
        tokenizer: saved with every checkpoint.
        run: its settings are the arguments, and its journal is written.
    """

    def __init__(self, model: Any, train: FittedPairs, validation: FittedPairs, tokenizer: Any, run: Run):
        self.settings = run.settings
        # What is laid out below is all the epochs, so the Trainer makes one pass over it.
        arguments = dataclasses.replace(
            self.settings.build(PreferenceArguments), precompute_ref_log_probs=True, num_train_epochs=1.0
        )
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train.as_dataset(),
            eval_dataset=validation.as_dataset(),
            processing_class=tokenizer,
            peft_config=_lora() if self.settings["use_lora"].value else None,
        )
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        epochs = arguments.max_steps * batch / len(train.samples)
        order = training_order([pair.length for pair in train.samples], batch, epochs, arguments.seed)
        self.train_dataset = self.train_dataset.select(order)
        self.validation = self.eval_dataset
        self.eval_dataset = self.validation.select(range(min(len(self.validation), GLANCE_ROWS)))
        # A tied output layer is not in the file; with this, Trainer ties it again on resuming instead of warning.
        model._keys_to_ignore_on_save = list(getattr(model, "all_tied_weights_keys", None) or []) or None
        tokens_per_step = sum(train.samples[n].tokens for n in order) / arguments.max_steps
        held_out = ("preference_accuracy", "preference_accuracy", "preference accuracy")
        self.keep_journal(Journal(run, tokens_per_step, held_out=held_out))
        self.journal.further = tuple(_CURVES.values())

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # Called before training, when the model is the reference; a fresh adapter changes nothing yet.
        chosen, rejected = self.log_probs(dataset).T.tolist()
        return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = MuonAdamW(groups_of(self.model, self.settings))
        return self.optimizer

    @torch.no_grad()
    def log_probs(self, rows: Any) -> torch.Tensor:
        """The model's log-probabilities of both answers of each row, by all processes together.

        The model stays in evaluation mode, as after an evaluation of the Trainer, whose steps turn it back.

        Returns:
            float32 [rows, 2] on the CPU: chosen, rejected.
        """
        loader = DataLoader(rows, self.args.eval_batch_size, collate_fn=self.data_collator)
        self.model.eval()
        found = []
        for batch in self.accelerator.prepare_data_loader(loader):
            labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
            with self.accelerator.autocast():
                outputs = self.model(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    labels=labels,
                    use_cache=False,
                    fused_lm_head=True,
                )
            chosen, rejected = outputs.log_probs.float().sum(1).chunk(2)
            found.append(self.accelerator.gather_for_metrics(torch.stack([chosen, rejected], 1)).cpu())
        return torch.cat(found)

    def ranking(self, rows: Any) -> Ranking:
        """How the model ranks the pairs of a dataset that has the reference's log-probabilities."""
        reference = torch.tensor([list(rows["ref_chosen_logps"]), list(rows["ref_rejected_logps"])]).T
        return Ranking(self.log_probs(rows), reference, self.beta)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"):
        started = time.perf_counter()
        right = self.ranking(self.eval_dataset).right
        self.journal.pause += time.perf_counter() - started
        metrics = {f"{metric_key_prefix}_preference_accuracy": sum(right) / len(right)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        gathered = self._metrics["train" if self.model.training else "eval"]  # TRL adds their means to the logs
        for theirs, ours in _CURVES.items():
            if theirs in gathered:
                gathered[ours] = gathered[theirs]
        super().log(logs, start_time)

    def validation_loss(self) -> float:
        """The mean loss over all held-out pairs; nothing is logged."""
        loop = self.evaluation_loop(self.get_eval_dataloader(self.validation), "held out", prediction_loss_only=True)
        self._metrics["eval"].clear()
        return float(loop.metrics["eval_loss"])

    def merged(self) -> Any:
        """The model with its adapter added into the weights, after it was compared in float32; the adapter is used up.

        Raises:
            RuntimeError: the merged model gives other logits.
        """
        # accelerate has put a forward pass of the run's precision onto this object; without it the class's own one counts.
        self.model.__dict__.pop("forward", None)
        pairs = self.validation[:4]
        rows = [prompt + chosen for prompt, chosen in zip(pairs["prompt_ids"], pairs["chosen_ids"], strict=True)]
        width = min(map(len, rows))
        ids = torch.tensor([row[:width] for row in rows], device=self.args.device)
        return adapters.merge(self.model, ids)[0]


def _lora() -> Any:
    """What TRL makes the adapter of: beside every linear layer but the output, which its loss does not pass through."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear")


# ---------------------------------------------------------------------------------------------- what is said


def of_rows(rows: Rows[Preference], train: FittedPairs, validation: FittedPairs, template: str, state: Any) -> str:
    left_out = [
        f"{n:,} {what}"
        for n, what in ((rows.copies, "copies"), (rows.near_copies, "near copies of held-out rows"))
        if n
    ]
    lines = [
        f"data: {rows.name} ({rows.format})" + (f"; left out: {', '.join(left_out)}" if left_out else ""),
        f"  train {len(train.samples):,} pairs, {train.tokens:,} tokens",
        f"  held out {len(validation.samples):,} pairs",
        f"  chat template: {template}",
    ]
    lines += [
        f"  {name}: {side.too_long:,} pairs are too long; {side.dropped:,} are dropped, {side.cut_tokens:,} tokens of answers are cut off"
        for side, name in ((train, "train"), (validation, "held out"))
        if side.too_long
    ]
    lines.append(
        f"{state.num_processes} process{'es' if state.num_processes > 1 else ''} on {state.device.type}"
        + (f", {state.threads} threads each" if state.threads else "")
    )
    return "\n".join(lines)


def metrics_of(trainer: PreferenceTrainer, loss_before: float) -> dict[str, Any]:
    """The final figures, as metrics.json has them."""
    return trainer.ranking(trainer.validation).metrics() | finetuning_summary.metrics_of(trainer, loss_before, {})


def of_result(folder: Path, metrics: dict[str, Any]) -> str:
    def share(name: str) -> str:
        low, high = metrics[f"{name}_ci"]
        return f"{metrics[name]:.1%} ({low:.1%} to {high:.1%}, n = {metrics[f'{name}_n']:,})"

    return "\n".join(
        [
            f"preferred answer is the more likely one: {share('preference_accuracy')}, before {share('baseline_preference_accuracy')}",
            f"preferred answer has gained more: {share('reward_accuracy')}, reward margin {metrics['reward_margin']:.3f}",
            f"loss on held-out pairs {metrics['validation_loss']:.3f}, before {metrics['baseline_validation_loss']:.3f}",
            f"{metrics['trained_parameters'] / 1e6:.2f} M of {metrics['parameters'] / 1e6:.2f} M parameters trained, "
            f"{metrics['train_tokens'] / 1e6:.2f} M tokens in {metrics['train_seconds']:.0f} s "
            f"({metrics['tokens_per_second']:,.0f} tokens/s); {metrics['total_seconds']:.0f} s in all, {metrics['peak_memory_gb']:.1f} GB",
            f"wrote {folder} (report.html shows how it went); next: llmkit chat {folder}",
        ]
    )
