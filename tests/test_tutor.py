"""The tutor's conversations: nothing of the tests is taught, every answer is the handbook's, and shares are kept."""

import itertools
from collections import Counter

import pytest

from llmkit.data.bundled import tutor
from llmkit.data.bundled.handbook import read_handbook
from llmkit.data.bundled.tutor import REFUSAL, SHARES, answer, comparison_of, normal, related_to, why_of, wordings
from llmkit.data.conversations import ROLES, tutor_rows

TERMS = {term.term: term for term in read_handbook()}
COUNT = 24_000  # as the recipe takes them
PHRASINGS = tutor._file("phrasings")
SMALL_TALK = tutor._file("small_talk")
OFF_TOPIC = tutor._file("off_topic")


@pytest.fixture(scope="module")
def train() -> list[dict]:
    return tutor.training_rows(COUNT, 0)


@pytest.fixture(scope="module")
def held_out() -> list[dict]:
    return tutor.test_rows()


@pytest.fixture(scope="module")
def blind() -> list[dict]:
    return tutor.blind_rows()


def last_question(row: dict) -> str:
    return normal(row["messages"][-2]["content"])


def said_by(role: str, rows: list[dict]) -> list[str]:
    return [message["content"] for row in rows for message in row["messages"] if message["role"] == role]


@pytest.fixture(scope="module")
def taught(train) -> set[str]:
    """Everything that a user says in training, as letters and digits."""
    return set(map(normal, said_by("user", train)))


# ---------------------------------------------------------------------------------------------- no leak


def test_no_question_of_a_test_is_taught(taught, held_out, blind):
    assert {last_question(row) for row in held_out} & taught == set()
    assert {last_question(row) for row in blind} & taught == set()


