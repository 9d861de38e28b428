"""Rows become conversations, preferences and questions; what is refused and where; which side a row is on."""

import json
import random
from pathlib import Path

import pytest

from llmkit.data.conversations import (
    MOST_PROBLEMS,
    Conversation,
    Preference,
    RowOptions,
    Rows,
    conversation_from,
    open_rows,
    preference_from,
    question_from,
    read_rows,
    split_rows,
)
from llmkit.data.sources import open_table
from llmkit.errors import UserError

PLACE = "chats.jsonl, line 7"


def system(content) -> dict:
    return {"role": "system", "content": content}


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


def chat(*contents: str) -> list[dict]:
    """User and assistant in turn."""
    return [(user, assistant)[number % 2](content) for number, content in enumerate(contents)]


def jsonl(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def problem_of(read, row: dict) -> str:
    with pytest.raises(UserError) as refused:
        read(row, PLACE)
    (problem,) = refused.value.problems
    assert problem.startswith(PLACE)
    return problem


# ---------------------------------------------------------------------------------------------- conversations


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": chat("Q", "A")}, chat("Q", "A")),
        ({"messages": chat("Q", "A", "R", "B")}, chat("Q", "A", "R", "B")),
        ({"messages": [system("S"), *chat("Q", "A")]}, [system("S"), *chat("Q", "A")]),
        ({"conversation": chat("Q", "A")}, chat("Q", "A")),
        (
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "A"},
                ]
            },
            [system("S"), *chat("Q", "A")],
        ),
        ({"messages": [user("Q") | {"name": "Ann"}, assistant("A")]}, chat("Q", "A")),  # other keys are nobody's
        ({"prompt": "Q", "completion": "A"}, chat("Q", "A")),
        ({"question": "Q", "answer": "A"}, chat("Q", "A")),
        ({"query": "Q", "response": "A"}, chat("Q", "A")),
        ({"prompt": [system("S"), user("Q")], "completion": [assistant("A")]}, [system("S"), *chat("Q", "A")]),
        ({"prompt": chat("Q", "A", "R"), "completion": "B"}, chat("Q", "A", "R", "B")),
        ({"instruction": "Do", "output": "A"}, chat("Do", "A")),
        ({"instruction": "Do", "input": "this", "output": "A"}, chat("Do\n\nthis", "A")),
        ({"instruction": "Do", "context": "this", "response": "A"}, chat("Do\n\nthis", "A")),
        ({"instruction": "Do", "input": "", "output": "A"}, chat("Do", "A")),
        ({"instruction": "Do", "input": " \n", "output": "A"}, chat("Do", "A")),
        ({"instruction": "Do", "input": None, "output": "A"}, chat("Do", "A")),
        ({"messages": chat("Q", "A"), "prompt": "X", "completion": "Y"}, chat("Q", "A")),  # the surer form wins
        ({"messages": chat(" Q\n", "\tA  b\n\nc ")}, chat("Q", "A  b\n\nc")),  # space around goes, inside it stays
        ({"prompt": "cafe\u0301", "completion": "nai\u0308ve"}, chat("café", "naïve")),
        ({"messages": chat("cafe\u0301", "A")}, chat("café", "A")),
    ],
)
def test_every_form_becomes_messages(row, expected):
    read = conversation_from(row, PLACE)
    assert list(read.messages) == expected
    assert read.place == PLACE
    assert list(read.prompt) == expected[:-1]
    assert read.answer == expected[-1]["content"]


def test_a_kind_is_kept_as_a_word():
    kinds = [
        conversation_from({"prompt": "Q", "completion": "A"} | more, PLACE).kind
        for more in ({}, {"kind": "why"}, {"kind": 3})
    ]
    assert kinds == [None, "why", "3"]


