"""Which side a document is on, what is left out, and what the cache may answer."""

import dataclasses
import json
import lzma
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmkit.data import splits
from llmkit.data.duplicates import GramIndex, content_hash
from llmkit.data.sources import Source, open_source
from llmkit.data.splits import Split, default_validation_fraction, problems_of, split, xz_bits_per_byte
from llmkit.errors import UserError

TRAIN, VALIDATION = splits.TRAIN, splits.VALIDATION


def texts(count: int, seed: int = 0, words: int = 30) -> list[str]:
    """Documents of random words, of which no two are nearly the same."""
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(100_000)}" for _ in range(words)) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path):
    """A function that makes a source of the given texts."""

    def make(rows: list[str | None], name: str = "rows.jsonl") -> Source:
        file = tmp_path / name
        file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
        return open_source(str(file))

    return make


def side_of(sides: Split) -> dict[str, int]:
    """{text: its side}, for texts that stand in the source once."""
    return {text: int(side) for (_, text), side in zip(sides.source.rows(), sides.sides, strict=True)}


# ---------------------------------------------------------------------------------------------- sides


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_row_never_changes_side_when_rows_are_added_or_reordered(corpus, fraction):
    old, new = texts(300), texts(700, seed=1)
    mixed = [*new[:350], *old, *new[350:]]
    random.Random(2).shuffle(mixed)
    before = side_of(split(corpus(old, "old.jsonl"), validation_fraction=fraction))
    after = side_of(split(corpus(mixed, "mixed.jsonl"), validation_fraction=fraction))
    assert {text: after[text] for text in old} == before
    assert set(before.values()) == {TRAIN, VALIDATION}


def test_white_space_moves_no_row(corpus):
    rows = texts(100)
    before = split(corpus(rows, "a.jsonl"), validation_fraction=0.5)
    after = split(corpus([f"  {row}\n".replace(" ", "\n ") for row in rows], "b.jsonl"), validation_fraction=0.5)
    assert before.sides.tolist() == after.sides.tolist()


def test_a_larger_share_holds_out_more_and_moves_none_back(corpus):
    source = corpus(texts(2000))
    held_out = [
        {text for text, side in side_of(split(source, validation_fraction=share)).items() if side == VALIDATION}
        for share in (0.1, 0.2, 0.4)
    ]
    assert held_out[0] < held_out[1] < held_out[2]
    assert [len(side) / 2000 for side in held_out] == pytest.approx([0.1, 0.2, 0.4], abs=0.02)


def test_the_side_follows_from_the_hash_alone(corpus):
    rows = texts(200)
    sides = side_of(split(corpus(rows), validation_fraction=0.25, seed=7))
    assert sides == {row: VALIDATION if content_hash(row, 7) < 2**62 else TRAIN for row in rows}


def test_another_seed_holds_out_other_rows(corpus):
    source = corpus(texts(200))
    assert split(source, seed=0).sides.tolist() != split(source, seed=1).sides.tolist()


def test_train_and_validation_are_the_documents_in_order(corpus):
    rows = texts(100)
    sides = split(corpus(rows), validation_fraction=0.3)
    train, validation = list(sides.train()), list(sides.validation())
    assert sorted(train + validation, key=rows.index) == rows
    assert [train, validation] == [sorted(side, key=rows.index) for side in (train, validation)]
    assert (sides.train_documents, sides.validation_documents) == (len(train), len(validation))
    assert sides.train_bytes == sum(map(len, train))
    assert sides.validation_bytes == sum(map(len, validation))


def test_bytes_are_those_of_utf8(corpus):
    sides = split(corpus(["naïve 🙂"]), validation_fraction=0.0001)
    assert sides.train_bytes + sides.validation_bytes == len("naïve 🙂".encode()) == 11
    assert sides.length_percentiles == [11] * 7


@pytest.mark.parametrize(("size", "fraction"), [(0, 0.1), (80_000_000, 0.1), (80_000_001, 0.01)])
def test_the_default_share_is_a_tenth_or_of_a_large_corpus_a_hundredth(size, fraction):
    assert default_validation_fraction(size) == fraction