@pytest.mark.parametrize("seed", [1, 2])
def test_nor_with_another_seed(held_out, blind, seed):
    taught = set(map(normal, said_by("user", tutor.training_rows(COUNT // 4, seed))))
    assert {last_question(row) for row in [*held_out, *blind]} & taught == set()


def test_pairs_of_terms_in_the_test_are_never_compared_in_training_in_either_order(train, held_out):
    """Found by the answers, which are what the model sees: a split by ordered operands once leaked most of one kind."""
    pair_of = {comparison_of(a, b): frozenset((a.term, b.term)) for a, b in itertools.permutations(TERMS.values(), 2)}
    pairs = {
        name: {pair_of[said] for said in said_by("assistant", rows) if said in pair_of}
        for name, rows in {"train": train, "test": held_out}.items()
    }
    assert len(pairs["train"]) > 500
    assert len(pairs["test"]) > 50
    assert pairs["train"] & pairs["test"] == set()
    for first, second in (tuple(pair) for pair in pairs["test"]):
        assert tutor.is_test_pair(first, second)
        assert tutor.is_test_pair(second, first)


LISTS = [
    *(("phrasings", kind) for kind in PHRASINGS),
    *(("small_talk", topic) for topic in SMALL_TALK),
    *(("off_topic", key) for key in ("subjects", "questions")),
]


@pytest.mark.parametrize(("name", "key"), LISTS, ids=lambda value: value)
def test_no_wording_of_the_test_is_one_of_training(name, key):
    sides = {side: wordings(name, key, side) for side in ("train", "test")}
    normals = {side: set(map(normal, texts)) for side, texts in sides.items()}
    assert normals["train"] & normals["test"] == set()
    assert min(map(len, sides.values())) >= 1
    every = SMALL_TALK[key]["wordings"] if name == "small_talk" else tutor._file(name)[key]
    assert Counter(sides["train"]) + Counter(sides["test"]) == Counter(every)


def test_about_a_tenth_of_all_wordings_is_the_tests():
    counts = {side: sum(len(wordings(name, key, side)) for name, key in LISTS) for side in ("train", "test")}
    assert counts["test"] / sum(counts.values()) == pytest.approx(tutor.TEST_SHARE, abs=0.02)


@pytest.mark.parametrize("kind", ["definition", "why", "related", "follow_up_definition"])
def test_no_held_out_phrasing_is_taught_with_any_term(taught, kind):
    """Another phrasing may turn into a held-out one by an article, a missing apostrophe or another name of the term."""
    names = [name for term in TERMS.values() for name in (term.term, *term.aliases)]
    filled = {normal(wording.format(term=name)) for wording in wordings("phrasings", kind, "test") for name in names}
    assert len(filled) > len(TERMS)
    assert filled & taught == set()


@pytest.mark.parametrize("kind", ["follow_up_why", "follow_up_related", "repeat"])
def test_no_held_out_follow_up_is_taught(taught, kind):
    assert {normal(text) for text in wordings("phrasings", kind, "test")} & taught == set()


def test_no_held_out_small_talk_or_question_is_taught(taught):
    for topic in SMALL_TALK:
        assert set(map(normal, wordings("small_talk", topic, "test"))) & taught == set()
    assert set(map(normal, wordings("off_topic", "questions", "test"))) & taught == set()


def test_no_held_out_subject_is_taught(taught):
    """Refusals have a subject that training never names, so that they are more than recall."""
    said = " | ".join(f" {text} " for text in taught)
    subjects = {normal(subject) for subject in wordings("off_topic", "subjects", "test")}
    known = {normal(name) for term in TERMS.values() for name in (term.term, *term.aliases)}
    assert not subjects & known
    train_side = " | ".join(f" {normal(text)} " for key in OFF_TOPIC for text in wordings("off_topic", key, "train"))
    of_others = {subject for subject in subjects if f" {subject} " in train_side}  # a word of a longer subject
    assert [subject for subject in subjects - of_others if f" {subject} " in said] == []


# ---------------------------------------------------------------------------------------------- right answers


RIGHT = {
    "definition": {term.definition for term in TERMS.values()},
    "why": {why_of(term) for term in TERMS.values()},
    "related": {related_to(term) for term in TERMS.values()},
    "comparison": {comparison_of(a, b) for a, b in itertools.permutations(TERMS.values(), 2)},
    "small_talk": {topic["answer"] for topic in SMALL_TALK.values()},
    "refusal": {REFUSAL},
}
RIGHT["follow_up"] = set().union(*(RIGHT[kind] for kind in ("definition", "why", "related", "small_talk", "refusal")))


@pytest.mark.parametrize("side", ["train", "held_out", "blind"])
def test_every_answer_is_the_handbooks(request, side):
    every = set().union(*RIGHT.values())
    for row in request.getfixturevalue(side):
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert set(roles) <= set(ROLES)
        assert row["messages"][-1]["content"] in RIGHT[row["kind"]]
        assert {m["content"] for m in row["messages"] if m["role"] == "assistant"} <= every


@pytest.mark.parametrize("kind", ["definition", "why", "related"])
@pytest.mark.parametrize("side", ["train", "held_out"])
def test_the_answer_is_about_the_term_that_is_asked_for(request, side, kind):
    """But for those whose name a slip has hit."""
    term_of = {answer(kind, [name]): term for name, term in TERMS.items()}
    rows = [row for row in request.getfixturevalue(side) if row["kind"] == kind]
    named = 0
    for row in rows:
        term = term_of[row["messages"][-1]["content"]]
        named += any(normal(name) in last_question(row) for name in (term.term, *term.aliases))
    assert named / len(rows) > 0.85


def test_no_two_terms_have_the_same_answer():
    assert all(len(RIGHT[kind]) == len(TERMS) for kind in ("definition", "why", "related"))
    assert len(RIGHT["small_talk"]) == len(SMALL_TALK)


def test_answers_by_kind():
    first, second = list(TERMS)[:2]
    assert answer("definition", [first]) == TERMS[first].definition
    assert answer("why", [first]) == f"Why {first} matters: {TERMS[first].why}"
    both = f"{TERMS[first].definition} {TERMS[second].definition}"
    assert answer("comparison", [first, second]) == f"Comparing {first} and {second}: {both}"
    assert answer("small_talk", ["greeting"]) == SMALL_TALK["greeting"]["answer"]
    assert answer("refusal", []) == REFUSAL
    related = answer("related", [first])
    assert all(name in related for name in TERMS[first].related)
    assert related.lower().startswith(f"{first.lower()} is related to ")


# ---------------------------------------------------------------------------------------------- the rows


def test_the_same_seed_gives_the_same_rows(train):
    assert tutor.training_rows(500, 3) == tutor.training_rows(500, 3)
    assert tutor.training_rows(500, 3) != tutor.training_rows(500, 4)
    assert len(train) == COUNT
    assert tutor.test_rows() == tutor.test_rows()


def test_kinds_come_in_their_shares(train):
    assert sum(SHARES.values()) == pytest.approx(1)
    counts = Counter(row["kind"] for row in train)
    assert {kind: count / COUNT for kind, count in counts.items()} == pytest.approx(SHARES, abs=0.02)


def test_every_term_is_taught_equally_often(train):
    for kind in ("definition", "why", "related"):
        counts = Counter(row["messages"][-1]["content"] for row in train if row["kind"] == kind)
        assert counts.keys() == RIGHT[kind]
        assert max(counts.values()) <= 1.5 * min(counts.values())


def test_people_type_in_many_ways(train):
    questions = said_by("user", train)
    assert len(set(questions)) > 0.7 * len(questions)
    shares = [sum(map(rule, questions)) / len(questions) for rule in (str.islower, lambda text: text.endswith("?"))]
    assert all(0.2 < share < 0.9 for share in shares), shares


def test_there_are_conversations_of_several_turns(train, held_out):
    for rows in (train, held_out):
        turns = Counter(len(row["messages"]) // 2 for row in rows if row["kind"] == "follow_up")
        assert min(turns) >= 2
    assert max(len(row["messages"]) // 2 for row in train) >= 3


def test_the_test_asks_for_every_term(held_out):
    counts = Counter(row["kind"] for row in held_out)
    assert counts["definition"] == 2 * len(TERMS)
    assert counts["why"] == counts["related"] == len(TERMS) // 2
    assert counts["comparison"] == counts["follow_up"] == 128
    definitions = Counter(row["messages"][-1]["content"] for row in held_out if row["kind"] == "definition")
    assert set(definitions.values()) == {2}
    assert counts["small_talk"] == sum(len(wordings("small_talk", topic, "test")) for topic in SMALL_TALK)
    outside = sum(len(wordings("off_topic", key, "test")) for key in ("subjects", "questions"))
    assert counts["refusal"] == outside


# ---------------------------------------------------------------------------------------------- the blind questions


def test_there_are_at_least_60_blind_questions_of_every_kind(blind):
    assert len(blind) == len(tutor._file("blind")) >= 60
    assert {row["kind"] for row in blind} >= {"definition", "why", "related", "comparison", "small_talk", "refusal"}
    assert len({last_question(row) for row in blind if len(row["messages"]) == 2}) == sum(
        len(row["messages"]) == 2 for row in blind
    )


def test_every_blind_question_has_the_answer_that_its_file_names(blind):
    for entry, row in zip(tutor._file("blind"), blind, strict=True):
        assert row["kind"] == entry["kind"]
        assert row["messages"][-1]["content"] == answer(entry["kind"], entry["terms"])
        assert len(row["messages"]) == 2 * len(entry["turns"])
        if entry["kind"] not in ("small_talk", "refusal"):
            assert set(entry["terms"]) <= TERMS.keys()


def test_an_earlier_turn_has_the_answer_of_the_term_that_it_names(blind):
    for row in blind:
        for question, said in zip(row["messages"][:-2:2], row["messages"][1:-2:2], strict=True):
            about = [
                term for term in TERMS.values() if said["content"] in (term.definition, why_of(term), related_to(term))
            ]
            assert said["content"] in RIGHT["small_talk"] or any(
                f" {normal(name)} " in f" {normal(question['content'])} "
                for term in about
                for name in (term.term, *term.aliases)
            ), question["content"]


# ---------------------------------------------------------------------------------------------- as the recipe takes them


def test_the_recipe_gets_them_as_conversations(held_out, blind):
    rows = tutor_rows(200, 0)
    assert (rows.name, len(rows.train), len(rows.validation)) == ("bundled", 200, len(held_out))
    assert [row.answer for row in rows.further["blind"]] == [row["messages"][-1]["content"] for row in blind]
    assert [list(row.messages) for row in rows.train] == [
        [message | {"content": message["content"].strip()} for message in row["messages"]]
        for row in tutor.training_rows(200, 0)
    ]
    assert rows.fingerprint == tutor_rows(200, 0).fingerprint != tutor_rows(200, 1).fingerprint
    assert all(row.kind for row in (*rows.train, *rows.validation))
