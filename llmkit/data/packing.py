"""Texts as one long row of token ids on disk, and training samples cut from it.

Every document is followed by the end-of-text token. The row is memory-mapped, so a corpus may be larger than memory,
and is cached under the fingerprints of the split and the tokenizer: a second run starts at once, and another
tokenizer never meets tokens that are not its own. Samples cross document borders without a mask, which costs no
quality at these context lengths, and no token is padding.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmkit.data.splits import Split
from llmkit.folder import cache_folder, write_json

_FORMAT = 2  # of the cache
_BATCH_BYTES = 1_000_000  # of text that is tokenized at a time


@dataclass(frozen=True)
class TokenFile:
    """Token ids on disk.

    Attributes:
        ids: memory-mapped, uint16 or uint32, [tokens].
        documents: how many documents they are; each ends with the end-of-text token.
        text_bytes: the UTF-8 bytes of the documents.
    """

    ids: np.ndarray
    documents: int
    text_bytes: int


def token_files(split: Split, tokenizer: Any) -> tuple[TokenFile, TokenFile]:
    """The training and the held-out side of a split as tokens, from the cache or made now."""
    same = hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=8).hexdigest()
    folder = cache_folder("tokens") / f"{split.fingerprint}-{same}-{tokenizer.eos_token_id}-{_FORMAT}"
    if not (folder / "counts.json").exists():
        # A name of its own: in a container, a run and the killed one before it may have the same process number.
        building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
        building.chmod(0o755)
        try:
            counts = {
                side: write_tokens(texts, tokenizer, building / f"{side}.bin")
                for side, texts in (("train", split.train()), ("validation", split.validation()))
            }
            write_json(building / "counts.json", counts)
            if not folder.exists():  # two runs may have made the same tokens
                building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    counts = json.loads((folder / "counts.json").read_text())
    train, validation = (open_tokens(folder / f"{side}.bin", counts[side]) for side in ("train", "validation"))
    return train, validation


def encode_texts(texts: Iterable[str], tokenizer: Any) -> Iterator[list[list[int]]]:
    """Token ids of each text, in batches. Special tokens that stand in a text are text."""
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        texts = iter(texts)
        while batch := _batch_of_bytes(texts):
            yield [encoding.ids for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def _batch_of_bytes(texts: Iterator[str]) -> list[str]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_BYTES:
            break
    return batch


def write_tokens(texts: Iterable[str], tokenizer: Any, file: Path) -> dict[str, int | str]:
    """Tokenize texts into a flat file of ids.

    Returns:
        {"tokens", "documents", "text_bytes", "dtype"}.
    """
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    tokens = documents = text_bytes = 0

    def counted() -> Iterator[str]:
        nonlocal text_bytes
        for text in texts:
            text_bytes += len(text.encode("utf-8", "surrogatepass"))
            yield text

    with open(file, "wb") as stream:
        for batch in encode_texts(counted(), tokenizer):
            for ids in batch:
                ids.append(tokenizer.eos_token_id)
                tokens += len(ids)
            documents += len(batch)
            stream.write(b"".join(np.array(ids, dtype=dtype).tobytes() for ids in batch))
    return {"tokens": tokens, "documents": documents, "text_bytes": text_bytes, "dtype": dtype.name}


def open_tokens(file: Path, counts: dict[str, Any]) -> TokenFile:
    ids = np.memmap(file, dtype=counts["dtype"], mode="r") if counts["tokens"] else np.zeros(0, counts["dtype"])
    return TokenFile(ids, counts["documents"], counts["text_bytes"])


def sample_of(texts: Iterable[str], total_bytes: int, wanted_bytes: int) -> Iterator[str]:
    """About `wanted_bytes` of texts, spread evenly over all of them by content."""
    from llmkit.data.duplicates import content_hash

    share = wanted_bytes / max(total_bytes, 1)
    if share >= 1:
        return iter(texts)
    return (text for text in texts if content_hash(text, seed=1) < share * 2**64)


class PackedSamples(torch.utils.data.Dataset):
    """The samples of a whole training run, in order: sample i is a function of (tokens, seed, i) alone.

    Each pass over the corpus cuts the row of tokens into `context_length` pieces from another offset and visits them
    in another order, so that no pass repeats the borders of the one before. Since nothing is remembered between
    samples, a resumed run and a run of several processes see exactly what an uninterrupted single one sees.

    Args:
        ids: token ids [tokens].
        context_length: input tokens of a sample.
        samples: how many samples the run takes.
        seed: of the offsets and orders.

    A batch is {"input_ids", "labels", "shift_labels"}, each int64 [batch, context_length]; `shift_labels` are the
    targets (the next token of every position), `labels` are there because transformers computes a loss only with them.
    """

    def __init__(self, ids: np.ndarray, context_length: int, samples: int, seed: int):
        self.ids, self.context_length, self.samples, self.seed = ids, context_length, samples, seed
        # The offset costs up to one sample of each pass; the last target needs one token more.
        self.samples_per_pass = (len(ids) - 1) // context_length - 1
        if self.samples_per_pass < 1:
            raise ValueError(f"{len(ids)} tokens are not two samples of {context_length}")
        self._pass = -1

    def __len__(self) -> int:
        return self.samples

    def _starts(self, indices: list[int]) -> np.ndarray:
        starts = []
        for index in indices:
            number, place = divmod(index, self.samples_per_pass)
            if number != self._pass:
                generator = np.random.default_rng((self.seed, number))
                self._offset = int(generator.integers(self.context_length))
                self._order = generator.permutation(self.samples_per_pass)
                self._pass = number
            starts.append(self._offset + int(self._order[place]) * self.context_length)
        return np.array(starts)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A whole batch at once; torch's loader calls this where it exists, and `whole_batch` passes it on."""
        span = self._starts(indices)[:, None] + np.arange(self.context_length + 1)
        rows = torch.from_numpy(self.ids[span].astype(np.int64))
        targets = rows[:, 1:].contiguous()
        return {"input_ids": rows[:, :-1], "labels": targets, "shift_labels": targets}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: rows[0] for name, rows in self.__getitems__([index]).items()}


def whole_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The collator for `PackedSamples`, whose batches are already batches."""
    return batch
