"""Questions of arithmetic: what is asked can be checked, so a model can learn from rewards.

Two numbers from 0 to 29: their sum, the larger minus the smaller, or the larger of the two. A fifth of the pairs of numbers
belongs to the test, by a hash of the pair in no order: 3 + 12, 12 + 3, 12 - 3 and max(3, 12) all stand on one side. A split by the
numbers as the question has them would put 12 - 3 on one side and its 12 + 3 on the other, and since a difference sorts its
numbers anyway, most differences of such a test are taught word for word.
"""

import hashlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGEST = 29  # operand
TEST_SHARE = 0.2  # of pairs of operands

Row = dict[str, Any]  # {"messages", "kind", "answer"}, as in a .jsonl file of conversations

# {first} and {second} are the operands in either order.
PHRASINGS = {
    "add": (
        "What is {first} + {second}?",
        "{first} + {second} =",
        "Add {first} and {second}.",
        "What is {first} plus {second}?",
        "What is the sum of {first} and {second}?",
    ),
    "subtract": (
        "What is {larger} - {smaller}?",
        "{larger} - {smaller} =",
        "Subtract {smaller} from {larger}.",
        "What is {larger} minus {smaller}?",
        "What is the difference between {first} and {second}?",
    ),
    "maximum": (
        "What is the maximum of {first} and {second}?",
        "max({first}, {second}) =",
        "Which is larger, {first} or {second}?",
        "Give the larger of {first} and {second}.",
        "What is the larger number, {first} or {second}?",
    ),
}


def right_answer(kind: str, first: int, second: int) -> int:
    """The number that answers a question of a kind: "add", "subtract" (the larger minus the smaller) or "maximum"."""
    return {"add": first + second, "subtract": abs(first - second), "maximum": max(first, second)}[kind]


def is_test_pair(first: int, second: int) -> bool:
    """Whether questions about two numbers, in either order and of every kind, belong to the test."""
    smaller, larger = sorted((first, second))
    digest = hashlib.blake2b(f"{smaller} {larger}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < TEST_SHARE * 2**32


def pairs(side: str) -> list[tuple[int, int]]:
    """The pairs of a side, "train" or "test", smaller number first."""
    every = itertools.combinations_with_replacement(range(LARGEST + 1), 2)
    return [pair for pair in every if is_test_pair(*pair) == (side == "test")]


def training_rows(count: int, seed: int = 0) -> list[Row]:
    """Questions with their right answers; the same count and seed give the same rows.

    Kinds come equally often; pair, order and phrasing are drawn, so that a long list repeats some rows.
    """
    draw = random.Random(f"arithmetic train {seed}")
    taught, kinds = pairs("train"), list(PHRASINGS)
    return [_row(kinds[number % len(kinds)], draw.choice(taught), draw) for number in range(count)]


def test_rows() -> list[Row]:
    """One question of every kind about each pair of the test, mixed."""
    draw = random.Random("arithmetic test")
    rows = [_row(kind, pair, draw) for kind in PHRASINGS for pair in pairs("test")]
    draw.shuffle(rows)
    return rows


def noisy(rows: Sequence[Row], share: float, seed: int = 0) -> list[Row]:
    """The rows, a share of them with a wrong number for an answer.

    A model that is taught by them often knows better than it answers: what it samples is wrong where its likeliest answer is
    right. That is the headroom in which learning from rewards can be measured.

    Args:
        share: of rows that become wrong, from 0 to 1; exactly so many, up to rounding.
    """
    draw = random.Random(f"arithmetic noise {seed}")
    wrong = set(draw.sample(range(len(rows)), round(share * len(rows))))
    return [_answered(row, _wrong_number(row["answer"], draw)) if n in wrong else row for n, row in enumerate(rows)]


def fingerprint() -> str:
    """Of everything that the questions are made from: this file."""
    return hashlib.blake2b(Path(__file__).read_bytes(), digest_size=16).hexdigest()


def _row(kind: str, pair: tuple[int, int], draw: random.Random) -> Row:
    smaller, larger = pair
    first, second = draw.sample(pair, 2)
    question = draw.choice(PHRASINGS[kind]).format(first=first, second=second, smaller=smaller, larger=larger)
    row = {"messages": [{"role": "user", "content": question}], "kind": kind}
    return _answered(row, str(right_answer(kind, first, second)))


def _answered(row: Row, answer: str) -> Row:
    messages = [*row["messages"][:1], {"role": "assistant", "content": answer}]
    return row | {"messages": messages, "answer": answer}


def _wrong_number(right: str, draw: random.Random) -> str:
    return str(draw.choice([number for number in range(2 * LARGEST + 1) if str(number) != right]))