def test_what_makes_a_row_the_same_is_everything_but_the_last_answer():
    one, other = (conversation_from({"messages": chat("Q", "A", "R", answer)}, PLACE) for answer in "BC")
    assert one.identity == other.identity == "Q\nA\nR"
    assert one.identity != conversation_from({"messages": chat("Q", "Z", "R", "B")}, PLACE).identity


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, ["has the columns none", "messages or prompt+completion or instruction+output are needed"]),
        ({"text": "x", "n": 1}, ["has the columns text, n", "messages or prompt+completion"]),
        ({"prompt": "Q"}, ["has the columns prompt", "are needed"]),
        ({"messages": None}, ["messages is null", "leave the row out"]),
        ({"messages": "Q"}, ["messages must be a list like"]),
        ({"messages": []}, ["messages must be a list like"]),
        ({"messages": ["Q", "A"]}, ["messages must be a list like"]),
        ({"messages": [user("Q"), {"role": "tool", "content": "A"}]}, ["message 1", "the role is 'tool'", "system, user, assistant"]),
        ({"messages": [user("Q"), {"content": "A"}]}, ["message 1", "the role is None"]),
        ({"conversations": [{"from": "bot", "value": "A"}]}, ["message 0", "the role is 'bot'"]),
        ({"messages": chat(None, "A")}, ["message 0", "the content is null", "must be text"]),
        ({"messages": [{"role": "user"}, assistant("A")]}, ["message 0", "the content is null"]),
        ({"messages": chat("Q", 5)}, ["message 1", "the content is int"]),
        ({"messages": chat("Q", [{"type": "text", "text": "A"}])}, ["message 1", "the content is list"]),
        ({"messages": chat("Q", " \n")}, ["message 1", "the content is empty"]),
        ({"messages": chat("Q")}, ["no message is the assistant's", "nothing to learn"]),
        ({"messages": [system("S"), user("Q")]}, ["no message is the assistant's"]),
        ({"messages": chat("Q", "A", "R")}, ["ends with the user", "must be the assistant's answer"]),
        ({"messages": [user("Q"), user("R"), assistant("A")]}, ["message 1", "is the user's where the assistant's is expected"]),
        ({"messages": [user("Q"), assistant("A"), assistant("B")]}, ["message 2", "is the assistant's where the user's is expected"]),
        ({"messages": [assistant("A"), *chat("Q", "B")]}, ["message 0", "is the assistant's where the user's"]),
        ({"messages": [system("S"), assistant("A")]}, ["message 1", "is the assistant's where the user's"]),
        ({"messages": [*chat("Q", "A"), system("S"), *chat("R", "B")]}, ["message 2", "stands first or nowhere"]),
        ({"messages": [system("S"), system("T"), *chat("Q", "A")]}, ["message 1", "stands first or nowhere"]),
        ({"prompt": None, "completion": "A"}, ["prompt is null", "fill it in"]),
        ({"prompt": "Q", "completion": " "}, ["completion is empty", "fill it in"]),
        ({"prompt": 5, "completion": "A"}, ["prompt must hold text, found int"]),
        ({"question": None, "answer": "A"}, ["question is null"]),  # named as the file names it
        ({"instruction": None, "output": "A"}, ["instruction is null"]),
        ({"instruction": "Do", "output": ""}, ["output is empty"]),
        ({"instruction": "Do", "input": 3, "output": "A"}, ["input must hold text, found int"]),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_at_its_place(row, expected):
    problem = problem_of(conversation_from, row)
    assert all(part in problem for part in expected), problem


