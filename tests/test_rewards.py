"""Rewards: what the bundled ones give, how one is found, and what is said of one that is wrong."""

import numpy as np
import pytest

from llmkit.data.conversations import Question
from llmkit.errors import UserError
from llmkit.training import rewards
from llmkit.training.rewards import checked, correct_number, exact_match, load_reward, rewards_of, try_reward

QUESTIONS = [
    Question(({"role": "user", "content": f"What is {n} + 1?"},), {"answer": str(n + 1), "kind": "add"}, f"row {n}")
    for n in range(6)
]


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("17", "17", 1.0),
        ("17", 17, 1.0),
        ("17", 17.0, 1.0),
        ("017", "17", 1.0),
        ("3 + 14 = 17", "17", 1.0),
        ("The answer is 17.", "17", 1.0),
        ("17 or 18", "17", 0.0),  # the last one counts: listing numbers earns nothing
        ("18", "17", 0.0),
        ("1 7", "17", 0.0),
        ("170", "17", 0.0),
        ("-17", "17", 0.0),
        ("-17", "-17", 1.0),
        ("−17", "-17", 1.0),
        ("20-3", "3", 1.0),  # a minus between numbers belongs to neither
        ("$1,234.50", "1234.5", 1.0),
        ("So: 60 / 4\n#### 15", "#### 15", 1.0),
        ("", "17", 0.0),
        ("I do not know.", "17", 0.0),
    ],
)
def test_correct_number(completion, answer, reward):
    assert correct_number([completion], [answer]) == [reward]


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [("a  b\n", "a b", 1.0), ("a b", "A b", 0.0), ("a", "a b", 0.0), ("", "a", 0.0), ("7", 7, 1.0)],
)
def test_exact_match(completion, answer, reward):
    assert exact_match([completion], [answer]) == [reward]


def test_there_is_no_credit_in_between():
    texts = ["16", "17", "17.0001", "1", "7", "-17", "seventeen"]
    assert set(correct_number(texts, ["17"] * len(texts))) == {0.0, 1.0}


# ---------------------------------------------------------------------------------------------- finding one


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Point:\n    x: int = 0\n\n"
        "LIMIT = 3\n\ndef short(completions, **columns):\n    return [float(len(text) < LIMIT) for text in completions]\n"
    )
    return path


def test_a_reward_by_name_and_from_a_file(file):
    assert load_reward("correct_number") is correct_number
    assert load_reward(f"{file}:short")(completions=["ab", "abcd"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("correct_nubmer", "did you mean correct_number?"),
        ("{file}", "write {file}:FUNCTION"),
        ("{folder}/my_reward.py:short", "did you mean my_rewards.py?"),
        ("{folder}/nowhere/rewards.py:short", "there is no file"),
        (":short", "there is no file"),
        ("{folder}:short", "there is no file"),
        ("{file}:shrot", "did you mean short?"),
        ("{file}:", "has no function"),
        ("{file}:LIMIT", "LIMIT is int and cannot be called"),
    ],
)
def test_what_cannot_be_found_is_refused(file, text, said):
    place = {"file": file, "folder": file.parent}
    with pytest.raises(UserError, match="--reward") as refused:
        load_reward(text.format(**place))
    assert said.format(**place) in str(refused.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def short(:\n", "SyntaxError"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("import sys\nsys.exit(3)\n", "SystemExit"),
    ],
)
def test_a_file_that_fails_is_refused(tmp_path, code, said):
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(UserError, match="cannot be imported") as refused:
        load_reward(f"{tmp_path}/broken.py:short")
    assert said in str(refused.value)


def test_the_line_of_a_file_that_fails_is_said(tmp_path):
    (tmp_path / "broken.py").write_text("a = 1\n\nb = a / 0\n")
    with pytest.raises(UserError, match="line 3"):
        load_reward(f"{tmp_path}/broken.py:short")