def test_empty_rows_are_counted_and_on_no_side(corpus):
    rows = texts(50)
    sides = split(corpus([None, "", *rows, " \n", ""]), validation_fraction=0.2)
    assert (sides.documents, sides.empty, sides.copies) == (54, 4, 0)
    assert sides.train_documents + sides.validation_documents == 50
    assert sides.length_percentiles[0] == min(map(len, rows))


# ---------------------------------------------------------------------------------------------- copies


def test_exact_copies_are_kept_once(corpus):
    rows = texts(40)
    copies = [rows[3], rows[3], f" {rows[7]}\n"]
    sides = split(corpus([*rows, *copies]), validation_fraction=0.3)
    assert sides.copies == 3
    assert sides.sides[40:].tolist() == [splits.COPY] * 3
    assert sorted([*sides.train(), *sides.validation()]) == sorted(rows)
    assert sides.sides[:40].tolist() == split(corpus(rows, "once.jsonl"), validation_fraction=0.3).sides.tolist()


WORDS = [f"held{n}" for n in range(12)]
HELD_OUT = " ".join(WORDS)  # 12 words, 8 grams of 5 words
OTHER = [f"other{n}" for n in range(200)]


@pytest.mark.parametrize(
    ("held_out", "train", "near"),
    [
        # 4 of 8 grams are shared by the first 8 words, 3 of 8 by the first 7.
        (HELD_OUT, [*WORDS[:8], *OTHER[:4]], True),
        (HELD_OUT, [*WORDS[:7], *OTHER[:5]], False),
        # The same share in two places: 2 grams of 6 words at the beginning and 2 at the end; or 2 and 1.
        (HELD_OUT, [*WORDS[:6], *OTHER[:3], *WORDS[6:]], True),
        (HELD_OUT, [*WORDS[:6], *OTHER[:3], *WORDS[7:]], False),
        # The shorter one counts, on either side: 8 of 8 grams in a text of 100 words, and the other way round.
        (HELD_OUT, [*OTHER[:44], *WORDS, *OTHER[44:88]], True),
        (" ".join([*OTHER[:44], *WORDS, *OTHER[44:88]]), WORDS, True),
        # A train document with 6 grams, shorter than the held-out one: 3 of 6 shared, and 2 of 6.
        (HELD_OUT, [*WORDS[:7], *OTHER[:3]], True),
        (HELD_OUT, [*WORDS[:6], *OTHER[:4]], False),
        # Two shared grams are a phrase, also where they are half of the four.
        (HELD_OUT, [*WORDS[:6], *OTHER[:2]], False),
        (HELD_OUT, [*WORDS[:7], *OTHER[:1]], True),
        # Distinct grams count: here 3 shared ones stand three times each, beside 4 that are not shared.
        (HELD_OUT, WORDS[:7] * 3, False),
        # Fewer than five words have no gram, and order matters.
        (HELD_OUT, WORDS[:4], False),
        (HELD_OUT, WORDS[::-1], False),
        # Case and punctuation are no words; letters of any script are.
        (HELD_OUT, [f"({word.upper()})," for word in WORDS], True),
        ("eine schöne Straße über die Brücke nach Köln", ["EINE SCHÖNE STRASSE", "über die Brücke nach Köln"], False),
        ("eine schöne Straße über die Brücke nach Köln", ["Eine schöne Straße über die Brücke nach Bonn"], True),
        ("в начале было слово и слово было у бога", ["В начале было слово, и слово было"], True),
    ],
)
def test_near_duplicates_share_half_of_the_grams_of_the_shorter(corpus, held_out, train, near):
    """Counted by hand: a document of n different words in a row has n - 4 grams."""
    sides = split(corpus([" ".join(train), *texts(5)]), corpus([held_out], "held_out.jsonl"))
    assert sides.near_copies == int(near)
    assert sides.sides.tolist() == [splits.NEAR_COPY if near else TRAIN] + [TRAIN] * 5


def test_near_duplicates_across_the_split_are_removed_from_train_and_counted(corpus):
    """Of two that are nearly the same both stay if they are on one side; on two sides, the held-out one stays."""
    pairs = [(text, f"{text} and a word more") for text in texts(100)]
    expected = {}
    for pair in pairs:
        held_out = [content_hash(text) < 2**63 for text in pair]
        for text, is_held_out in zip(pair, held_out, strict=True):
            expected[text] = VALIDATION if is_held_out else splits.NEAR_COPY if any(held_out) else TRAIN
    sides = split(corpus([text for pair in pairs for text in pair]), validation_fraction=0.5)
    assert side_of(sides) == expected
    assert sides.near_copies == list(expected.values()).count(splits.NEAR_COPY) > 30
    assert sides.train_documents == list(expected.values()).count(TRAIN) > 30


