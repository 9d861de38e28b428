"""TRL's SFTTrainer for conversations that are encoded, fitted and laid out beforehand."""

import dataclasses
import functools
import time
import types
from dataclasses import dataclass
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.utils import FusedCausalLMOutput

from llmkit.data.chat_samples import Fitted, as_dataset, training_order
from llmkit.folder import Run
from llmkit.options import Settings
from llmkit.training.callbacks import Journal
from llmkit.training.careful import Careful
from llmkit.training.optimizer import MuonAdamW
from llmkit.training.trainer import groups_of

GLANCE_ROWS = 256  # of the held-out rows at the evaluations on the way; the last one is over all of them

OPTIMIZER = {"the optimizer is chosen by --optimizer": ("optim", "optim_args", "optim_target_modules")}
_OF_TRAINER = {
    "the model after the last step is the result": ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    "samples are laid out beforehand, see --seed": ("train_sampling_strategy", "dataloader_drop_last", "data_seed"),
    "--per_device_train_batch_size says it": ("auto_find_batch_size",),
    "these models train uncompiled: every batch has another shape": ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "evaluation is the loss on held-out answers, and exact match at the end": (
        "batch_eval_metrics", "eval_accumulation_steps", "include_for_metrics", "prediction_loss_only", "label_names",
    ),
    "the recipe trains and evaluates": ("do_train", "do_eval", "do_predict"),
    "the same command goes on by itself": ("resume_from_checkpoint", "ignore_data_skip"),
    "held-out rows are looked at in several ways, with the weights as they are": (
        "dataloader_persistent_workers", "bf16_full_eval", "fp16_full_eval",
    ),
    "the recipe loads the model": ("model_init_kwargs", "trust_remote_code", "router_aux_loss_coef"),
}  # fmt: skip
# Options of SFTConfig that could change nothing here, and why; giving one is refused.
UNUSED = _OF_TRAINER | {
    "rows are read and encoded by the recipe": (
        "dataset_text_field", "dataset_kwargs", "dataset_num_proc", "eos_token", "pad_token", "shuffle_dataset",
    ),
    "the loss is on the assistant's answers": ("completion_only_loss", "assistant_only_loss", "label_smoothing_factor"),
    "--too_long says what happens to long rows": ("truncation_mode",),
    "--packing says it": ("padding_free", "eval_packing"),
    "it is no longer used by TRL": ("use_liger_kernel", "liger_kernel_config"),
}  # fmt: skip
SCORED_TOGETHER = 256  # tokens; the logits of a batch are computed for a multiple of this


