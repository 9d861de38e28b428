"""What every trainer of ours does around a step: no step on a loss that is not a number, checkpoints that can be trusted."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback

from llmkit.errors import StoppedEarly
from llmkit.training.callbacks import Journal
from llmkit.training.checkpoints import unseal


class Careful:
    """Mixed into a Trainer, before it.

    Attributes:
        journal: the run's journal, which stands in for the Trainer's own progress bar and log.
    """

    journal: Journal

    def keep_journal(self, journal: Journal) -> None:
        """Let our journal speak instead of the Trainer's own bar and log."""
        self.journal = journal
        self.add_callback(journal)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # On a GPU looking at the loss would wait for it; there it is looked at when it is logged.
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            raise not_a_number(self.state.global_step + 1, self.args.output_dir)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not np.isfinite(logs.get("loss", 0.0)):
            raise not_a_number(self.state.global_step, self.args.output_dir)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.perf_counter()
        unseal(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"))
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # safetensors and torch say a full disk their own way
            raise StoppedEarly(
                f"step {self.state.global_step}: the checkpoint could not be written ({error}); earlier checkpoints in "
                f"{self.args.output_dir} are whole; make room and run the same command again to go on"
            ) from error
        self.journal.pause += time.perf_counter() - started


def not_a_number(step: int, folder: str) -> StoppedEarly:
    return StoppedEarly(
        f"step {step}: the loss is not a number; checkpoints in {folder} from before are kept. A learning rate that is too "
        "high is the usual cause: try half of --muon_learning_rate and --learning_rate with another --output_dir"
    )