# ---------------------------------------------------------------------------------------------- preferences and questions


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, chat("Q")),
        ({"question": "Q", "chosen": "A", "rejected": "B"}, chat("Q")),
        ({"instruction": "Q", "chosen": "A", "rejected": "B"}, chat("Q")),
        ({"chosen": chat("Q", "A"), "rejected": chat("Q", "B")}, chat("Q")),
        ({"chosen": chat("P", "O", "Q", "A"), "rejected": chat("P", "O", "Q", "B")}, chat("P", "O", "Q")),
        ({"prompt": "Q", "chosen": chat("Q", "A"), "rejected": chat("Q", "B")}, chat("Q")),
        ({"prompt": [system("S"), user("Q")], "chosen": [assistant("A")], "rejected": [assistant("B")]}, [system("S"), user("Q")]),
    ],
)  # fmt: skip
def test_every_form_of_a_preference(row, prompt):
    read = preference_from(row, PLACE)
    assert list(read.prompt) == prompt
    assert (read.chosen, read.rejected) == ("A", "B")
    assert read.identity == "\n".join(message["content"] for message in prompt)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q", "chosen": "A"}, ["has the columns prompt, chosen", "chosen+rejected are needed"]),
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, ["chosen and rejected are equal ('A')", "leave the row out"]),
        ({"prompt": "Q", "chosen": "A", "rejected": " A\n"}, ["are equal"]),
        ({"prompt": "Q", "chosen": None, "rejected": "B"}, ["chosen is null"]),
        ({"prompt": "Q", "chosen": "A", "rejected": ""}, ["rejected is empty"]),
        ({"chosen": "A", "rejected": "B"}, ["has no prompt", "add a column prompt"]),
        ({"chosen": chat("Q", "A"), "rejected": chat("R", "B")}, ["must answer the same prompt"]),
        ({"prompt": "P", "chosen": chat("Q", "A"), "rejected": chat("Q", "B")}, ["must answer the same prompt"]),
        ({"prompt": "Q", "chosen": [user("A")], "rejected": "B"}, ["must end with the assistant's answer"]),
        ({"prompt": chat("Q", "A"), "chosen": "B", "rejected": "C"}, ["message 2", "is the assistant's where the user's"]),
    ],
)  # fmt: skip
def test_what_is_no_preference_is_refused_at_its_place(row, expected):
    problem = problem_of(preference_from, row)
    assert all(part in problem for part in expected), problem


def test_a_question_keeps_its_row_for_the_reward():
    row = {"prompt": "2 + 2 =", "solution": 4}
    read = question_from(row, PLACE)
    assert (list(read.prompt), read.columns) == (chat("2 + 2 ="), row)


def test_a_conversation_is_a_question_whose_answer_is_known():
    row = {"messages": [system("S"), *chat("Q", "A")]}
    read = question_from(row, PLACE)
    assert list(read.prompt) == [system("S"), user("Q")]
    assert read.columns == row | {"answer": "A"}
    assert question_from(row | {"answer": "B"}, PLACE).columns["answer"] == "B", (
        "a column of that name is the file's own"
    )
    assert list(question_from({"messages": chat("Q")}, PLACE).prompt) == chat("Q")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "x"}, ["has the columns text", "prompt or messages are needed"]),
        ({"prompt": None}, ["prompt is null"]),
        ({"prompt": chat("Q", "A")}, ["must end with the user's message"]),
        ({"prompt": [user("Q"), user("R")]}, ["message 1", "is the user's where the assistant's"]),
    ],
)
def test_what_is_no_question_is_refused_at_its_place(row, expected):
    problem = problem_of(question_from, row)
    assert all(part in problem for part in expected), problem


# ---------------------------------------------------------------------------------------------- whole files


def problems_in(file: Path, rows: list[dict]) -> list[str]:
    with pytest.raises(UserError) as refused:
        read_rows(open_table(str(jsonl(file, rows))), conversation_from)
    return refused.value.problems


def test_a_file_is_read_with_the_places_of_its_rows(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": chat("Q", "A")}, {"messages": chat("R", "B")}])
    rows = read_rows(open_table(str(file)), conversation_from)
    assert [(row.place, row.answer) for row in rows] == [(f"{file}, line 1", "A"), (f"{file}, line 2", "B")]


def test_several_problems_are_said_at_once(tmp_path):
    file = tmp_path / "a.jsonl"
    good = {"messages": chat("Q", "A")}
    bad = [{"messages": None}, {"messages": chat("Q")}, {"messages": chat("Q", None)}]
    problems = problems_in(file, [good, bad[0], good, bad[1], bad[2]])
    assert [problem.split(":")[0] for problem in problems] == [
        f"{file}, line 2",
        f"{file}, line 4",
        f"{file}, line 5, message 1",
    ]


@pytest.mark.parametrize("count", [MOST_PROBLEMS, MOST_PROBLEMS + 1, MOST_PROBLEMS + 13])
def test_no_more_problems_are_said_than_a_person_reads(tmp_path, count):
    problems = problems_in(tmp_path / "a.jsonl", [{"messages": None}] * count)
    assert all("messages is null" in problem for problem in problems[:MOST_PROBLEMS])
    more = count - MOST_PROBLEMS
    assert problems[MOST_PROBLEMS:] == ([f"and {more} more rows like these"] if more else [])


def test_mixed_forms_in_one_file_are_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"messages": chat("Q", "A")}, {"prompt": "Q", "completion": "A"}, {"text": "x"}]
    second, third = problems_in(file, rows)
    assert all(
        part in second for part in (f"{file}, line 2", "completion+prompt", f"{file}, line 1 has messages", "two files")
    )
    assert all(part in third for part in (f"{file}, line 3", "no known column"))


