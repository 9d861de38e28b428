"""How well a language model predicts a text, in bits for each byte of it."""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class BitsPerByte:
    """What was measured over a text.

    Attributes:
        value: bits per byte.
        interval: its 95 % interval, over the windows of text that were predicted.
        text_bytes: the bytes that were predicted: all of the text.
        nats_per_token: the mean loss over the tokens that stand for text.
    """

    value: float
    interval: tuple[float, float]
    text_bytes: int
    nats_per_token: float

    def metrics(self) -> dict[str, Any]:
        return {
            "bits_per_byte": self.value,
            "bits_per_byte_ci": list(self.interval),
            "bits_per_byte_n": self.text_bytes,
        }


def bits_per_byte(
    model: Any,
    ids: np.ndarray,
    byte_lengths: np.ndarray,
    context_length: int,
    batch_size: int = 32,
    autocast: torch.dtype | None = None,
    process: tuple[int, int] = (0, 1),
    end_of_text: int | None = None,
) -> BitsPerByte:
    """Bits per byte of a model over a whole row of tokens.

    Why not the mean loss: it depends on the tokenizer, since a token may stand for one byte or for ten. The nats of all
    tokens divided by the bytes they stand for does not. Three details make the figure true:

    1. every token is predicted exactly once, the first one from the end-of-text token alone;
    2. special tokens stand for no byte, so neither they nor the nats spent on them count;
    3. the bytes come from the vocabulary (`token_byte_lengths`), not from decoding.

    The row is cut into windows of `context_length` that do not overlap, as peers do it. A token at the start of a window sees
    little before it, so the figure is an upper bound of what the model could reach with overlapping windows.

    Args:
        model: a causal language model; its device decides where the work is done.
        ids: token ids [tokens], documents separated by the end-of-text token.
        byte_lengths: bytes by token id [vocabulary].
        context_length: input tokens of a window.
        batch_size: windows at a time.
        autocast: bfloat16 to compute in it where it is safe; None computes as the weights are stored.
        end_of_text: the token that separates documents; None: the last of the row, which ends its last document.
        process: (rank, processes): each process takes its share of the windows, and all return the whole.

    Raises:
        ValueError: no token stands for text.
    """
    from accelerate.utils import gather_object

    device = next(model.parameters()).device
    rank, processes = process
    end_of_text = int(ids[-1]) if end_of_text is None else end_of_text
    windows = range(0, len(ids), context_length)
    nats, sizes, counted = (np.zeros(len(windows)) for _ in range(3))
    lengths = torch.from_numpy(byte_lengths).to(device)
    casting = torch.autocast(device.type, autocast) if autocast is not None else contextlib.nullcontext()
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), casting:
            for start in range(0, len(windows), processes * batch_size):
                first = start + rank * batch_size
                # A process without windows of its own joins in with the first ones: a model that is cut over processes
                # needs them all at every forward pass.
                numbers = range(first, min(first + batch_size, len(windows))) or range(1)
                rows = [ids[max(windows[n] - 1, 0) : windows[n] + context_length].astype(np.int64) for n in numbers]
                if numbers[0] == 0:
                    rows[0] = np.concatenate([[end_of_text], rows[0]])
                # The last window is shorter. What fills it up comes after all that counts, and stands for no byte.
                longest = max(len(row) for row in rows)
                full = np.stack([np.pad(row, (0, longest - len(row)), constant_values=end_of_text) for row in rows])
                batch = torch.from_numpy(full).to(device)
                inputs, targets = batch[:, :-1], batch[:, 1:]
                logits = model(input_ids=inputs, use_cache=False).logits.float()
                losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
                weights = lengths[targets]
                if first < len(windows):
                    counts = weights > 0
                    mine = slice(first, first + len(rows))
                    nats[mine] = (losses.double() * counts).sum(1).cpu()
                    sizes[mine] = weights.sum(1).cpu()
                    counted[mine] = counts.sum(1).cpu()
    finally:
        model.train(training)
    if processes > 1:
        parts = gather_object([(nats, sizes, counted)])
        nats, sizes, counted = (sum(part[k] for part in parts) for k in range(3))
    total = sizes.sum()
    if total == 0:
        raise ValueError("no token of this row stands for text")
    value = nats.sum() / math.log(2) / total
    return BitsPerByte(value, _interval(nats / math.log(2), sizes), int(total), nats.sum() / counted.sum())


def _interval(bits: np.ndarray, sizes: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the ratio of sums, by drawing the windows again with replacement (percentile bootstrap)."""
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(draws):
        chosen = generator.integers(len(bits), size=len(bits))
        ratios.append(bits[chosen].sum() / max(sizes[chosen].sum(), 1))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)
