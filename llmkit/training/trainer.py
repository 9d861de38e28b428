"""transformers' Trainer for pretraining: packed samples, Muon, bits per byte."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from llmkit.data.packing import PackedSamples, TokenFile, whole_batch
from llmkit.evaluation.bits_per_byte import BitsPerByte, bits_per_byte
from llmkit.folder import Run
from llmkit.modeling.sizes import shape_of_config
from llmkit.options import Settings
from llmkit.training.callbacks import Journal
from llmkit.training.careful import Careful
from llmkit.training.optimizer import MuonAdamW, optimizer_groups

GLANCE_TOKENS = 65_536  # of held-out text at the evaluations on the way; the last one is over all of it

# Options of TrainingArguments that could change nothing here, and why; giving one is refused.
UNUSED = {
    "the optimizer is Muon with AdamW: see --optimizer": ("optim", "optim_args", "optim_target_modules"),
    "the model after the last step is the result": ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    "samples are laid out beforehand, see --seed": ("train_sampling_strategy", "dataloader_drop_last"),
    "the batch is planned: see --per_device_train_batch_size": ("auto_find_batch_size",),
    "layers are compiled by --torch_compile as it is": ("torch_compile_backend", "torch_compile_mode"),
    "evaluation is bits per byte of the held-out text": (
        "batch_eval_metrics", "eval_accumulation_steps", "include_for_metrics", "prediction_loss_only", "label_names",
    ),
    "the loss is that of the next token": ("label_smoothing_factor",),
    "the recipe trains and evaluates": ("do_train", "do_eval", "do_predict"),
    "the same command goes on by itself": ("resume_from_checkpoint", "ignore_data_skip"),
}  # fmt: skip


@dataclass
class PretrainArguments(TrainingArguments):
    """TrainingArguments with the defaults of a pretraining run; None is filled in by the plan and printed."""

    output_dir: str = "runs/gpt"
    bf16: bool | None = dataclasses.field(
        default=None, metadata={"help": "bfloat16; None: where it is measured faster."}
    )
    torch_compile: bool | None = dataclasses.field(
        default=None, metadata={"help": "Compile the layers; None: where the run is long enough to win it back."}
    )
    adam_beta2: float = 0.95  # forgets within a short run
    adam_epsilon: float = 1e-10  # gradients of a rare token's embedding are small
    eval_strategy: str = "steps"
    save_strategy: str = "steps"
    save_total_limit: int | None = 2
    # A run is one pass over the samples that the plan laid out, in their order.
    num_train_epochs: float = 1.0
    train_sampling_strategy: str = "sequential"
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = dataclasses.field(default_factory=torch.cuda.is_available)
    ddp_find_unused_parameters: bool | None = False
    logging_nan_inf_filter: bool = False
    disable_tqdm: bool | None = False

    def __post_init__(self):
        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            self.use_cpu = True
        self.bf16 = bool(self.bf16)
        # Layers are compiled in place by `compile_layers`; Trainer would compile and wrap the whole model.
        self.torch_compile = False
        # The finished folder is pushed; Trainer would push every checkpoint.
        self.push_to_hub = False
        super().__post_init__()


class PretrainTrainer(Careful, Trainer):
    """Trainer over packed samples.

    Args:
        model: on its device.
        train, validation: both sides as tokens.
        byte_lengths: bytes by token id.
        tokenizer: saved with every checkpoint.
        run: its settings are the arguments, and its journal is written.
        peak_flops: of the machine, in all.
        autocast: the dtype that evaluation computes in, None for float32; training follows from the settings.
    """

    def __init__(
        self,
        model: Any,
        train: TokenFile,
        validation: TokenFile,
        byte_lengths: np.ndarray,
        tokenizer: Any,
        run: Run,
        peak_flops: float,
        autocast: torch.dtype | None,
    ):
        self.settings = run.settings
        self.byte_lengths = byte_lengths
        self.autocast = autocast
        self.validation = validation
        self.context_length = self.settings["context_length"].value
        arguments = self.settings.build(PretrainArguments)
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        shape = shape_of_config(model.config, self.context_length)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=PackedSamples(train.ids, self.context_length, arguments.max_steps * batch, seed),
            eval_dataset=validation.ids,
            data_collator=whole_batch,
            processing_class=tokenizer,
        )
        # A tied output layer is not in the file; with this, Trainer ties it again on resuming instead of warning.
        model._keys_to_ignore_on_save = list(model.all_tied_weights_keys) or None
        self.keep_journal(Journal(run, batch * self.context_length, shape.flops_per_token, peak_flops))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = MuonAdamW(groups_of(self.model, self.settings))
        return self.optimizer

    def measure(self, ids: np.ndarray) -> BitsPerByte:
        """Bits per byte over a row of tokens; all processes share the work and return the same."""
        process = (self.accelerator.process_index, self.accelerator.num_processes)
        model = self.accelerator.unwrap_model(self.model)
        given = self.settings["per_device_eval_batch_size"]
        batch = max(8192 // self.context_length, 1) if given.source == "default" else given.value
        # Shapes of evaluation differ from those of training: compiling for them would cost more than it gains.
        with torch.compiler.set_stance("force_eager"):
            return bits_per_byte(
                model,
                ids,
                self.byte_lengths,
                self.context_length,
                batch,
                self.autocast,
                process,
                self.processing_class.eos_token_id,
            )

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"):
        started = time.perf_counter()
        result = self.measure(self.validation.ids[:GLANCE_TOKENS])
        self.journal.pause += time.perf_counter() - started
        metrics = {f"{metric_key_prefix}_bits_per_byte": result.value}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def is_cut(self) -> bool:
        """Whether each process holds only a part of the weights."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """The gathered weights of a model that is cut over processes, which all must call this; None for a whole one."""
        return self.accelerator.get_state_dict(self.model_wrapped) if self.is_cut else None


def groups_of(model: Any, settings: Settings) -> list[dict[str, Any]]:
    """The optimizer's groups for the chosen algorithm."""
    value = {name: setting.value for name, setting in settings.items()}
    adamw = {
        "lr": value["learning_rate"],
        "betas": (value["adam_beta1"], value["adam_beta2"]),
        "eps": value["adam_epsilon"],
    }
    hidden = {"algorithm": "muon", "lr": value["muon_learning_rate"]}
    if value["optimizer"] == "adamw":
        hidden = {"algorithm": "adamw", **adamw}
    return optimizer_groups(
        model,
        hidden={**hidden, "weight_decay": value["weight_decay"]},
        embeddings={"algorithm": "adamw", **adamw, "weight_decay": value["adamw_weight_decay"]},
        vectors={"algorithm": "adamw", **adamw, "weight_decay": 0.0},
    )


def measured_step(
    model: Any, batch: dict[str, torch.Tensor], settings: Settings, autocast: torch.dtype | None, steps: int = 8
) -> float:
    """Seconds of one training step on this machine; the model is left as it was.

    The median of some steps; the first two, which compile and allocate, are not counted.
    """
    device = next(model.parameters()).device
    batch = {name: rows.to(device) for name, rows in batch.items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = MuonAdamW(groups_of(model, settings))
    model.train()
    times = []
    for _ in range(steps + 2):
        started = time.perf_counter()
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    model.load_state_dict(weights)
    return float(np.median(times[2:]))