def test_optional_columns_make_no_other_form(tmp_path):
    rows = [{"instruction": "Do", "output": "A"}, {"instruction": "Do it", "input": "now", "output": "A", "kind": "x"}]
    read = read_rows(open_table(str(jsonl(tmp_path / "a.jsonl", rows))), conversation_from)
    assert [row.prompt[0]["content"] for row in read] == ["Do", "Do it\n\nnow"]


def test_a_file_without_rows_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="holds no row"):
        read_rows(open_table(str(tmp_path / "a.jsonl")), conversation_from)


# ---------------------------------------------------------------------------------------------- the sides


def conversations(count: int, seed: int = 0, words: int = 12) -> list[Conversation]:
    """Questions of random words, of which no two are nearly the same."""
    draw = random.Random(seed)
    return [
        Conversation(tuple(chat(" ".join(f"w{draw.randrange(100_000)}" for _ in range(words)), f"A{n}")), f"row {n}")
        for n in range(count)
    ]


def side_of(rows: list[Conversation], fraction: float = 0.2, seed: int = 0) -> dict[str, str]:
    train, held_out, _, _ = split_rows(rows, None, fraction, seed)
    return {row.identity: "train" for row in train} | {row.identity: "held out" for row in held_out}


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_row_never_changes_side_when_rows_are_added_or_reordered(fraction):
    old, new = conversations(300), conversations(500, seed=1)
    mixed = [*new[:250], *old, *new[250:]]
    random.Random(2).shuffle(mixed)
    before, after = side_of(old, fraction), side_of(mixed, fraction)
    assert {row.identity: after[row.identity] for row in old} == before
    share = list(after.values()).count("held out") / len(after)
    assert share == pytest.approx(fraction, abs=0.05)


def test_another_seed_holds_out_other_rows():
    rows = conversations(300)
    assert side_of(rows, seed=0) == side_of(rows, seed=0)
    assert side_of(rows, seed=0) != side_of(rows, seed=1)


def test_rows_with_one_prompt_stand_on_one_side():
    """Two answers to one question, or two preferences for one prompt: held out means that the question was never seen."""
    rows = conversations(200)
    again = [Conversation((*row.prompt, assistant("another")), "again") for row in rows]
    spaced = [Conversation((user(row.identity.replace(" ", "  ", 1)), assistant("third")), "spaced") for row in rows]
    train, held_out, copies, near = split_rows([*rows, *again, *spaced], None, 0.2, 0)
    words = [{tuple(row.identity.split()) for row in side} for side in (train, held_out)]
    assert not words[0] & words[1]
    assert (len(train) + len(held_out), copies, near) == (600, 0, 0)
    pairs = [Preference(row.prompt, f"good {n}", "bad", "x") for row in rows for n in range(2)]
    train, held_out, _, _ = split_rows(pairs, None, 0.2, 0)
    assert not {row.identity for row in train} & {row.identity for row in held_out}
    assert len(train) + len(held_out) == 400


def test_of_equal_rows_one_stays_wherever_they_stood():
    rows = conversations(50)
    doubled = [*rows, *(Conversation(row.messages, "elsewhere") for row in rows[:20])]
    train, held_out, copies, _ = split_rows(doubled, None, 0.2, 0)
    assert copies == 20
    assert len(train) + len(held_out) == 50
    assert "elsewhere" not in {row.place for row in (*train, *held_out)}


def nearly(row: Conversation) -> Conversation:
    """The same question with its last word changed."""
    return Conversation((user(" ".join([*row.identity.split()[:-1], "changed"])), assistant("near")), "near")