@dataclass
class InstructArguments(SFTConfig):
    """SFTConfig with the defaults of this project; None is filled in by the plan and printed."""

    output_dir: str = "runs/chat"
    per_device_train_batch_size: int = 16
    num_train_epochs: float = dataclasses.field(
        default=3.0, metadata={"help": "Passes over the training rows; 1 over the bundled ones."}
    )
    bf16: bool | None = dataclasses.field(default=None, metadata={"help": "bfloat16; None: as the model was trained."})
    pad_to_multiple_of: int | None = 16  # few shapes: each new one costs time and memory on a CPU
    max_length: int | None = dataclasses.field(
        default=None,
        metadata={"help": "Tokens of the longest conversation; None: all that the model can look back over."},
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


@dataclass
class LoraArguments(InstructArguments):
    """The same for an adapter."""

    output_dir: str = "runs/lora"
    adam_beta2: float = 0.999


def lay_out(train: Fitted, settings: Settings) -> Any:
    """The training samples as a dataset: conversations one by one, or packed several into a row as `--packing` says.

    "bfd" (best fit, decreasing) keeps whole conversations, and none of them sees another; "wrapped" cuts a stream of them.
    """
    samples = as_dataset(train.samples)
    if settings["packing"].value:
        samples = samples.shuffle(seed=settings["seed"].value)
        samples = pack_dataset(samples, settings["max_length"].value, settings["packing_strategy"].value)
    return samples


def score_answers_only(model: Any) -> None:
    """On a CPU, compute logits for trained tokens alone.

    TRL's own way, which this replaces, scores every token of a batch there, prompts and padding too, and every one twice over
    to save memory: a third of a step of a small model. On a GPU its kernel stays.

    Args:
        model: a causal language model that TRL has prepared; its forward pass gets another `fused_lm_head=True`.
    """
    scaled = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    if any(getattr(model.config.get_text_config(), name, None) is not None for name in scaled):
        return  # TRL's head knows how such a model bends its logits
    forward = model.forward

    @functools.wraps(type(model).forward)  # generating looks at what a forward pass takes
    def answers_only(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head or kwargs.get("shift_labels") is not None or kwargs.get("output_router_logits"):
            return forward(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        mask = targets != -100
        places = mask.flatten().nonzero()[:, 0]
        # Few shapes: every new number of rows would have the matrix library make new code, which takes longer than the product.
        filled = torch.nn.functional.pad(places, (0, -len(places) % SCORED_TOGETHER))
        logits = self.get_output_embeddings()(hidden.flatten(0, 1)[filled])[: len(places)]
        log_probs = logits.float().log_softmax(-1)
        right = targets.flatten()[places]
        of_right = log_probs.gather(-1, right[:, None])[:, 0]
        with torch.no_grad():
            mean_logits = logits.float().mean(-1)
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            is_top1 = log_probs.argmax(-1) == right

        def at_their_places(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        return FusedCausalLMOutput(
            loss=-of_right.sum() / mask.sum().clamp(min=1),
            log_probs=at_their_places(of_right),
            entropy=at_their_places(entropy),
            mean_logits=at_their_places(mean_logits),
            is_top1=at_their_places(is_top1),
            label_mask=mask,
        )

    model.forward = types.MethodType(answers_only, model)


class InstructTrainer(Careful, SFTTrainer):
    """SFTTrainer over encoded conversations.

    Args:
        model: on its device; of a PEFT model the adapter is trained.
        samples: from `lay_out`.
        validation: the held-out side; the evaluations on the way take the first `GLANCE_ROWS` of it.
        tokenizer: saved with every checkpoint.
        run: its settings are the arguments, and its journal is written.
        arguments_of: the recipe's dataclass, whose defaults complete the settings.
    """

    def __init__(
        self,
        model: Any,
        samples: Any,
        validation: Fitted,
        tokenizer: Any,
        run: Run,
        arguments_of: type = InstructArguments,
    ):
        self.settings = run.settings
        # What is laid out below is all the epochs, so the Trainer makes one pass over it.
        arguments = dataclasses.replace(
            self.settings.build(arguments_of), dataset_kwargs={"skip_prepare_dataset": True}, num_train_epochs=1.0
        )
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        lengths = [len(ids) for ids in samples["input_ids"]]
        order = training_order(lengths, batch, arguments.max_steps * batch / len(lengths), arguments.seed)
        self.validation = as_dataset(validation.samples)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=samples.select(order),
            eval_dataset=self.validation.select(range(min(len(self.validation), GLANCE_ROWS))),
            processing_class=tokenizer,
        )
        for parameter in self.model.parameters():
            if parameter.requires_grad:  # TRL halves the adapter of a quantized base, whose small steps would be lost
                parameter.data = parameter.data.float()
        if self.args.device.type == "cpu":
            score_answers_only(self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model)
        # A tied output layer is not in the file; with this, Trainer ties it again on resuming instead of warning.
        model._keys_to_ignore_on_save = list(getattr(model, "all_tied_weights_keys", None) or []) or None
        tokens_per_step = sum(lengths[n] for n in order) / arguments.max_steps
        self.keep_journal(Journal(run, tokens_per_step, held_out=("loss", "validation_loss", "loss on the answers")))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None and "optimizer" in self.settings:
            self.optimizer = MuonAdamW(groups_of(self.model, self.settings))
        return super().create_optimizer(model)  # of an adapter: the one that --optim names

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"):
        started = time.perf_counter()
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self.journal.pause += time.perf_counter() - started
        return metrics

    def validation_loss(self) -> float:
        """The mean loss of a trained token over all of the held-out side; nothing is logged.

        Trainer's own figure is the mean of the batches' means, in which a token of a batch with few of them weighs more.
        """
        model = self.model
        was_training = model.training
        model.eval()
        losses, tokens = 0.0, 0
        try:
            for inputs in self.get_eval_dataloader(self.validation):
                with torch.no_grad(), self.accelerator.autocast():
                    outputs = model(**self._prepare_inputs(inputs), use_cache=False, fused_lm_head=True)
                rows = (outputs.log_probs.float().sum(-1), outputs.label_mask.sum(-1))
                log_probs, counts = self.accelerator.gather_for_metrics(rows)
                losses, tokens = losses - float(log_probs.sum()), tokens + int(counts.sum())
        finally:
            model.train(was_training)
        return losses / tokens
