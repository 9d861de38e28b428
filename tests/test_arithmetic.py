"""The bundled arithmetic: right answers, and nothing of the test in what is taught."""

import re

import pytest

from llmkit.data.bundled import arithmetic
from llmkit.data.bundled.arithmetic import LARGEST, noisy, pairs, right_answer, training_rows
from llmkit.data.conversations import question_from

COUNT = 20_000  # nearly every question that there is


def seen(row) -> tuple[int, ...]:
    """The numbers that the model reads in a question, in no order."""
    return tuple(sorted(map(int, re.findall(r"\d+", row["messages"][0]["content"]))))


def question(row) -> str:
    return row["messages"][0]["content"]


def test_no_pair_of_the_test_is_taught():
    """Split by the pair as the question has it, 82 % of the differences of a test stood in train: they sort their numbers."""
    taught = {seen(row) for row in training_rows(COUNT)}
    asked = {seen(row) for row in arithmetic.test_rows()}
    assert all(len(numbers) == 2 for numbers in taught | asked)
    assert not taught & asked
    assert not {question(row) for row in training_rows(COUNT, seed=1)} & {
        question(row) for row in arithmetic.test_rows()
    }


def test_both_sides_together_are_all_pairs():
    every = {(a, b) for a in range(LARGEST + 1) for b in range(a, LARGEST + 1)}
    assert set(pairs("train")) | set(pairs("test")) == every
    assert len(pairs("train")) + len(pairs("test")) == len(every)
    assert 0.15 < len(pairs("test")) / len(every) < 0.25


@pytest.mark.parametrize("rows", [training_rows(3000), arithmetic.test_rows()], ids=["train", "test"])
def test_answers_are_right(rows):
    for row in rows:
        smaller, larger = seen(row)
        expected = {"add": smaller + larger, "subtract": larger - smaller, "maximum": larger}[row["kind"]]
        assert row["answer"] == row["messages"][-1]["content"] == str(expected)


def test_every_kind_is_asked_about_each_pair_of_the_test_once():
    rows = arithmetic.test_rows()
    asked = [(row["kind"], seen(row)) for row in rows]
    assert sorted(asked) == sorted((kind, pair) for kind in arithmetic.PHRASINGS for pair in pairs("test"))


def test_every_phrasing_is_taught_and_operands_come_in_both_orders():
    texts = [question(row) for row in training_rows(3000)]
    for wordings in arithmetic.PHRASINGS.values():
        for wording in wordings:
            shape = re.compile(re.sub(r"\\{\w+\\}", r"(\\d+)", re.escape(wording)))
            orders = [tuple(map(int, found.groups())) for text in texts if (found := shape.fullmatch(text))]
            assert orders, wording
            if "{first}" in wording:
                assert any(a < b for a, b in orders), wording
                assert any(a > b for a, b in orders), wording


def test_the_same_seed_gives_the_same_rows():
    assert training_rows(50, seed=3) == training_rows(50, seed=3) != training_rows(50, seed=4)
    assert arithmetic.test_rows() == arithmetic.test_rows()


def test_kinds_come_equally_often():
    kinds = [row["kind"] for row in training_rows(300)]
    assert {kind: kinds.count(kind) for kind in arithmetic.PHRASINGS} == dict.fromkeys(arithmetic.PHRASINGS, 100)


@pytest.mark.parametrize(("share", "wrong"), [(0.0, 0), (0.4, 120), (1.0, 300)])
def test_noise_makes_just_its_share_wrong(share, wrong):
    rows = training_rows(300)
    made = noisy(rows, share, seed=0)
    assert rows == training_rows(300)  # they are left as they were
    assert [question(row) for row in made] == [question(row) for row in rows]
    assert all(row["messages"][-1]["content"] == row["answer"] for row in made)
    assert sum(new["answer"] != old["answer"] for new, old in zip(made, rows, strict=True)) == wrong
    assert all(0 <= int(row["answer"]) <= 2 * LARGEST for row in made)


def test_rows_become_questions_with_their_answer():
    row = training_rows(1)[0]
    asked = question_from(row, "row 0")
    assert [message["role"] for message in asked.prompt] == ["user"]
    assert asked.columns["answer"] == row["answer"]


@pytest.mark.parametrize(("kind", "answer"), [("add", 15), ("subtract", 9), ("maximum", 12)])
def test_the_order_of_operands_changes_no_answer(kind, answer):
    assert right_answer(kind, 3, 12) == right_answer(kind, 12, 3) == answer