def test_near_duplicates_are_those_that_counting_finds():
    """Against sets of tuples, on documents of few words, which share grams in every number."""
    draw = random.Random(0)
    documents = [" ".join(draw.choices("abc", k=draw.randrange(0, 24))) for _ in range(400)]
    grams = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (text.split() for text in documents)]

    def near(one: set, other: set) -> bool:
        shared = len(one & other)
        return shared >= 3 and shared / min(len(one), len(other)) >= 0.5

    expected = [n for n in range(200, 400) if any(near(grams[n], grams[m]) for m in range(200))]
    found = dict(GramIndex(enumerate(documents[:200])).near_duplicates(enumerate(documents[200:], 200)))
    assert list(found) == expected
    assert all(near(grams[our], grams[their]) for our, their in found.items())
    assert 20 < len(expected) < 180


# ---------------------------------------------------------------------------------------------- validation_data


def test_validation_data_is_the_held_out_side(corpus):
    rows, held_out = texts(50), texts(5, seed=1)
    near = f"{held_out[1]} and a word more"
    source = corpus([*rows, held_out[0], near, rows[0], None])
    sides = split(source, corpus([*held_out, "", held_out[4]], "held_out.jsonl"))
    assert list(sides.train()) == rows, "every document trains but for copies"
    assert list(sides.validation()) == [*held_out, held_out[4]]
    assert sides.sides[50:].tolist() == [splits.COPY, splits.NEAR_COPY, splits.COPY, splits.EMPTY]
    assert (sides.copies, sides.near_copies, sides.empty) == (2, 1, 1)
    assert (sides.train_documents, sides.validation_documents) == (50, 6)
    assert sides.validation_bytes == sum(map(len, [*held_out, held_out[4]]))


# ---------------------------------------------------------------------------------------------- problems


def held_out_and_not(border: float, count: int) -> tuple[list[str], list[str]]:
    rows = texts(200)
    sides = (
        [r for r in rows if content_hash(r) < border * 2**64],
        [r for r in rows if content_hash(r) >= border * 2**64],
    )
    return sides[0][:count], sides[1][:count]


def test_a_corpus_with_two_sides_has_no_problem(corpus):
    held_out, train = held_out_and_not(0.5, 1)
    assert problems_of(split(corpus(held_out + train), validation_fraction=0.5)) == []
    assert problems_of(split(corpus(train), corpus(held_out, "held_out.jsonl"))) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([None, "", " \n"], ["no text", "3 rows"]),
        (["alone in the world"], ["one document of 18 bytes", "--validation_data"]),
        (["alone in the world", "alone in  the world", ""], ["one document of 18 bytes"]),
        (held_out_and_not(0.5, 3)[0], ["left to train on", "3 are held out", "--validation_fraction 0.5"]),
        (held_out_and_not(0.5, 3)[1], ["3 documents are too few", "0.5", "--validation_fraction", "--validation_data"]),
    ],
)
def test_a_corpus_without_two_sides_says_why_and_what_helps(corpus, rows, words):
    source = corpus(rows)
    (problem,) = problems_of(split(source, validation_fraction=0.5))
    assert problem.startswith(f"--data {source.name}: ")
    assert [word for word in words if word not in problem] == []


def test_a_small_share_is_not_said_to_be_nothing(corpus):
    (problem,) = problems_of(split(corpus(texts(20)), validation_fraction=0.0002))
    assert "20 documents are too few for a held-out side of 0.0002" in problem


def test_a_corpus_that_only_repeats_the_validation_data_is_refused(corpus):
    rows = texts(3)
    (problem,) = problems_of(split(corpus(rows), corpus(rows, "held_out.jsonl")))
    assert "left to train on" in problem
    assert "3 are copies" in problem


# ---------------------------------------------------------------------------------------------- cache


def unreadable(source: Source) -> Source:
    def rows():
        raise AssertionError("was read again")

    return dataclasses.replace(source, rows=rows)


