"""What the bundled tutor is taught and tested on: conversations made from the handbook.

A question is a phrasing filled with a term, typed as people type: with and without capitals and punctuation, with a slip
now and then. The answer is a fixed text of the handbook, so that a right answer can be told from a wrong one.

What the test asks is never taught: a tenth of the phrasings, of the small talk, of the subjects outside the handbook and of the
pairs of terms to compare belong to it, by their hashes, and a training question that reads like a test question after all
(letters and digits alone, in lower case) is left out. `blind.yaml` is a second test, written by hand by somebody who had not seen the phrasings, before the
first tutor was trained.
"""

import functools
import hashlib
import random
import re
from pathlib import Path
from typing import Any

from llmkit.data.bundled.handbook import Term, read_handbook

REFUSAL = "That is not in my handbook. Ask me about a term on the road from zero to language models."
# Shares of the training conversations. What a term means, why it matters and what it is related to are as many texts to learn
# each; refusals need many examples, since what the handbook lacks has nothing else in common.
SHARES = {
    "definition": 0.26,
    "why": 0.16,
    "related": 0.13,
    "comparison": 0.08,
    "follow_up": 0.13,
    "small_talk": 0.09,
    "refusal": 0.15,
}
TEST_SHARE = 0.1  # of phrasings, subjects and pairs of terms; what belongs to the test is never taught

Row = dict[str, Any]  # {"messages", "kind"}, as in a .jsonl file of conversations


# ---------------------------------------------------------------------------------------------- right answers


# An answer that could begin with anything begins with what it is about: a small model first finds the name, and then what it
# knows of it.


def definition_of(term: Term) -> str:
    return term.definition


def why_of(term: Term) -> str:
    return f"Why {term.term} matters: {term.why}"


def related_to(term: Term) -> str:
    *most, last = term.related
    return f"{term.term[0].upper()}{term.term[1:]} is related to {', '.join(most)} and {last}."


def comparison_of(first: Term, second: Term) -> str:
    return f"Comparing {first.term} and {second.term}: {first.definition} {second.definition}"


def answer(kind: str, terms: list[str]) -> str:
    """The right answer to a question of a kind.

    Args:
        kind: "definition", "why", "related", "comparison", "small_talk" or "refusal".
        terms: the handbook's terms that it is about, or the topic of the small talk.
    """
    if kind == "refusal":
        return REFUSAL
    if kind == "small_talk":
        return _file("small_talk")[terms[0]]["answer"]
    entries = [_terms()[term] for term in terms]
    if kind == "comparison":
        return comparison_of(*entries)
    return {"definition": definition_of, "why": why_of, "related": related_to}[kind](entries[0])


# ---------------------------------------------------------------------------------------------- the sides


def training_rows(count: int, seed: int = 0) -> list[Row]:
    """Conversations to learn from; the same count and seed give the same rows.

    Kinds come in the proportions of `SHARES`, and every term comes equally often in each.
    """
    draw = random.Random(f"train {seed}")
    held_out = _held_out()
    makers = _Makers("train", draw)
    rows: list[Row] = []
    kinds, shares = list(SHARES), list(SHARES.values())
    while len(rows) < count:
        row = makers.make(draw.choices(kinds, shares)[0])
        if not any(normal(m["content"]) in held_out for m in row["messages"] if m["role"] == "user"):
            rows.append(row)
    return rows


