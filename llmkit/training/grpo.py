"""Learning from rewards: TRL's GRPOTrainer over questions, the numbers of its run, and what a model's answers earn.

GRPO samples several answers to a question and moves the model from those that earn less towards those that earn more (Shao et
al., "DeepSeekMath", 2024). It learns nothing from a question whose answers all earn the same. A model that never earns
anything, or always everything, has no headroom, and a run on it only adds noise to the weights: that is measured before the
first step, and refused.
"""

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from llmkit.data.bundled import arithmetic
from llmkit.data.chat_samples import training_order
from llmkit.data.conversations import Question, RowOptions, Rows, open_rows, question_from
from llmkit.errors import UserError
from llmkit.evaluation.chat import BATCH_TOKENS, generate_answers
from llmkit.folder import Run
from llmkit.options import Settings, option
from llmkit.tokenization.chat import end_tokens, prompt_ids
from llmkit.training import finetuning, plan
from llmkit.training.budget import seconds_since_start
from llmkit.training.callbacks import Journal
from llmkit.training.careful import Careful
from llmkit.training.checks import problems_of_training
from llmkit.training.instruct import score_answers_only
from llmkit.training.measure import peak_memory_gb
from llmkit.training.optimizer import MuonAdamW
from llmkit.training.rewards import Reward, rewards_of
from llmkit.training.trainer import groups_of

# Of the learning rates that supervised fine-tuning would take of the same model.
SHARE_OF_FINETUNING = 0.1
# AdamW moves hidden matrices with 0.3 of the rate that it takes for embeddings beside Muon (see plan.plan_learning).
SHARE_FOR_ALL_BY_ADAMW = 0.3
LEARNING_RATE = 1e-6  # of a model from elsewhere: TRL's
WEIGHT_DECAY = 0.0
BETA = 0.01
ANSWERS_A_STEP = 64
BUNDLED_QUESTIONS = 800

LEAST_REWARD = 0.05  # mean over sampled answers, below which there is too little to move towards
LEAST_MIXED = 0.1  # share of questions whose sampled answers do not all earn the same
SAMPLES = 4  # answers to each held-out question, before and after
MOST_ASKED = 300  # held-out questions before and after
GLANCE_ROWS = 128  # of them at the evaluations on the way
SPARE_TOKENS = 4  # that an answer may be longer than half as long again as the longest right one
UNKNOWN_LENGTH = 256  # tokens of an answer, where no row has one

SHOWN = (
    "model", "reward", "max_length", "max_completion_length", "num_generations", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_steps", "warmup_steps", "lr_scheduler_type", "optimizer", "muon_learning_rate",
    "learning_rate", "weight_decay", "beta", "bf16",
)  # fmt: skip

# Options of GRPOConfig that could change nothing here, or that this recipe cannot keep its word with; giving one is refused.
UNUSED = {
    "the optimizer is chosen by --optimizer": ("optim", "optim_args", "optim_target_modules"),
    "the model after the last step is the result": ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    "questions are laid out beforehand, see --seed": (
        "shuffle_dataset", "train_sampling_strategy", "dataloader_drop_last", "data_seed", "remove_unused_columns",
    ),
    "answers are sampled anew for every step: see --per_device_train_batch_size": (
        "generation_batch_size", "steps_per_generation", "num_iterations",
    ),
    "these models train uncompiled: every batch has another shape": ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "evaluation is the reward of held-out answers": (
        "num_generations_eval", "per_device_eval_batch_size", "batch_eval_metrics", "eval_accumulation_steps", "include_for_metrics",
        "prediction_loss_only", "label_names",
    ),
    "there is one reward": ("reward_weights", "multi_objective_aggregation"),
    "prompts go to TRL as token ids": (
        "chat_template_kwargs", "max_tool_calling_iterations", "log_completions", "log_completions_hub_repo", "log_multimodal",
        "log_unique_prompts", "num_completions_to_print",
    ),
    "the loss is GRPO's": ("label_smoothing_factor",),
    "the recipe trains and evaluates": ("do_train", "do_eval", "do_predict"),
    "the same command goes on by itself": ("resume_from_checkpoint", "ignore_data_skip"),
    "the recipe loads the model": ("model_init_kwargs", "trust_remote_code", "router_aux_loss_coef"),
    "it is no longer used by TRL": (
        "use_liger_kernel", "liger_kernel_config", "use_transformers_paged", "vllm_importance_sampling_cap",
    ),
}  # fmt: skip


