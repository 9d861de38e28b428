"""The processes of a run: how they start, and how they agree."""

import os
from typing import Any

import torch

from llmkit.errors import UserError
from llmkit.options import Settings
from llmkit.training.measure import use_all_cores


def agreed(value: Any) -> Any:
    """The first process's value, in every process: each measures another time, and all must follow one plan."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def start_processes(settings: Settings) -> Any:
    """Join the processes of the run, and give each its share of the cores.

    Returns:
        accelerate's `PartialState`.

    Raises:
        UserError: Muon where processes hold only slices of a matrix.
    """
    from accelerate import PartialState

    if any(os.environ.get(name) == "true" for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")):
        if settings.given("optimizer") and settings["optimizer"].value == "muon":
            raise UserError("--optimizer muon: needs whole matrices, and FSDP and DeepSpeed cut them; use adamw there")
        settings.derive("optimizer", "adamw", "FSDP and DeepSpeed cut the matrices that Muon needs whole")
    has_accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    state = PartialState(cpu=settings["use_cpu"].value or not has_accelerator)
    state.threads = use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1))) if state.device.type == "cpu" else None
    return state