def test_another_file_is_another_reward(file):
    before = rewards.reward_fingerprint(f"{file}:short")
    assert before != rewards.reward_fingerprint(f"{file}:other")
    file.write_text(file.read_text().replace("LIMIT = 3", "LIMIT = 4"))
    assert before != rewards.reward_fingerprint(f"{file}:short")
    assert rewards.reward_fingerprint("exact_match") == "exact_match"


# ---------------------------------------------------------------------------------------------- calling it


def raises(completions, **columns):
    return [float(int(text)) for text in completions]


def nan(completions, **columns):
    return [float("nan") if text == "7" else 1.0 for text in completions]


def infinite(completions, **columns):
    return [float("inf")] * len(completions)


def nothing_for_some(completions, **columns):
    return [None if text == "7" else 1.0 for text in completions]


def nothing(completions, **columns):
    pass


def one_too_many(completions, **columns):
    return [0.0] * (len(completions) + 1)


def one_for_all(completions, **columns):
    return 1.0


def words(completions, **columns):
    return ["1.0"] * len(completions)


def a_missing_column(completions, right, **columns):
    return [0.0] * len(completions)


def no_columns(completions):
    return [0.0] * len(completions)


def raises_for_many(completions, **columns):
    if len(completions) > 1:
        raise RuntimeError("one at a time")
    return [0.0]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (raises, ["ValueError", "for the answer ''", "return 0.0"]),
        (nan, ["returned nan for the answer '7'", "return 0.0"]),
        (infinite, ["returned inf for the answer ''"]),
        (nothing_for_some, ["returned None for the answer '7'", "return 0.0"]),
        (nothing, ["returned None (NoneType)", "a list with one number for each"]),
        (one_too_many, ["returned 25 numbers for 24 answers", "one for each"]),
        (one_for_all, ["returned 1.0 (float)"]),
        (words, ["returned '1.0' for the answer ''"]),
        (a_missing_column, ["TypeError", "right", "(completions, **columns)", "answer, kind"]),
        (no_columns, ["TypeError", "(completions, **columns)"]),
        (raises_for_many, ["RuntimeError: one at a time", "for 24 answers together"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_reward_is_found_before_a_model_is_loaded(reward, said):
    with pytest.raises(UserError) as refused:
        try_reward(checked(reward), QUESTIONS)
    assert refused.value.problems[0].startswith(f"--reward {reward.__name__}: ")
    for words_ in said:
        assert words_ in refused.value.problems[0]


def test_the_line_of_a_reward_that_raises_is_said(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def first(completions, **columns):\n    return [text[0] for text in completions]\n"
    )
    with pytest.raises(UserError, match=r"mine\.py, line 2"):
        try_reward(checked(load_reward(f"{tmp_path}/mine.py:first")), QUESTIONS)


@pytest.mark.parametrize("reward", [correct_number, exact_match])
def test_the_bundled_rewards_pass(reward):
    try_reward(checked(reward), QUESTIONS)


def test_numbers_of_other_kinds_become_floats():
    def several(completions, **columns):
        return np.array([True, 2, 0.5])[: len(completions)]

    assert checked(several)(completions=["a", "b", "c"]) == [1.0, 2.0, 0.5]
    assert checked(lambda completions, **columns: (True, False))(completions=["a", "b"]) == [1.0, 0.0]


def test_a_reward_sees_the_columns_of_its_rows():
    def look(completions, **columns):
        found.update(columns)
        return [0.0] * len(completions)

    found = {}
    other = Question(({"role": "user", "content": "b"},), {"answer": 2, "further": [1]}, "row")
    rewards_of(look, [QUESTIONS[0], other], ["x", "y"])
    assert found["answer"] == ["1", 2]
    assert found["further"] == [None, [1]]
    assert found["prompts"] == [list(QUESTIONS[0].prompt), list(other.prompt)]


def test_rows_without_an_answer_are_refused_by_the_bundled_rewards():
    question = Question(({"role": "user", "content": "Say something."},), {"prompt": "Say something."}, "row")
    with pytest.raises(UserError, match="answer"):
        try_reward(checked(correct_number), [question])