@dataclass
class GrpoOptions(RowOptions):
    """Options of learning from rewards."""

    model: str = option("runs/chat", "Model folder or Hub id to go on from.")
    reward: str = option("correct_number", "correct_number, exact_match, or FILE.py:FUNCTION.")
    arithmetic_rows: int = option(BUNDLED_QUESTIONS, "Questions of the bundled arithmetic, where --data is not given.")
    max_length: int | None = option(
        None, "Tokens of the longest question with its answer; None: all that the model can look back over."
    )
    chat_template_path: str | None = option(None, "Jinja file of a chat template; None: the tokenizer's own.")
    optimizer: Literal["adamw", "muon"] = option("adamw", "For hidden matrices; the rest is AdamW's.")
    muon_learning_rate: float | None = option(None, "Of hidden matrices; --learning_rate is AdamW's.")
    adamw_weight_decay: float = option(0.0, "Of embeddings; --weight_decay is the hidden matrices'.")
    decay_share: float = option(0.5, "Share of the steps over which the learning rate falls to 0.")
    skip_headroom_check: bool = option(False, "Train also where sampled rewards leave nothing to learn from.")
    overwrite: bool = option(False, "Delete a run of other options in output_dir.")


@dataclass
class GrpoArguments(GRPOConfig):
    """GRPOConfig with the defaults of this project; None is filled in by the plan and printed."""

    output_dir: str = "runs/grpo"
    per_device_train_batch_size: int = dataclasses.field(
        default=ANSWERS_A_STEP,
        metadata={"help": "Answers of a process; with their questions' others, --num_generations."},
    )
    num_train_epochs: float = dataclasses.field(default=1.0, metadata={"help": "Passes over the training questions."})
    max_completion_length: int | None = dataclasses.field(
        default=None, metadata={"help": "Tokens of an answer before it is cut; None: by the longest right one."}
    )
    beta: float = dataclasses.field(
        default=BETA, metadata={"help": "Weight of the KL divergence from the model at the start; 0 leaves it out."}
    )
    bf16: bool | None = dataclasses.field(default=None, metadata={"help": "bfloat16; None: as the model was trained."})
    pad_to_multiple_of: int | None = 8  # few shapes: each new one costs time and memory on a CPU
    activation_checkpointing: bool | None = False
    adam_beta2: float = 0.99
    eval_strategy: str = "steps"
    num_generations_eval: int | None = 1  # of no use, but TRL wants the evaluation batch to be a multiple of it
    save_strategy: str = "steps"
    save_total_limit: int | None = 2
    shuffle_dataset: bool | None = False
    dataloader_pin_memory: bool = dataclasses.field(default_factory=torch.cuda.is_available)
    ddp_find_unused_parameters: bool | None = False
    logging_nan_inf_filter: bool = False
    disable_tqdm: bool | None = False

    def __post_init__(self):
        # TRL says this in words of its own, which name no option.
        processes = int(os.environ.get("WORLD_SIZE", 1))
        answers = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes
        if self.num_generations < 2:
            raise ValueError(
                f"--num_generations {self.num_generations}: must be 2 or more, since answers are compared with each other"
            )
        if answers < 1 or answers % self.num_generations:
            raise ValueError(
                f"--per_device_train_batch_size {self.per_device_train_batch_size}: with --gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps} and {processes} process{'es' if processes > 1 else ''} a step has {answers} answers, "
                f"which must be a multiple of --num_generations {self.num_generations}"
            )
        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            self.use_cpu = True
        self.bf16 = bool(self.bf16)
        self.push_to_hub = False  # the finished folder is pushed; Trainer would push every checkpoint
        super().__post_init__()