def test_the_same_content_is_split_once_wherever_it_lies(corpus):
    source = corpus(texts(100, seed=3))
    first = split(source, validation_fraction=0.2)
    Path(source.name).with_name("moved").mkdir()
    moved = open_source(shutil.copy(source.name, Path(source.name).with_name("moved")))
    again = split(unreadable(moved), validation_fraction=0.2)
    assert again.sides.tolist() == first.sides.tolist()
    assert (again.counts(), again.length_percentiles) == (first.counts(), first.length_percentiles)


def test_fresh_does_not_read_the_cache(corpus):
    source = corpus(texts(100, seed=4))
    split(source)
    with pytest.raises(AssertionError, match="was read again"):
        split(unreadable(source), fresh=True)


def test_the_cache_is_never_used_for_other_content_or_options(corpus):
    rows = texts(100, seed=5)
    source, held_out = corpus(rows), corpus(rows[:3], "held_out.jsonl")
    split(source, validation_fraction=0.2)
    others = [
        (corpus([*rows, "one more"], "longer.jsonl"), {"validation_fraction": 0.2}),
        (corpus(rows[::-1], "backwards.jsonl"), {"validation_fraction": 0.2}),
        (source, {}),
        (source, {"validation_fraction": 0.3}),
        (source, {"validation_fraction": 0.2, "seed": 1}),
        (source, {"validation_fraction": 0.2, "validation_source": held_out}),
        (source, {"validation_fraction": 0.2, "validation_source": corpus(rows[:4], "other.jsonl")}),
    ]
    fingerprints = {split(source, validation_fraction=0.2).fingerprint}
    for other, options in others:
        cached, made = split(other, **options), split(other, **options, fresh=True)
        assert cached.sides.tolist() == made.sides.tolist()
        fingerprints.add(cached.fingerprint)
    assert len(fingerprints) == len(others) + 1


def test_a_file_that_was_changed_in_place_is_split_again(corpus):
    before = split(corpus(texts(100, seed=6)))
    after = split(corpus(texts(120, seed=6)))
    assert (before.documents, after.documents) == (100, 120)
    assert len(list(after.train())) == after.train_documents


# ---------------------------------------------------------------------------------------------- the xz baseline


def compressed(text: str) -> int:
    return len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def test_the_xz_baseline_is_what_the_held_out_text_adds(corpus):
    sides = split(corpus([f"Grüße an {text}" for text in texts(200, seed=7)]), validation_fraction=0.2)
    train, held_out = "".join(sides.train()), "".join(sides.validation())
    expected = 8 * (compressed(train + held_out) - compressed(train)) / len(held_out.encode())
    assert xz_bits_per_byte(sides) == expected
    assert 2 < expected < 4, "of words of five random digits"


def test_the_xz_baseline_is_kept_for_this_split_alone(corpus):
    source = corpus(texts(100, seed=8))
    one, other = split(source, validation_fraction=0.2), split(source, validation_fraction=0.2, seed=1)
    expected = [xz_bits_per_byte(one), xz_bits_per_byte(other)]
    assert expected[0] != expected[1]
    again = dataclasses.replace(one, source=unreadable(source))
    assert xz_bits_per_byte(again) == expected[0]


def test_the_xz_baseline_is_shown_the_end_of_a_long_training_text(corpus, monkeypatch):
    monkeypatch.setattr(splits, "_XZ_BYTES", 3000)
    sides = split(corpus(texts(200, seed=9)), validation_fraction=0.2)
    train, held_out = "".join(sides.train())[-3000:], "".join(sides.validation())
    assert sides.train_bytes > 4 * 3000
    assert xz_bits_per_byte(sides) == 8 * (compressed(train + held_out) - compressed(train)) / len(held_out)


def test_without_held_out_text_there_is_no_baseline(corpus):
    with pytest.raises(UserError, match=re.escape("there is no held-out text")):
        xz_bits_per_byte(split(corpus(held_out_and_not(0.5, 3)[1]), validation_fraction=0.5))


def test_the_sides_are_small_numbers(corpus):
    """One byte a document: a corpus of a hundred million documents keeps its sides in memory."""
    assert split(corpus(texts(10))).sides.dtype == np.uint8