def test_training_rows_that_nearly_equal_a_held_out_one_are_left_out():
    rows, held_out = conversations(40), conversations(10, seed=1)
    train, kept, copies, near = split_rows([*rows, *map(nearly, held_out)], held_out, 0.1, 0)
    assert train == rows
    assert kept == held_out
    assert (copies, near) == (0, 10)


def test_a_split_of_its_own_leaves_no_near_copy_across():
    rows = conversations(200)
    near_rows = [nearly(row) for row in rows]
    train, held_out, _, near = split_rows([*rows, *near_rows], None, 0.3, 0)
    beginnings = [{" ".join(row.identity.split()[:-1]) for row in side} for side in (train, held_out)]
    assert not beginnings[0] & beginnings[1]
    assert near == 400 - len(train) - len(held_out) > 0


def test_held_out_rows_of_their_own_keep_their_prompts_out_of_training():
    """Short prompts have no five words to compare, so that equal ones are found by their hash."""
    rows = [Conversation(tuple(chat(f"Q {n}", "A")), f"row {n}") for n in range(10)]
    held_out = [Conversation(tuple(chat("Q  3", "another")), "held out")]
    train, kept, _, near = split_rows(rows, held_out, 0.1, 0)
    assert [row.place for row in train] == [f"row {n}" for n in range(10) if n != 3]
    assert (kept, near) == (held_out, 1)


# ---------------------------------------------------------------------------------------------- opening


def as_rows(rows: list[Conversation]) -> list[dict]:
    return [{"messages": list(row.messages)} for row in rows]


def test_rows_are_opened_split_and_counted(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", as_rows([*conversations(60), *conversations(5)]))
    opened = open_rows(RowOptions(data=str(file), validation_fraction=0.2), conversation_from)
    assert isinstance(opened, Rows)
    assert (opened.name, opened.format) == (str(file), "jsonl, 1 file")
    counts = opened.counts()
    assert counts["copies"] == 5
    assert counts["train_rows"] + counts["validation_rows"] + counts["near_copies"] == 60
    assert (counts["train_rows"], counts["validation_rows"]) == (len(opened.train), len(opened.validation))
    assert opened.fingerprints == {"data": opened.fingerprint, "validation_data": None}


def test_held_out_rows_may_be_a_file_of_their_own(tmp_path):
    data = jsonl(tmp_path / "a.jsonl", as_rows(conversations(20)))
    held_out = jsonl(tmp_path / "b.jsonl", as_rows(conversations(5, seed=1)))
    opened = open_rows(RowOptions(data=str(data), validation_data=str(held_out)), conversation_from)
    assert (len(opened.train), len(opened.validation)) == (20, 5)
    assert opened.fingerprints["validation_data"] == open_table(str(held_out)).fingerprint != opened.fingerprint


def test_all_that_is_wrong_with_options_and_files_is_said_at_once(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": None}])
    options = RowOptions(data=str(file), validation_data=str(tmp_path / "gone.jsonl"), validation_fraction=1.5)
    with pytest.raises(UserError) as refused:
        open_rows(options, conversation_from)
    fraction, row, gone = refused.value.problems
    assert "--validation_fraction 1.5" in fraction
    assert "line 1: messages is null" in row
    assert "--validation_data" in gone
    assert "no such file" in gone


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(tmp_path, fraction):
    file = jsonl(tmp_path / "a.jsonl", as_rows(conversations(20)))
    with pytest.raises(UserError, match="--validation_fraction"):
        open_rows(RowOptions(data=str(file), validation_fraction=fraction), conversation_from)


def test_a_split_with_an_empty_side_is_refused(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", as_rows(conversations(1)) * 3)
    with pytest.raises(UserError) as refused:
        open_rows(RowOptions(data=str(file)), conversation_from)
    assert all(part in str(refused.value) for part in ("3 rows leave none to", "2 are copies", "--validation_data"))


def test_plain_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("A tale.\n")
    with pytest.raises(UserError, match="is plain text, and rows with named columns are needed"):
        open_rows(RowOptions(data=str(tmp_path / "a.txt")), conversation_from)