# ---------------------------------------------------------------------------------------------- questions


@dataclass
class Asked:
    """Questions of one side that fit into the context, and the ids that ask them.

    Attributes:
        questions: with their columns.
        ids: of each question, up to where the answer begins.
        too_long: rows left out, since no answer would fit behind them.
    """

    questions: list[Question]
    ids: list[list[int]]
    too_long: int = 0

    def some(self, most: int) -> "Asked":
        """Not more than so many, spread evenly over all."""
        chosen = np.unique(np.linspace(0, len(self.ids) - 1, min(most, len(self.ids))).round().astype(int))
        return Asked([self.questions[n] for n in chosen], [self.ids[n] for n in chosen])


def problems_of(options: GrpoOptions, settings: Settings) -> list[str]:
    """What is wrong with the recipe's options by themselves."""
    problems = problems_of_training(settings, UNUSED)
    if options.data is None and (options.validation_data or settings.given("validation_fraction")):
        problems.append(
            "--validation_data and --validation_fraction: the bundled data has its own test; give --data, or leave them out"
        )
    if options.data is not None and settings.given("arithmetic_rows"):
        problems.append(
            f"--arithmetic_rows {options.arithmetic_rows}: is of the bundled data, and --data is given; leave one of the two out"
        )
    for name, least in (("arithmetic_rows", 1), ("max_length", 2), ("max_completion_length", 1), ("beta", 0)):
        value = settings[name].value
        if value is not None and value < least:
            problems.append(f"--{name} {value}: must be {least} or more")
    if not settings["temperature"].value > 0:
        problems.append(
            f"--temperature {settings['temperature'].value}: must be above 0, since equal answers teach nothing"
        )
    if not 0 <= options.decay_share <= 1:
        problems.append(f"--decay_share {options.decay_share}: must be between 0 and 1")
    return problems


def open_questions(options: GrpoOptions) -> Rows[Question]:
    """The questions that the options name.

    Raises:
        UserError: what is wrong with a file of one's own.
    """
    if options.data is not None:
        return open_rows(options, question_from)

    def questions(rows: list[dict[str, Any]], side: str) -> list[Question]:
        return [question_from(row, f"arithmetic, {side} row {number}") for number, row in enumerate(rows)]

    return Rows(
        name="bundled",
        format=f"arithmetic, made with seed {options.split_seed}",
        fingerprint=f"{arithmetic.fingerprint()}-{options.arithmetic_rows}-{options.split_seed}",
        train=questions(arithmetic.training_rows(options.arithmetic_rows, options.split_seed), "train"),
        validation=questions(arithmetic.test_rows(), "test"),
    )


def ask(questions: Sequence[Question], tokenizer: Any, settings: Settings, option: str = "--data") -> Asked:
    """The questions of a side as ids; those that leave no room for an answer are counted and left out.

    Raises:
        UserError: no question is left.
    """
    room = settings["max_length"].value - settings["max_completion_length"].value
    ids = [prompt_ids(tokenizer, question.prompt) for question in questions]
    fitting = [number for number, prompt in enumerate(ids) if len(prompt) <= room]
    if not fitting:
        raise UserError(
            f"{option}: none of {len(ids)} questions leaves room for an answer of --max_completion_length "
            f"{settings['max_completion_length'].value} tokens in --max_length {settings['max_length'].value}; the shortest is "
            f"{min(map(len, ids)):,} tokens; shorten them or the answers, or take a model that looks back further"
        )
    return Asked([questions[n] for n in fitting], [ids[n] for n in fitting], len(ids) - len(fitting))


# ---------------------------------------------------------------------------------------------- the plan


