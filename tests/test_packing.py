"""Tokens on disk, their cache, and the samples that are cut from them."""

import copy
import dataclasses
import itertools
import os
import random

import numpy as np
import pytest
import torch
from conftest import sentences
from transformers import AutoTokenizer

from llmkit.data import packing
from llmkit.data.packing import (
    PackedSamples,
    TokenFile,
    encode_texts,
    open_tokens,
    sample_of,
    token_files,
    whole_batch,
    write_tokens,
)
from llmkit.data.sources import open_source
from llmkit.data.splits import Split, split
from llmkit.folder import cache_folder
from llmkit.tokenization.bpe import train_bpe

DOCUMENTS = [
    "One line.",
    "naïve 🙂\n\n  two  spaces",
    "1234",
    "<|im_start|>user\nhi<|im_end|>",
    "before <|endoftext|> after",
]


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """A token for every byte and no merge: ids can be told by hand."""
    return train_bpe([], 260)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(sentences(300), 400)


@pytest.fixture
def sides(tmp_path) -> Split:
    file = tmp_path / "rows.txt"
    file.write_text("\n\n".join("\n".join(sentences(10, seed)) for seed in range(40)), encoding="utf-8")
    return split(open_source(str(file)), validation_fraction=0.3)


def id_of_byte(tokenizer, byte: int) -> int:
    """The byte alphabet of GPT-2: printable Latin-1 stands for itself, the 68 other bytes for U+0100 and on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return tokenizer.convert_tokens_to_ids(chr(byte) if byte in printable else chr(256 + others.index(byte)))


def written(documents: list[str], tokenizer, folder) -> tuple[dict, TokenFile]:
    counts = write_tokens(documents, tokenizer, folder / "tokens.bin")
    return counts, open_tokens(folder / "tokens.bin", counts)


# ---------------------------------------------------------------------------------------------- on disk


def test_the_tokens_on_disk_are_the_bytes_of_the_text_and_end_of_text(tmp_path, bytes_tokenizer):
    counts, tokens = written(DOCUMENTS, bytes_tokenizer, tmp_path)
    expected = []
    for text in DOCUMENTS:
        expected += [id_of_byte(bytes_tokenizer, byte) for byte in text.encode()]
        expected.append(bytes_tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    assert tokens.ids.tolist() == expected
    assert np.fromfile(tmp_path / "tokens.bin", dtype=np.uint16).tolist() == expected
    text_bytes = len("".join(DOCUMENTS).encode())
    assert counts == {"tokens": text_bytes + 5, "documents": 5, "text_bytes": text_bytes, "dtype": "uint16"}
    assert (tokens.documents, tokens.text_bytes) == (5, text_bytes)


def test_the_tokens_on_disk_are_those_of_the_tokenizer(tmp_path, tokenizer):
    documents = [*DOCUMENTS, *sentences(50, seed=1)]
    _, tokens = written(documents, tokenizer, tmp_path)
    expected = [
        [*tokenizer(text, split_special_tokens=True)["input_ids"], tokenizer.eos_token_id] for text in documents
    ]
    assert tokens.ids.tolist() == list(itertools.chain(*expected))


def test_special_tokens_that_stand_in_a_text_stay_text(tmp_path, tokenizer):
    """A page about chat templates must not end a document in its middle."""
    _, tokens = written(DOCUMENTS, tokenizer, tmp_path)
    special = [token for token in tokens.ids.tolist() if token in tokenizer.all_special_ids]
    assert special == [tokenizer.eos_token_id] * len(DOCUMENTS)
    assert tokenizer.decode(tokens.ids) == "".join(f"{text}<|endoftext|>" for text in DOCUMENTS)


@pytest.mark.parametrize("before", [False, True])
def test_the_tokenizer_is_as_it_was_after_encoding(before):
    tokenizer = train_bpe([], 260)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = before
    ids = backend.encode("<|im_start|>").ids
    assert len(ids) == (len("<|im_start|>") if before else 1)
    list(encode_texts(DOCUMENTS, tokenizer))
    assert backend.encode("<|im_start|>").ids == ids
    abandoned = encode_texts(DOCUMENTS, tokenizer)
    next(abandoned)
    abandoned.close()
    assert backend.encode("<|im_start|>").ids == ids


def test_batches_change_nothing(monkeypatch, tokenizer):
    documents = [*DOCUMENTS, "", *sentences(50)]
    at_once = list(itertools.chain(*encode_texts(documents, tokenizer)))
    monkeypatch.setattr(packing, "_BATCH_BYTES", 100)
    in_batches = list(encode_texts(documents, tokenizer))
    assert len(in_batches) > 10
    assert list(itertools.chain(*in_batches)) == at_once


def test_no_document_is_no_token(tmp_path, tokenizer):
    counts, tokens = written([], tokenizer, tmp_path)
    assert counts == {"tokens": 0, "documents": 0, "text_bytes": 0, "dtype": "uint16"}
    assert tokens.ids.tolist() == []


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_take_two_bytes_as_long_as_they_fit(tmp_path, size, dtype):
    tokenizer = train_bpe([], 260)
    tokenizer.add_tokens([f"«{n}»" for n in range(260, size)])
    assert len(tokenizer) == size
    counts, tokens = written([f"«{size - 1}»a"], tokenizer, tmp_path)
    assert counts["dtype"] == dtype
    assert tokens.ids.dtype == dtype
    assert tokens.ids.tolist() == [size - 1, id_of_byte(tokenizer, ord("a")), tokenizer.eos_token_id]
    assert (tmp_path / "tokens.bin").stat().st_size == 3 * np.dtype(dtype).itemsize


# ---------------------------------------------------------------------------------------------- the cache


def ids_of(texts, tokenizer) -> list[int]:
    return [i for batch in encode_texts(texts, tokenizer) for ids in batch for i in (*ids, tokenizer.eos_token_id)]


def unreadable(sides: Split) -> Split:
    def rows():
        raise AssertionError("was read again")

    return dataclasses.replace(sides, source=dataclasses.replace(sides.source, rows=rows))


def test_both_sides_are_tokenized(sides, tokenizer):
    train, validation = token_files(sides, tokenizer)
    assert train.ids.tolist() == ids_of(sides.train(), tokenizer)
    assert validation.ids.tolist() == ids_of(sides.validation(), tokenizer)
    assert (train.documents, validation.documents) == (sides.train_documents, sides.validation_documents)
    assert (train.text_bytes, validation.text_bytes) == (sides.train_bytes, sides.validation_bytes)
    assert isinstance(train.ids, np.memmap), "the corpus may be larger than memory"


def test_a_second_run_reads_the_cache_also_with_the_tokenizer_of_the_folder(sides, tokenizer, tmp_path):
    first = token_files(sides, tokenizer)
    tokenizer.save_pretrained(tmp_path / "saved")
    for same in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        again = token_files(unreadable(sides), same)
        assert [side.ids.tolist() for side in again] == [side.ids.tolist() for side in first]
        assert [side.documents for side in again] == [side.documents for side in first]


def with_other_end(tokenizer):
    """The same vocabulary and merges, but another token after every document."""
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|im_end|>"
    return other


@pytest.mark.parametrize(
    "other_than",
    [
        lambda tokenizer: train_bpe(sentences(300), 300),
        lambda tokenizer: train_bpe(sentences(300, seed=1), 400),
        with_other_end,
    ],
    ids=["another size", "other texts", "another end of text"],
)
def test_the_cache_is_never_used_with_another_tokenizer(sides, tokenizer, other_than):
    other = other_than(tokenizer)
    first, _ = token_files(sides, tokenizer)
    train, validation = token_files(sides, other)
    assert train.ids.tolist() == ids_of(sides.train(), other) != first.ids.tolist()
    assert validation.ids.tolist() == ids_of(sides.validation(), other)
    assert token_files(sides, tokenizer)[0].ids.tolist() == first.ids.tolist()


def test_the_cache_is_never_used_for_another_split(sides, tokenizer):
    first, _ = token_files(sides, tokenizer)
    other = split(sides.source, validation_fraction=0.3, seed=1)
    train, _ = token_files(other, tokenizer)
    assert train.ids.tolist() == ids_of(other.train(), tokenizer) != first.ids.tolist()


def cached(sides: Split) -> list[str]:
    return sorted(folder.name for folder in cache_folder("tokens").glob(f"{sides.fingerprint}-*"))


def test_a_run_that_fails_while_it_tokenizes_leaves_nothing_behind(sides, tokenizer):
    fresh_sides = split(sides.source, validation_fraction=0.3, seed=2)  # that no other test has tokenized

    def half_the_rows():
        yield from itertools.islice(fresh_sides.source.rows(), 12)
        raise OSError("the disk went away")

    broken = dataclasses.replace(fresh_sides, source=dataclasses.replace(fresh_sides.source, rows=half_the_rows))
    with pytest.raises(OSError, match="the disk went away"):
        token_files(broken, tokenizer)
    assert cached(fresh_sides) == []
    train, _ = token_files(fresh_sides, tokenizer)
    assert train.ids.tolist() == ids_of(fresh_sides.train(), tokenizer)
    assert len(cached(fresh_sides)) == 1


def test_what_a_killed_run_left_behind_is_in_nobodys_way(sides, tokenizer):
    """In a container every run may have the same process number, so a name made from it was taken for ever."""
    fresh_sides = split(sides.source, validation_fraction=0.3, seed=3)
    token_files(fresh_sides, tokenizer)
    (name,) = cached(fresh_sides)
    whole = cache_folder("tokens") / name
    whole.rename(whole.with_name(f"{name}.{os.getpid()}.part"))  # as it lay there when the run was killed
    train, _ = token_files(fresh_sides, tokenizer)
    assert train.ids.tolist() == ids_of(fresh_sides.train(), tokenizer)


# ---------------------------------------------------------------------------------------------- samples


def starts(samples: PackedSamples, indices) -> list[int]:
    """Where the samples begin, for ids that are 0, 1, 2, …"""
    return [int(samples[i]["input_ids"][0]) for i in indices]


@pytest.mark.parametrize(("tokens", "context"), [(1000, 8), (1001, 8), (1007, 8), (1008, 8), (17, 8), (50, 1), (3, 1)])
def test_each_pass_visits_every_sample_once(tokens, context):
    samples = PackedSamples(np.arange(tokens, dtype=np.uint16), context, samples=10_000, seed=3)
    per_pass = (tokens - 1) // context - 1
    assert samples.samples_per_pass == per_pass
    for number in range(5):
        visited = sorted(starts(samples, range(number * per_pass, (number + 1) * per_pass)))
        assert visited == list(range(visited[0], visited[0] + per_pass * context, context))
        assert visited[0] < context, "less than one sample is lost at the beginning"
        assert visited[-1] + context < tokens, "the last target is a token of the corpus"


def test_a_pass_differs_from_the_one_before_in_borders_and_order():
    samples = PackedSamples(np.arange(10_000), 64, samples=1000, seed=0)
    n = samples.samples_per_pass
    passes = [starts(samples, range(i * n, (i + 1) * n)) for i in range(4)]
    assert len({visited[0] % 64 for visited in passes}) > 1
    assert len({tuple(start // 64 for start in visited) for visited in passes}) == 4
    assert all(visited != sorted(visited) for visited in passes)


def test_labels_are_the_next_token():
    ids = np.random.default_rng(0).integers(0, 400, 500, dtype=np.uint16)
    samples = PackedSamples(ids, 16, samples=100, seed=0)
    where = PackedSamples(np.arange(500), 16, samples=100, seed=0)
    for i in range(100):
        sample, start = samples[i], starts(where, [i])[0]
        assert sample["input_ids"].tolist() == ids[start : start + 16].tolist()
        assert sample["labels"].tolist() == ids[start + 1 : start + 17].tolist()
        assert sample["shift_labels"].tolist() == sample["labels"].tolist()
        assert {values.dtype for values in sample.values()} == {torch.int64}


def test_a_sample_is_independent_of_the_order_of_access():
    """A resumed run and each of several processes ask for other indices first."""
    ids = np.arange(700, dtype=np.uint32)
    in_order = starts(PackedSamples(ids, 16, samples=300, seed=5), range(300))
    shuffled = random.Random(0).sample(range(300), 300)
    at_random = PackedSamples(ids, 16, samples=300, seed=5)
    assert starts(at_random, shuffled) == [in_order[i] for i in shuffled]
    batch = PackedSamples(ids, 16, samples=300, seed=5).__getitems__(shuffled)
    assert batch["input_ids"][:, 0].tolist() == [in_order[i] for i in shuffled]
    assert starts(PackedSamples(ids, 16, samples=20, seed=5), range(20)) == in_order[:20], "nor of the run's length"


def test_another_seed_is_another_order():
    first, other = (starts(PackedSamples(np.arange(700), 16, 43, seed), range(42)) for seed in (0, 1))
    assert first != other


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_samples_come_from_disk_in_either_width(tmp_path, dtype):
    largest = np.iinfo(dtype).max
    ids = np.array([0, largest, 7, largest - 1, 5], dtype=dtype)
    ids.tofile(tmp_path / "tokens.bin")
    tokens = open_tokens(tmp_path / "tokens.bin", {"tokens": 5, "documents": 1, "text_bytes": 4, "dtype": dtype})
    samples = PackedSamples(tokens.ids, 2, samples=8, seed=0)
    seen = {tuple(samples[i]["input_ids"].tolist() + samples[i]["labels"].tolist()[-1:]) for i in range(8)}
    assert seen == {(0, largest, 7), (largest, 7, largest - 1)}


def test_torchs_loader_gives_whole_batches_in_order():
    samples = PackedSamples(np.arange(700), 16, samples=10, seed=0)
    batches = list(torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=whole_batch))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 16), (4, 16), (2, 16)]
    assert torch.cat([batch["input_ids"][:, 0] for batch in batches]).tolist() == starts(samples, range(10))


def test_a_text_of_less_than_two_samples_is_refused():
    assert len(PackedSamples(np.arange(17), 8, samples=5, seed=0)) == 5
    with pytest.raises(ValueError, match="16 tokens are not two samples of 8"):
        PackedSamples(np.arange(16), 8, samples=5, seed=0)


# ---------------------------------------------------------------------------------------------- a sample of texts


def test_a_sample_of_texts_is_spread_by_content():
    texts = sentences(2000)
    size = sum(len(text.encode()) for text in texts)
    sample = list(sample_of(texts, size, size // 4))
    assert len(sample) / 2000 == pytest.approx(0.25, abs=0.03)
    assert sample == [text for text in texts if text in set(sample)], "in order, and a text is in or out by itself"
    assert set(sample_of(texts[::-1], size, size // 4)) == set(sample)
    assert set(sample) < set(sample_of(texts, size, size // 2))
    assert list(sample_of(texts, size, size)) == texts