def test_rows() -> list[Row]:
    """Questions with held-out phrasings, pairs and subjects: two definitions of every term, a why and a related-to of every
    second one, 128 comparisons, 128 follow-ups, all the small talk and all the subjects outside the handbook."""
    makers = _Makers("test", random.Random("test"))
    terms = len(_terms())
    counts = {"definition": 2 * terms, "why": terms // 2, "related": terms // 2, "comparison": 128, "follow_up": 128}
    rows = [makers.make(kind) for kind, count in counts.items() for _ in range(count)]
    for topic in _file("small_talk"):
        texts = wordings("small_talk", topic, "test")
        rows += [_row("small_talk", (makers.typed(text), answer("small_talk", [topic]))) for text in texts]
    rows += [makers.refusal(subject=subject) for subject in wordings("off_topic", "subjects", "test")]
    rows += [_row("refusal", (makers.typed(text), REFUSAL)) for text in wordings("off_topic", "questions", "test")]
    return rows


def blind_rows() -> list[Row]:
    """The questions written by hand. An earlier turn of a conversation has its right answer already: the definition of the
    term that it names, unless the file says what else it is."""
    rows = []
    for entry in _file("blind"):
        *earlier, last = entry["turns"]
        turns = []
        for turn in earlier:
            if isinstance(turn, dict):
                (kind, name), (_, text) = turn.items()
                turns.append((text, answer(kind, [name])))
            else:
                turns.append((turn, definition_of(_named_in(turn))))
        rows.append(_row(entry["kind"], *turns, (last, answer(entry["kind"], entry["terms"]))))
    return rows


def _named_in(text: str) -> Term:
    """The handbook's term with the longest name in a text."""
    spoken = f" {normal(text)} "
    names = [(name, term) for term in _terms().values() for name in (term.term, *term.aliases)]
    return _terms()[max((len(name), term.term) for name, term in names if f" {normal(name)} " in spoken)[1]]


def normal(text: str) -> str:
    """A question as it is compared across the sides: its letters and digits in lower case, as words."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


@functools.cache
def _held_out() -> frozenset[str]:
    """What training never asks, normalised: the last questions of both tests, and the test's phrasings with any term."""
    asked = {normal(row["messages"][-2]["content"]) for row in [*test_rows(), *blind_rows()]}
    names = [name for term in _terms().values() for name in (term.term, *term.aliases)]
    for kind in ("definition", "why", "related", "follow_up_definition"):
        asked |= {normal(text.format(term=name)) for text in wordings("phrasings", kind, "test") for name in names}
    return frozenset(asked)


def is_test_pair(first: str, second: str) -> bool:
    """Whether a comparison of two terms, in either order, belongs to the test."""
    return _is_of_test("\0".join(sorted((first, second))))


def wordings(name: str, key: str, side: str) -> list[str]:
    """Wordings of a side.

    Args:
        name: "phrasings", "small_talk" or "off_topic".
        key: a list of that file: a kind of question, a topic, "subjects" or "questions".
        side: "train" or "test".
    """
    entries = _file(name)[key]
    entries = entries["wordings"] if name == "small_talk" else entries
    return [text for text in entries if _is_of_test(normal(text)) == (side == "test")]


def _is_of_test(text: str) -> bool:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) < TEST_SHARE * 2**32


# ---------------------------------------------------------------------------------------------- conversations


