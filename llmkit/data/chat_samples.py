"""Encoded conversations as the samples of a run: those that fit, in the order in which they are trained.

The order of the whole run is laid out beforehand from a seed alone, as for packed text, so that a resumed run and a run of
several processes see exactly what an uninterrupted single one sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llmkit.errors import UserError
from llmkit.tokenization.chat import Encoded

TooLong = Literal["drop", "truncate", "error"]
_SORTED_BATCHES = 50  # batches whose samples are sorted by length together, so that a batch needs little padding


@dataclass
class Fitted:
    """What is left of a side after it was fitted into the context.

    Attributes:
        samples: conversations of `max_length` tokens at most, each with something to learn.
        too_long: rows that were longer.
        dropped: rows that are gone: too long, or with no trained token left.
        cut_tokens: trained tokens that cutting has lost.
    """

    samples: list[Encoded]
    too_long: int = 0
    dropped: int = 0
    cut_tokens: int = 0

    @property
    def trained_tokens(self) -> int:
        return sum(sum(sample.trained) for sample in self.samples)

    @property
    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.samples)


def fit(encoded: Sequence[Encoded], places: Sequence[str], max_length: int, too_long: TooLong, option: str) -> Fitted:
    """Fit conversations into the context. An answer is never cut without a word: what was lost is counted.

    Args:
        encoded: the conversations.
        places: where each stands, for messages.
        max_length: tokens of the longest sample.
        too_long: leave longer ones out, cut them, or refuse them.
        option: the option that brought the data.

    Raises:
        UserError: `too_long` is "error" and a row is; or no row is left.
    """
    fitted = Fitted([])
    longer = []
    for sample, place in zip(encoded, places, strict=True):
        if len(sample.ids) > max_length:
            fitted.too_long += 1
            longer.append(f"{place} ({len(sample.ids)} tokens)")
            if too_long != "truncate":
                fitted.dropped += 1
                continue
            fitted.cut_tokens += sum(sample.trained[max_length:])
            sample = Encoded(sample.ids[:max_length], sample.trained[:max_length])
        if not any(sample.trained[1:]):  # the first token is nobody's next
            fitted.dropped += 1
            continue
        fitted.samples.append(sample)
    if longer and too_long == "error":
        raise UserError(
            f"--too_long error: {len(longer)} of {len(encoded)} rows are longer than {max_length} tokens: "
            f"{', '.join(longer[:5])}{' …' if len(longer) > 5 else ''}; raise --max_length, or drop or truncate them"
        )
    if not fitted.samples:
        raise UserError(
            f"{option}: none of {len(encoded)} rows fits into {max_length} tokens with something to learn; the shortest of them is "
            f"{min(len(sample.ids) for sample in encoded):,} tokens; raise --max_length, or take a model that looks back further"
        )
    return fitted


def training_order(lengths: Sequence[int], batch: int, epochs: float, seed: int) -> np.ndarray:
    """The numbers of all samples of a run in order: whole batches of samples of about one length, mixed anew each epoch.

    Args:
        lengths: tokens of each sample.
        batch: samples of one step over all processes.
        epochs: passes over the samples; the last may be a part.
        seed: of the order.

    Returns:
        int64 [steps * batch].
    """
    length = np.asarray(lengths)
    steps = max(round(epochs * len(length) / batch), 1)
    rows: list[np.ndarray] = []
    left = np.zeros(0, np.int64)  # what does not fill a batch goes to the next epoch
    epoch = 0
    while sum(map(len, rows)) < steps * batch:
        draw = np.random.default_rng((seed, epoch))
        order = np.concatenate([left, draw.permutation(len(length))])
        whole = len(order) // batch * batch
        order, left = order[:whole], order[whole:]
        chunk = batch * _SORTED_BATCHES
        pieces = [order[i : i + chunk] for i in range(0, whole, chunk)]
        pieces = [piece[np.argsort(length[piece], kind="stable")] for piece in pieces]
        batches = np.concatenate(pieces).reshape(-1, batch) if pieces else np.zeros((0, batch), np.int64)
        rows.append(batches[draw.permutation(len(batches))].reshape(-1))
        epoch += 1
    return np.concatenate(rows)[: steps * batch]


def as_dataset(samples: Sequence[Encoded]) -> Any:
    """Samples as the `datasets.Dataset` that TRL takes."""
    from datasets import Dataset

    return Dataset.from_dict(
        {"input_ids": [sample.ids for sample in samples], "labels": [sample.labels for sample in samples]}
    )
