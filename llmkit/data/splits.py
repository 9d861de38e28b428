"""Which documents train and which are held out: by content, so that a document never changes side.

The side follows from a hash of the document's text: adding data moves nothing. Exact copies are dropped but for
one; training documents that nearly equal a held-out one are dropped too, and everything dropped is counted.
"""

import dataclasses
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmkit.data.duplicates import GramIndex, content_hash
from llmkit.data.sources import Source
from llmkit.errors import UserError
from llmkit.folder import cache_folder, write_json

TRAIN, VALIDATION, EMPTY, COPY, NEAR_COPY = range(5)
_FORMAT = 4  # of the cache; raised when a change makes other splits of the same data
_XZ_BYTES = 16_000_000  # of training text that the baseline is shown: xz needs a second for each megabyte


@dataclasses.dataclass
class Split:
    """The sides of a corpus.

    Attributes:
        source: where the documents come from.
        validation_source: where the held-out documents come from, if the user gave them apart.
        sides: uint8 [documents of `source`]: TRAIN, VALIDATION, or why a document is left out.
        fingerprint: of everything that decides the sides; a cache of tokens is kept under it.
        validation_fraction: the share by which the sides were drawn.
        documents, empty, copies, near_copies: counts over `source` (empty rows, exact copies dropped, near copies of
            held-out documents dropped from the training side).
        train_documents, validation_documents, train_bytes, validation_bytes: what is left.
        length_percentiles: bytes of a document at the 0, 5, 25, 50, 75, 95 and 100 % points.
    """

    source: Source
    validation_source: Source | None
    sides: np.ndarray
    fingerprint: str
    validation_fraction: float
    documents: int
    empty: int
    copies: int
    near_copies: int
    train_documents: int
    validation_documents: int
    train_bytes: int
    validation_bytes: int
    length_percentiles: list[int]

    def train(self) -> Iterator[str]:
        """The training documents, in order."""
        return self._side(TRAIN)

    def validation(self) -> Iterator[str]:
        """The held-out documents, in order."""
        return self.validation_source.documents() if self.validation_source else self._side(VALIDATION)

    def _side(self, side: int) -> Iterator[str]:
        return (text for (_, text), own in zip(self.source.rows(), self.sides, strict=True) if own == side)

    def counts(self) -> dict:
        """The plain figures, for llmkit.json."""
        left_out = ("source", "validation_source", "sides", "length_percentiles")
        return {k: getattr(self, k) for k in (f.name for f in dataclasses.fields(self)) if k not in left_out}


def default_validation_fraction(size: int) -> float:
    """A tenth, or a hundredth of a corpus above 80 MB: no evaluation needs more than some megabytes."""
    return 0.1 if size <= 80_000_000 else 0.01


def split(
    source: Source,
    validation_source: Source | None = None,
    validation_fraction: float | None = None,
    seed: int = 0,
    fresh: bool = False,
) -> Split:
    """Decide the side of every document; from the cache if this content was split before.

    Args:
        source: the documents.
        validation_source: held-out documents of their own; then every document of `source` trains, but for copies.
        validation_fraction: the share held out; by size if None.
        seed: another seed, other sides.
        fresh: do not read the cache.
    """
    options = [_FORMAT, source.fingerprint, validation_source and validation_source.fingerprint, validation_fraction]
    key = f"{content_hash(json.dumps([*options, seed])):016x}"
    folder = cache_folder("splits")
    sides_file, counts_file = folder / f"{key}.npy", folder / f"{key}.json"
    if counts_file.exists() and not fresh:
        counts = json.loads(counts_file.read_text())
        return Split(source, validation_source, np.load(sides_file), **counts)
    made = _split(source, validation_source, validation_fraction, seed, key)
    part = folder / f"{key}.{os.getpid()}.part"  # several runs may make the same split at once
    with open(part, "wb") as stream:
        np.save(stream, made.sides)
    part.replace(sides_file)
    write_json(counts_file, made.counts() | {"length_percentiles": made.length_percentiles})
    return made