class _Makers:
    """Makes conversations of each kind from the wordings of one side.

    Args:
        side: "train" or "test".
        draw: where every choice comes from.
    """

    def __init__(self, side: str, draw: random.Random):
        self.side, self.draw = side, draw
        self.wordings = {kind: wordings("phrasings", kind, side) for kind in _file("phrasings")}
        self.topics = {topic: wordings("small_talk", topic, side) for topic in _file("small_talk")}
        self.outside = {what: wordings("off_topic", what, side) for what in ("subjects", "questions")}
        self._upcoming: dict[str, list[Term]] = {}

    def make(self, kind: str) -> Row:
        return getattr(self, kind)()

    def definition(self) -> Row:
        term = self.next_term("definition")
        return _row("definition", (self.question("definition", term), definition_of(term)))

    def why(self) -> Row:
        term = self.next_term("why")
        return _row("why", (self.question("why", term), why_of(term)))

    def related(self) -> Row:
        term = self.next_term("related")
        return _row("related", (self.question("related", term), related_to(term)))

    def comparison(self) -> Row:
        first = self.next_term("comparison")
        near = [_terms()[name] for name in first.related]
        while True:
            second = self.draw.choice(near) if self.draw.random() < 0.5 else self.draw.choice(list(_terms().values()))
            if second is not first and is_test_pair(first.term, second.term) == (self.side == "test"):
                break
            near = list(_terms().values())  # no neighbour may belong to this side
        if self.draw.random() < 0.5:
            first, second = second, first
        text = self.fill(self.draw.choice(self.wordings["comparison"]), first=first, second=second)
        return _row("comparison", (self.typed(text), comparison_of(first, second)))

    def follow_up(self) -> Row:
        """Two or three turns, the later ones without the term's name."""
        train = wordings("phrasings", "definition", "train")  # the turns before the test's question are nothing new
        term = self.next_term("follow_up")
        turns = [(self.typed(self.fill(self.draw.choice(train), term=term)), definition_of(term))]
        for number in range(2 if self.draw.random() < 0.35 else 1):
            last = number == 1 or self.side == "test"
            kind = self.draw.choices(("why", "related", "definition", "repeat"), (4, 4, 3, 0.6 if last else 0))[0]
            if kind == "definition":
                term = self.next_term("follow_up")
                text = self.fill(self.draw.choice(self.wordings["follow_up_definition"]), term=term)
                turns.append((self.typed(text), definition_of(term)))
            elif kind == "repeat":
                turns.append((self.typed(self.draw.choice(self.wordings["repeat"])), definition_of(term)))
            else:
                text = self.draw.choice(self.wordings[f"follow_up_{kind}"])
                turns.append((self.typed(text), why_of(term) if kind == "why" else related_to(term)))
            if self.side == "test":
                break
        if self.side == "train" and self.draw.random() < 0.2:  # small talk or a refusal on the way
            between = self.draw.choice((self.small_talk, self.refusal))()["messages"]
            turns.insert(self.draw.choice((0, len(turns))), (between[0]["content"], between[1]["content"]))
        return _row("follow_up", *turns)

    def small_talk(self) -> Row:
        topic = self.draw.choice(list(self.topics))
        return _row("small_talk", (self.typed(self.draw.choice(self.topics[topic])), answer("small_talk", [topic])))

    def refusal(self, subject: str | None = None) -> Row:
        if subject is None and self.draw.random() < 0.35:
            return _row("refusal", (self.typed(self.draw.choice(self.outside["questions"])), REFUSAL))
        subjects = self.outside["subjects"]
        kind = self.draw.choices(("definition", "why", "related", "comparison"), (6, 1.5, 1.5, 1))[0]
        wording = self.draw.choice(self.wordings[kind])
        subject = subject or self.draw.choice(subjects)
        if kind == "comparison":
            known = self.draw.choice(list(_terms().values())).term
            other = known if self.draw.random() < 0.3 else self.draw.choice(subjects)
            first, second = self.draw.sample((subject, other), 2)
            return _row("refusal", (self.typed(wording.format(first=first, second=second)), REFUSAL))
        return _row("refusal", (self.typed(wording.format(term=subject)), REFUSAL))

    def question(self, kind: str, term: Term) -> str:
        return self.typed(self.fill(self.draw.choice(self.wordings[kind]), term=term))

    def next_term(self, purpose: str) -> Term:
        """Every term in turn, in an order drawn anew each round."""
        if not self._upcoming.get(purpose):
            terms = list(_terms().values())
            self.draw.shuffle(terms)
            self._upcoming[purpose] = terms
        return self._upcoming[purpose].pop()

    def fill(self, wording: str, **terms: Term) -> str:
        """A wording with its terms, now and then by another name, with an article, or in the plural."""
        return wording.format(**{place: self.name_of(term) for place, term in terms.items()})

    def name_of(self, term: Term) -> str:
        name = self.draw.choice(term.aliases) if term.aliases and self.draw.random() < 0.25 else term.term
        manner = self.draw.random()
        if manner < 0.06:
            return f"the {name}"
        if manner < 0.10:
            return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
        if manner < 0.14 and name[-1].islower() and name[-1] != "s":
            return f"{name}s"
        return name

    def typed(self, text: str) -> str:
        """A text as somebody types it."""
        draw = self.draw
        if draw.random() < 0.15:
            text = self.draw.choice(self.wordings["openers"]) + text
        if draw.random() < 0.12:
            text = text.rstrip("?.!") + self.draw.choice(self.wordings["closers"])
        if draw.random() < 0.4:
            text = text.lower()
        elif draw.random() < 0.02:
            text = text.upper()
        if draw.random() < 0.15:
            text = text.replace("'", "").replace("-", " ")
        if draw.random() < 0.45:
            text = text.rstrip("?.!")
        elif draw.random() < 0.05:
            text += draw.choice(("?", "??", "!", " :)", " please"))
        if draw.random() < 0.08:
            text = self.with_a_slip(text)
        return text

    def with_a_slip(self, text: str) -> str:
        """One letter of one longer word dropped, doubled, replaced, or swapped with its neighbour."""
        draw = self.draw
        words = list(re.finditer(r"[A-Za-z]{5,}", text))
        if not words:
            return text
        word = draw.choice(words)
        at = draw.randrange(word.start() + 1, word.end() - 1)
        slip = draw.choice(("drop", "double", "swap", "replace"))
        changed = {
            "drop": "",
            "double": text[at] * 2,
            "swap": text[at + 1] + text[at],
            "replace": draw.choice("abcdefghijklmnopqrstuvwxyz"),
        }[slip]
        return text[:at] + changed + text[at + (2 if slip == "swap" else 1) :]


def _row(kind: str, *turns: tuple[str, str]) -> Row:
    messages = []
    for question, right in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": right}]
    return {"messages": messages, "kind": kind}


@functools.cache
def _terms() -> dict[str, Term]:
    return {term.term: term for term in read_handbook()}


@functools.cache
def _file(name: str) -> Any:
    import yaml

    file = Path(__file__).parent / f"{name}.yaml"
    return yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def fingerprint() -> str:
    """Of everything that the conversations are made from, this code included."""
    digest = hashlib.blake2b(digest_size=16)
    here = Path(__file__).parent
    for file in sorted([*here.glob("*.yaml"), *here.glob("*.py"), *(here.parent / "handbook").glob("*.yaml")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()
