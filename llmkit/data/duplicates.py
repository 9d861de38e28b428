"""Which documents say the same: exact copies by hash, near copies by the word 5-grams that they share.

Near copies are found exactly, without sketches: the held-out side is small, so its 5-grams fit in memory as sorted
numbers, and the documents of the other side stream past. All the work on words is done by numpy over many documents
at once, about 30 MB of text a second on one core.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

WORDS = 5  # words of a gram
SHARED = 0.5  # the share of the shorter document's grams that makes two documents near duplicates
FEWEST = 3  # shared grams; below, two short documents share a phrase and no more
_BATCH_BYTES = 4_000_000

# Polynomial hash modulo 2^64: an odd base has an inverse, so the hash of a word is a difference of two prefix sums.
_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_IS_WORD = np.zeros(256, dtype=bool)
_IS_WORD[[*range(48, 58), *range(65, 91), 95, *range(97, 123), *range(128, 256)]] = True


def content_hash(text: str, seed: int = 0) -> int:
    """A 64-bit hash of a document up to white space: equal for exact copies, spread evenly otherwise."""
    key = seed.to_bytes(8, "big", signed=True)
    normal = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(normal, digest_size=8, key=key).digest(), "big")


def _batches(documents: Iterable[tuple[int, str]]) -> Iterator[tuple[np.ndarray, list[bytes]]]:
    numbers: list[int] = []
    texts: list[bytes] = []
    size = 0
    for number, text in documents:
        numbers.append(number)
        texts.append(text.lower().encode("utf-8", "surrogatepass"))
        size += len(texts[-1])
        if size > _BATCH_BYTES:
            yield np.array(numbers), texts
            numbers, texts, size = [], [], 0
    if texts:
        yield np.array(numbers), texts


def _grams(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct word 5-grams of each text.

    Returns:
        Two arrays of equal length: the index of the text, and the gram's 64-bit hash; sorted by text, then gram.
    """
    data = np.frombuffer(b" ".join(texts) + b" ", dtype=np.uint8)
    lengths = np.array([len(text) + 1 for text in texts])
    text_ends = np.cumsum(lengths)
    edges = np.flatnonzero(np.diff(_IS_WORD[data].astype(np.int8), prepend=0))
    starts, ends = edges[0::2], edges[1::2]
    if len(starts) < WORDS:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(len(data), _BASE))
        prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers)])
        inverse = np.cumprod(np.full(len(data), _INVERSE))
        words = (prefix[ends] - prefix[starts]) * inverse[starts]
        words ^= words >> np.uint64(29)
        words *= _MIX
        last = len(words) - WORDS + 1
        grams = np.zeros(last, np.uint64)
        for i in range(WORDS):
            grams = grams * _BASE + words[i : last + i]
        grams ^= grams >> np.uint64(31)
    owner = np.searchsorted(text_ends, starts, side="right")
    inside = owner[:last] == owner[WORDS - 1 :]
    pairs = np.empty(int(inside.sum()), dtype=[("owner", np.int64), ("gram", np.uint64)])
    pairs["owner"], pairs["gram"] = owner[:last][inside], grams[inside]
    pairs = np.unique(pairs)
    return pairs["owner"], pairs["gram"]


class GramIndex:
    """The word 5-grams of a set of documents, to ask which other documents are nearly the same.

    Args:
        documents: (number, text) of each document to be indexed. About 200 bytes of memory per word of text
            while it is built, 16 after.
    """

    def __init__(self, documents: Iterable[tuple[int, str]]):
        grams, owners, self._sizes = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], {}
        for numbers, texts in _batches(documents):
            owner, gram = _grams(texts)
            grams.append(gram)
            owners.append(numbers[owner])
            self._sizes |= dict(zip(*np.unique(numbers[owner], return_counts=True), strict=True))
        gram, owner = np.concatenate(grams), np.concatenate(owners)
        order = np.argsort(gram, kind="stable")
        self._gram, self._owner = gram[order], owner[order]

    def near_duplicates(self, documents: Iterable[tuple[int, str]]) -> Iterator[tuple[int, int]]:
        """Of the given (number, text) documents those that nearly equal an indexed one.

        Two documents are near duplicates if they share at least half of the distinct word 5-grams of the shorter one.

        Returns:
            (number of the given document, number of the indexed one that it shares most with).
        """
        for numbers, texts in _batches(documents):
            owner, gram = _grams(texts)
            first = np.searchsorted(self._gram, gram, side="left")
            count = np.searchsorted(self._gram, gram, side="right") - first
            hits = int(count.sum())
            if not hits:
                continue
            # Spread each gram over the indexed documents that hold it: [first, first + count) for each.
            position = np.arange(hits) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
            pairs = np.stack([np.repeat(owner, count), self._owner[position]])
            (ours, theirs), shared = np.unique(pairs, axis=1, return_counts=True)
            sizes = dict(zip(*np.unique(owner, return_counts=True), strict=True))
            best: dict[int, tuple[float, int]] = {}
            for our, their, n in zip(ours.tolist(), theirs.tolist(), shared.tolist(), strict=True):
                share = n / min(sizes[our], self._sizes[their])
                if n >= FEWEST and share >= SHARED:
                    best[our] = max(best.get(our, (0.0, 0)), (share, their))
            for our in sorted(best):
                yield int(numbers[our]), best[our][1]