def _split(
    source: Source, validation_source: Source | None, fraction: float | None, seed: int, fingerprint: str
) -> Split:
    hashes, sizes = [], []
    for _, text in source.rows():
        is_text = text is not None and text and not text.isspace()
        hashes.append(content_hash(text, seed) if is_text else 0)
        sizes.append(len(text.encode("utf-8", "surrogatepass")) if is_text else 0)
    hash_of, size_of = np.array(hashes, dtype=np.uint64), np.array(sizes, dtype=np.int64)
    del hashes, sizes

    sides = np.full(len(hash_of), TRAIN, dtype=np.uint8)
    first = np.zeros(len(hash_of), dtype=bool)
    first[np.unique(hash_of, return_index=True)[1]] = True
    sides[~first] = COPY
    sides[size_of == 0] = EMPTY
    if fraction is None:
        fraction = default_validation_fraction(int(size_of[sides == TRAIN].sum()))

    if validation_source is None:
        border = np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
        sides[(sides == TRAIN) & (hash_of < border)] = VALIDATION
        held_out = ((n, text) for n, (_, text) in enumerate(source.rows()) if sides[n] == VALIDATION)
    else:
        held_out = enumerate(validation_source.documents())
        held_out_hashes = np.array([content_hash(text, seed) for text in validation_source.documents()], np.uint64)
        sides[(sides == TRAIN) & np.isin(hash_of, held_out_hashes)] = COPY
    if fraction > 0 or validation_source is not None:
        index = GramIndex(held_out)
        training = ((n, text) for n, (_, text) in enumerate(source.rows()) if sides[n] == TRAIN)
        # near_duplicates reads `sides` through `training`; collect before changing it
        for number in [number for number, _ in index.near_duplicates(training)]:
            sides[number] = NEAR_COPY

    if validation_source is None:
        validation_documents, validation_bytes = (
            int((sides == VALIDATION).sum()),
            int(size_of[sides == VALIDATION].sum()),
        )
    else:
        lengths = [len(text.encode("utf-8", "surrogatepass")) for text in validation_source.documents()]
        validation_documents, validation_bytes = len(lengths), sum(lengths)
    present = size_of[size_of > 0]
    return Split(
        source=source,
        validation_source=validation_source,
        sides=sides,
        fingerprint=fingerprint,
        validation_fraction=fraction,
        documents=len(sides),
        empty=int((sides == EMPTY).sum()),
        copies=int((sides == COPY).sum()),
        near_copies=int((sides == NEAR_COPY).sum()),
        train_documents=int((sides == TRAIN).sum()),
        validation_documents=validation_documents,
        train_bytes=int(size_of[sides == TRAIN].sum()),
        validation_bytes=validation_bytes,
        length_percentiles=(
            np.percentile(present, [0, 5, 25, 50, 75, 95, 100]).astype(int).tolist() if len(present) else [0] * 7
        ),
    )


def problems_of(split: Split) -> list[str]:
    """Why this corpus cannot be trained on, in words; empty if it can."""
    name = split.source.name
    problems = []
    if split.documents - split.empty == 0:
        problems.append(f"--data {name}: holds no text ({split.documents} rows, all empty)")
    elif split.documents - split.empty - split.copies == 1 and split.validation_source is None:
        problems.append(
            f"--data {name}: is one document of {split.train_bytes + split.validation_bytes} bytes, and a held-out side needs "
            "another; give more text, or a text of its own with --validation_data"
        )
    else:
        if split.train_documents == 0:
            problems.append(
                f"--data {name}: no document is left to train on ({split.validation_documents} are held out by "
                f"--validation_fraction {split.validation_fraction}, {split.copies + split.near_copies} are copies)"
            )
        if split.validation_documents == 0 and split.validation_source is not None:
            problems.append(f"--validation_data {split.validation_source.name}: holds no text; give one that does")
        elif split.validation_documents == 0:
            problems.append(
                f"--data {name}: {split.documents} documents are too few for a held-out side of "
                f"{split.validation_fraction:.3g} of them; raise --validation_fraction or give --validation_data"
            )
    return problems


def xz_bits_per_byte(split: Split) -> float:
    """What `xz -9e` needs for a byte of the held-out text after it has read the training text.

    The honest baseline of a language model: a compressor generalizes nothing and remembers everything. It is shown at
    most the last 16 MB of the training text (its window is 64 MB, its speed about 1 MB/s).
    """
    file: Path = cache_folder("splits") / f"{split.fingerprint}.xz.json"
    if file.exists():
        return json.loads(file.read_text())
    train = bytearray()
    for text in split.train():
        train += text.encode("utf-8", "surrogatepass")
        if len(train) > 2 * _XZ_BYTES:
            del train[:-_XZ_BYTES]
    train = bytes(train[-_XZ_BYTES:])
    held_out = "".join(split.validation()).encode("utf-8", "surrogatepass")
    if not held_out:
        raise UserError(f"--data {split.source.name}: there is no held-out text")
    preset = 9 | lzma.PRESET_EXTREME
    with_both = len(lzma.compress(train + held_out, preset=preset))
    result = 8 * (with_both - len(lzma.compress(train, preset=preset))) / len(held_out)
    write_json(file, result)
    return result
