"""transformers' Trainer for pretraining: Muon, bits per byte, and no step on a loss that is not a number."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from llmkit.data.packing import PackedSamples, TokenFile, whole_batch
from llmkit.errors import StoppedEarly
from llmkit.evaluation.bits_per_byte import BitsPerByte, bits_per_byte
from llmkit.folder import Run
from llmkit.modeling.sizes import shape_of_config
from llmkit.options import Settings
from llmkit.training.callbacks import Journal
from llmkit.training.optimizer import MuonAdamW, optimizer_groups

GLANCE_TOKENS = 65_536  # of held-out text at the evaluations on the way; the last one is over all of it


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
        super().__post_init__()


class PretrainTrainer(Trainer):
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
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        shape = shape_of_config(model.config, self.context_length)
        self.journal = Journal(run, batch * self.context_length, shape.flops_per_token, peak_flops)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=PackedSamples(train.ids, self.context_length, arguments.max_steps * batch, arguments.seed),
            eval_dataset=validation.ids,
            data_collator=whole_batch,
            processing_class=tokenizer,
            callbacks=[self.journal],
        )
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = MuonAdamW(groups_of(self.model, self.settings))
        return self.optimizer

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        # On a GPU looking at the loss would wait for it; there it is looked at when it is logged.
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            raise not_a_number(self.state.global_step + 1, self.args.output_dir)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not np.isfinite(logs.get("loss", 0.0)):
            raise not_a_number(self.state.global_step, self.args.output_dir)
        super().log(logs, start_time)

    def measure(self, ids: np.ndarray) -> BitsPerByte:
        """Bits per byte over a row of tokens; all processes share the work and return the same."""
        process = (self.accelerator.process_index, self.accelerator.num_processes)
        model = self.accelerator.unwrap_model(self.model)
        batch = max(8192 // self.context_length, 1)
        # Shapes of evaluation differ from those of training: compiling for them would cost more than it gains.
        with torch.compiler.set_stance("force_eager"):
            return bits_per_byte(model, ids, self.byte_lengths, self.context_length, batch, self.autocast, process)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"):
        started = time.perf_counter()
        result = self.measure(self.validation.ids[:GLANCE_TOKENS])
        self.journal.pause += time.perf_counter() - started
        metrics = {f"{metric_key_prefix}_bits_per_byte": result.value}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.perf_counter()
        try:
            super()._save_checkpoint(model, trial)
        except OSError as error:
            raise StoppedEarly(
                f"step {self.state.global_step}: the checkpoint could not be written ({error}); earlier checkpoints in "
                f"{self.args.output_dir} are whole; make room and run the same command again to go on"
            ) from error
        self.journal.pause += time.perf_counter() - started


def groups_of(model: Any, settings: Settings) -> list[dict[str, Any]]:
    """The optimizer's groups for the chosen algorithm."""
    rate, decay = settings["learning_rate"].value, settings["weight_decay"].value
    groups = optimizer_groups(
        model, settings["muon_learning_rate"].value, rate, decay, settings["adamw_weight_decay"].value
    )
    if settings["optimizer"].value == "adamw":
        for group in groups:
            if group["algorithm"] == "muon":
                betas = groups[-1]["betas"]
                group.update(algorithm="adamw", lr=rate, betas=betas, eps=1e-10, fused=True)
    return groups


def measured_step(
    model: Any, batch: dict[str, torch.Tensor], settings: Settings, autocast: torch.dtype | None, steps: int = 4
) -> float:
    """Seconds of one training step on this machine, right now; the model is left as it was.

    The first two steps, which compile and allocate, are not counted.
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


def not_a_number(step: int, folder: str) -> StoppedEarly:
    return StoppedEarly(
        f"step {step}: the loss is not a number; checkpoints in {folder} from before are kept. A learning rate that is too "
        "high is the usual cause: try half of --muon_learning_rate and --learning_rate with another --output_dir"
    )
