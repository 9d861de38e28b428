"""What this machine can do, measured: the figures that forecasts, precision and MFU rest on."""

import os
import resource
import sys
import time
from collections.abc import Callable

import torch


def least_seconds(*works: Callable[[], object], rounds: int = 8, least: float = 0.02) -> list[float]:
    """The least time of a call of each work.

    The works take turns, and of each the best round counts: another program that takes the processor for a while
    slows some rounds, and rarely all.
    """
    synchronize = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    best = [float("inf")] * len(works)
    for round_number in range(rounds + 1):
        for which, work in enumerate(works):
            calls, started = 0, time.perf_counter()
            while True:
                work()
                calls += 1
                synchronize()
                elapsed = time.perf_counter() - started
                if elapsed >= least:
                    break
            if round_number:  # the first round allocates and packs
                best[which] = min(best[which], elapsed / calls)
    return best


def matrix_peaks(device: torch.device) -> tuple[float, float]:
    """Floating-point operations per second of a large square matrix product in float32 and in bfloat16.

    It is what model_flops_utilization is a share of.
    """
    size = 8192 if device.type == "cuda" else 1024
    works = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        works.append(lambda a=a, b=b: a @ b)
    float32, bfloat16 = least_seconds(*works)
    return 2 * size**3 / float32, 2 * size**3 / bfloat16


def has_bfloat16(device: torch.device) -> bool:
    """Whether the machine multiplies bfloat16 matrices itself, rather than by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return any("bf16" in name and has_it for name, has_it in torch.cpu.get_capabilities().items())


def use_all_cores(local_processes: int = 1) -> int:
    """Give each process of this machine its share of the cores, and return how many that is.

    `accelerate launch` without a configuration starts a CPU run with one thread, whatever the machine has.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(available // local_processes, 1)
    torch.set_num_threads(threads)
    return threads


def peak_memory_gb() -> float:
    """The most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