def inherit(
    settings: Settings, model: Any, name: str, parent: dict[str, Any], device: torch.device
) -> torch.dtype | None:
    """Take over from the model what was not given, as for supervised fine-tuning, with learning rates that are much smaller.

    Returns:
        The dtype to compute in; None for float32.

    Raises:
        UserError: `--max_length` is more than the model can look back over.
    """
    options = parent.get("options", {})
    by_adamw = settings["optimizer"].value == "adamw"
    if "muon_learning_rate" in options:
        share = finetuning.SHARE_OF_PRETRAINING * SHARE_OF_FINETUNING
        for rate in ("learning_rate", "muon_learning_rate"):
            value, own = options[rate]["value"], share
            if by_adamw and rate == "learning_rate" and options["optimizer"]["value"] == "muon":
                own = share * SHARE_FOR_ALL_BY_ADAMW
            settings.derive(rate, float(f"{value * own:.3g}"), f"{own:.3g} of the {value:g} of {name}")
    else:
        settings.derive("learning_rate", LEARNING_RATE, "usual for learning from rewards with a large model")
        settings.derive("muon_learning_rate", LEARNING_RATE, f"{name} was not trained with llmkit's Muon")
    return finetuning.inherit(settings, model.config, name, parent, device)


def plan_answers(settings: Settings, rows: Rows[Question], tokenizer: Any) -> None:
    """How long an answer may become before it is cut."""
    right = [str(q.columns["answer"]) for q in (*rows.train, *rows.validation) if q.columns.get("answer") is not None]
    if not right:
        most = min(UNKNOWN_LENGTH, settings["max_length"].value // 2)
        settings.derive("max_completion_length", most, "the rows have no column answer to go by")
        return
    longest = max(len(ids) for ids in tokenizer(right, add_special_tokens=False)["input_ids"])
    settings.derive(
        "max_completion_length",
        longest + longest // 2 + SPARE_TOKENS,
        f"half as long again as the longest right answer of {longest} tokens, and {SPARE_TOKENS}",
    )


def plan_steps(settings: Settings, questions: int, processes: int) -> None:
    """Steps, schedule and pace of a run over so many questions."""
    answers = settings["per_device_train_batch_size"].value * settings["gradient_accumulation_steps"].value * processes
    prompts = answers // settings["num_generations"].value
    epochs = settings["num_train_epochs"].value
    settings.derive(
        "max_steps",
        max(round(epochs * questions / prompts), 1),
        f"{epochs:g} passes over {questions:,} questions, {prompts} a step",
    )
    reason = (
        "the KL divergence holds the weights" if settings["beta"].value else "the weights start where they are good"
    )
    settings.derive("weight_decay", WEIGHT_DECAY, reason)
    plan.plan_schedule(settings)
    plan.plan_pace(settings, None)


# ---------------------------------------------------------------------------------------------- what answers earn


def earned(
    model: Any,
    tokenizer: Any,
    asked: Asked,
    reward: Reward,
    settings: Settings,
    autocast: torch.dtype | None,
) -> dict[str, Any]:
    """What a model's answers to held-out questions earn: sampled at the run's temperature, and greedy.

    Returns:
        "reward" and "greedy_reward", each with its count of questions ("_n") and 95 % interval ("_ci"); "completion_length", the
        mean tokens of a sampled answer; "mixed_share" of questions whose sampled answers do not all earn the same;
        "lowest_reward" and "highest_reward" of a sampled answer.
    """
    asked = asked.some(MOST_ASKED)
    most, temperature = settings["max_completion_length"].value, settings["temperature"].value
    device = next(model.parameters()).device
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        sampled = sampled_answers(model, tokenizer, asked.ids, SAMPLES, temperature, most, settings["seed"].value)
        greedy = greedy_rewards(model, tokenizer, asked, reward, most)
    questions = [question for question in asked.questions for _ in range(SAMPLES)]
    answers = [ids for of_one in sampled for ids in of_one]
    rewards = np.array(rewards_of(reward, questions, _texts(tokenizer, answers))).reshape(-1, SAMPLES)
    return {
        # Answers to one question are not independent: the interval is over the questions' means.
        **_mean("reward", rewards.mean(axis=1)),
        **_mean("greedy_reward", greedy),
        "completion_length": float(np.mean([len(ids) for ids in answers])),
        "mixed_share": float((rewards.min(axis=1) != rewards.max(axis=1)).mean()),
        "lowest_reward": float(rewards.min()),
        "highest_reward": float(rewards.max()),
    }


def _mean(name: str, values: np.ndarray) -> dict[str, Any]:
    """The mean of independent values with its 95 % interval, by the normal approximation, and their count."""
    mean = float(values.mean())
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {name: mean, f"{name}_ci": [mean - half, mean + half], f"{name}_n": len(values)}


def require_headroom(before: dict[str, Any], options: GrpoOptions) -> None:
    """Refuse a model that learning from this reward could not help.

    Args:
        before: from `earned`.

    Raises:
        UserError: the sampled answers hardly ever earn anything, or those to one question nearly always the same.
    """
    if options.skip_headroom_check:
        return
    is_share = before["lowest_reward"] >= 0 and before["highest_reward"] <= 1  # of another scale 5 % says nothing
    never = is_share and before["reward"] < LEAST_REWARD
    if not never and before["mixed_share"] >= LEAST_MIXED:
        return
    advice = "take questions that it gets right now and then, and wrong now and then"
    if never:
        advice = "teach it the task first (finetune_instruct.py), or take easier questions"
    elif is_share and before["reward"] > 0.5:
        advice = "it is good at these already: take harder questions"
    raise UserError(
        f"--model {options.model}: there is no headroom for --reward {options.reward}: {SAMPLES} sampled answers to each of "
        f"{before['reward_n']} held-out questions earn {before['reward']:.3f} in the mean (greedy ones {before['greedy_reward']:.3f}), "
        f"and to {before['mixed_share']:.1%} of the questions they earn different rewards; at least "
        + (f"{LEAST_REWARD:g} and " if is_share else "")
        + f"{LEAST_MIXED:.0%} are needed. Only the difference between answers to one question teaches; without it training "
        f"would not help, and can make the model worse. What to do: {advice}; --skip_headroom_check trains all the same"
    )


def greedy_rewards(model: Any, tokenizer: Any, asked: Asked, reward: Reward, max_new_tokens: int) -> np.ndarray:
    """The reward of the likeliest answer to each question."""
    answers: list[list[int]] = [[]] * len(asked.ids)
    for batch in _batches(asked.ids, max_new_tokens):
        made = generate_answers(model, tokenizer, [asked.ids[n] for n in batch], max_new_tokens)
        for number, ids in zip(batch, made, strict=True):
            answers[number] = ids
    return np.array(rewards_of(reward, asked.questions, _texts(tokenizer, answers)))


@torch.no_grad()
def sampled_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[list[list[int]]]:
    """Ids of sampled answers, without the token that ends them: `samples` to each prompt.

    The random state of the caller is left as it was, so that a run that goes on without asking again is the same run.
    """
    device = next(model.parameters()).device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends = end_tokens(tokenizer)
    answers: list[list[list[int]]] = [[]] * len(prompts)
    was_training, used_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for batch in _batches(prompts, max_new_tokens, samples):
                widest = max(len(prompts[n]) for n in batch)
                rows = [[pad] * (widest - len(prompts[n])) + prompts[n] for n in batch]
                mask = [[0] * (widest - len(prompts[n])) + [1] * len(prompts[n]) for n in batch]
                made = model.generate(
                    torch.tensor(rows, device=device),
                    attention_mask=torch.tensor(mask, device=device),
                    do_sample=True,
                    temperature=temperature,
                    top_k=0,
                    top_p=1.0,
                    num_return_sequences=samples,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=ends,
                    pad_token_id=pad,
                    use_cache=True,
                )[:, widest:].tolist()
                for place, number in enumerate(batch):
                    answers[number] = [_until(row, ends) for row in made[place * samples : (place + 1) * samples]]
    finally:
        model.train(was_training)
        model.config.use_cache = used_cache
    return answers


def _until(ids: list[int], ends: list[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def _texts(tokenizer: Any, answers: Sequence[list[int]]) -> list[str]:
    """Answers as the reward sees them."""
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]


def _batches(prompts: Sequence[list[int]], room: int, samples: int = 1) -> Iterator[list[int]]:
    """Numbers of prompts of about one length that are answered together."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    while order:
        take = 1
        while take < len(order) and (len(prompts[order[take]]) + room) * samples * (take + 1) <= BATCH_TOKENS:
            take += 1
        yield order[:take]
        order = order[take:]


# ---------------------------------------------------------------------------------------------- the trainer


class GrpoTrainer(Careful, GRPOTrainer):
    """GRPOTrainer over questions that are laid out and encoded beforehand.

    TRL renders and encodes prompts itself, and would take control tokens that stand in a question for real ones. Here the
    column "prompt" holds the ids that training, evaluation and chat share, and they go to the model as they are. The column
    "row" leads a reward to all the other columns, of whatever type.

    Every step samples anew, and the questions of the whole run are laid out, so that a run that goes on from a checkpoint, which
    holds the random state, is the same as one that was never stopped.

    Args:
        model: on its device.
        train, validation: from `ask`.
        reward: a checked one.
        tokenizer: saved with every checkpoint.
        run: its settings are the arguments, and its journal is written.
        completion_length: mean tokens of an answer before training, for the speed that is shown.
    """

    def __init__(
        self,
        model: Any,
        train: Asked,
        validation: Asked,
        reward: Reward,
        tokenizer: Any,
        run: Run,
        completion_length: float,
    ):
        self.settings = run.settings
        self.reward = reward
        self.questions = train.questions
        self.validation = validation.some(GLANCE_ROWS)
        arguments = self.settings.build(GrpoArguments)
        answers = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        prompts = answers // arguments.num_generations
        lengths = [len(ids) for ids in train.ids]
        order = training_order(lengths, prompts, arguments.max_steps * prompts / len(lengths), arguments.seed)
        super().__init__(
            model=model,
            reward_funcs=self.score,
            args=arguments,
            train_dataset=_dataset(train).select(order),
            eval_dataset=_dataset(self.validation),
            processing_class=tokenizer,
        )
        # Without another temperature or a bonus for entropy, which need TRL's own way to score answers.
        if self.args.device.type == "cpu" and arguments.temperature == 1 and not self._entropy_bonus_enabled:
            score_answers_only(self.model)
            if self.ref_model is not None:
                score_answers_only(self.ref_model)
        # A tied output layer is not in the file; with this, Trainer ties it again on resuming instead of warning.
        model._keys_to_ignore_on_save = list(getattr(model, "all_tied_weights_keys", None) or []) or None
        prompt_length = sum(lengths[n] for n in order) / len(order)
        held_out = ("greedy_reward", "greedy_reward", "mean greedy reward")
        self.keep_journal(Journal(run, answers * (prompt_length + completion_length), held_out=held_out))
        self.journal.further = ("reward", "reward_std", "kl", "completion_length", "entropy")

    def score(self, completions: list[str], row: list[int], **unused: Any) -> list[float]:
        """TRL's call of the reward, with the columns of the rows."""
        return rewards_of(self.reward, [self.questions[n] for n in row], [text.strip() for text in completions])

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = MuonAdamW(groups_of(self.model, self.settings))
        return self.optimizer

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Not TRL's, at every checkpoint: the folder's card is written at the end, from its figures."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and "completions/mean_length" in self._metrics["train"]:
            self._metrics["train"]["completion_length"] = list(self._metrics["train"]["completions/mean_length"])
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"):
        started = time.perf_counter()
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            rewards = greedy_rewards(
                model, self.processing_class, self.validation, self.reward, self.max_completion_length
            )
        self.journal.pause += time.perf_counter() - started
        metrics = {f"{metric_key_prefix}_greedy_reward": float(rewards.mean())}
        was_training = self.model.training
        self.model.eval()  # else TRL's log takes the figures of training for those of this line, and forgets them
        self.log(dict(metrics))
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _dataset(asked: Asked) -> Dataset:
    return Dataset.from_dict({"prompt": asked.ids, "row": list(range(len(asked.ids)))})


# ---------------------------------------------------------------------------------------------- what is said


def of_rows(rows: Rows[Question], train: Asked, validation: Asked, template: str, state: Any) -> str:
    dropped = [
        f"{n:,} {what}"
        for n, what in (
            (rows.copies, "copies"),
            (rows.near_copies, "near copies of held-out rows"),
            (train.too_long + validation.too_long, "too long"),
        )
        if n
    ]
    return "\n".join(
        [
            f"data: {rows.name} ({rows.format})" + (f"; left out: {', '.join(dropped)}" if dropped else ""),
            f"  train {len(train.ids):,} questions, held out {len(validation.ids):,}",
            f"  chat template: {template}",
            f"{state.num_processes} process{'es' if state.num_processes > 1 else ''} on {state.device.type}"
            + (f", {state.threads} threads each" if state.threads else ""),
        ]
    )


def of_headroom(before: dict[str, Any]) -> str:
    return (
        f"before training: sampled answers to held-out questions earn {before['reward']:.3f}, greedy ones "
        f"{before['greedy_reward']:.3f} (n = {before['reward_n']:,}); answers to {before['mixed_share']:.0%} of the questions differ in "
        "their reward"
    )


def metrics_of(trainer: GrpoTrainer, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The final figures, as metrics.json has them.

    Args:
        before, after: from `earned`, of the model at the start and at the end.
    """
    journal, tokens = trainer.journal, trainer.state.num_input_tokens_seen
    named = ("reward", "reward_ci", "reward_n")
    metrics = {name: after[name] for name in named} | {"baseline_reward": before["reward"]}
    metrics |= {f"greedy_{name}": after[f"greedy_{name}"] for name in named}
    metrics |= {"baseline_greedy_reward": before["greedy_reward"], "completion_length": after["completion_length"]}
    divergences = [logged["kl"] for logged in trainer.state.log_history if "kl" in logged]
    if divergences:
        metrics["kl"] = divergences[-1]
    return metrics | {
        "parameters": trainer.model.num_parameters(),
        "train_seconds": journal.ended,
        "train_tokens": int(tokens),
        "tokens_per_second": tokens / max(journal.ended, 1e-9),
        "peak_memory_gb": peak_memory_gb(),
        "start_seconds": journal.start_seconds,
        "total_seconds": seconds_since_start(),
    }


def of_result(folder: Path, metrics: dict[str, Any]) -> str:
    lines = [f"mean reward of held-out answers (n = {metrics['reward_n']:,} questions):"]
    for name, what in (("reward", "sampled"), ("greedy_reward", "greedy")):
        low, high = metrics[f"{name}_ci"]
        lines.append(
            f"  {what:<8} {metrics[name]:.3f}  ({low:.3f} to {high:.3f}), before {metrics[f'baseline_{name}']:.3f}"
        )
    divergence = f", KL from the model at the start {metrics['kl']:.3f} a token" if "kl" in metrics else ""
    lines.append(f"  answers of {metrics['completion_length']:.1f} tokens{divergence}")
    if metrics["greedy_reward"] < metrics["baseline_greedy_reward"]:
        lines.append(
            "  GREEDY ANSWERS GOT WORSE: fewer steps, a smaller --learning_rate or a larger --beta hold the model closer"
        )
    lines.append(
        f"{metrics['parameters'] / 1e6:.2f} M parameters, {metrics['train_tokens'] / 1e6:.2f} M tokens in "
        f"{metrics['train_seconds']:.0f} s ({metrics['tokens_per_second']:,.0f} tokens/s); {metrics['total_seconds']:.0f} s in all, "
        f"{metrics['peak_memory_gb']:.1f} GB"
    )
    lines.append(f"wrote {folder} (report.html shows how it went); next: llmkit chat {folder}")
    return "\n".join(lines)
