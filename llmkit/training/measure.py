"""What this machine can do, measured: the figures that forecasts, precision and MFU rest on."""

import time
from collections.abc import Callable

import torch


def seconds_of(work: Callable[[], object], least: float = 0.05, rounds: int = 3) -> float:
    """The least time of one call, over rounds that last at least `least` seconds each, after one call to warm up."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work()
    synchronize()
    best = float("inf")
    for _ in range(rounds):
        calls, started = 0, time.perf_counter()
        while True:
            work()
            calls += 1
            synchronize()
            elapsed = time.perf_counter() - started
            if elapsed >= least:
                break
        best = min(best, elapsed / calls)
    return best


def matrix_peak(dtype: torch.dtype, device: torch.device, size: int | None = None) -> float:
    """The floating-point operations per second of a large square matrix product: what MFU is a share of."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, least=0.1)


def bfloat16_gain(tokens: int, hidden_size: int, intermediate_size: int, device: torch.device) -> float:
    """How many times faster a layer of these sizes is in bfloat16, with the casts that autocast makes.

    A gain above 1 on the large matrices of a benchmark can be a loss on those of a small model.
    """
    x = torch.randn(tokens, hidden_size, device=device)
    weight = torch.randn(intermediate_size, hidden_size, device=device)

    def cast() -> torch.Tensor:
        return x.bfloat16() @ weight.bfloat16().T

    return seconds_of(lambda: x @ weight.T) / seconds_of(cast)


def use_all_cores(local_processes: int = 1) -> int:
    """Give each process of this machine its share of the cores, and return how many that is.

    `accelerate launch` without a configuration starts a CPU run with one thread, whatever the machine has.
    """
    import os

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(available // local_processes, 1)
    torch.set_num_threads(threads)
    return threads
