"""The handbook is complete and keeps its own rules; the bundled corpus is the same on every reading."""

import inspect
import itertools
import json
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import llmkit.data.bundled.handbook as handbook
from llmkit.data.bundled import corpus
from llmkit.data.bundled.handbook import Term, read_handbook
from llmkit.data.sources import open_source

CHAPTERS = [
    "Mathematics",
    "Optimization",
    "Neural networks",
    "Architectures",
    "Tools",
    "Transformers and language models",
    "Adapting a model",
    "Measuring",
    "In use",
    "Responsibility",
]
TERMS = read_handbook()


def sentences_in(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


# ---------------------------------------------------------------------------------------------- the handbook


def test_every_chapter_is_there_in_the_order_of_the_road():
    assert [chapter for chapter, _ in itertools.groupby(term.chapter for term in TERMS)] == CHAPTERS
    assert min(Counter(term.chapter for term in TERMS).values()) >= 10
    files = sorted(Path(handbook.__file__).parent.glob("*.yaml"))
    assert [int(file.name[:2]) for file in files] == list(range(1, len(CHAPTERS) + 1))


def test_there_are_at_least_200_terms():
    assert len(TERMS) >= 200


@pytest.mark.parametrize(
    "term",
    [
        "gradient", "cross-entropy", "AdamW", "backpropagation", "convolution", "PyTorch", "attention", "tokenizer",
        "LoRA", "DPO", "GRPO", "quantization", "F1 score", "calibration", "data drift", "rollback", "model card",
    ],
)  # fmt: skip
def test_the_road_passes(term):
    assert term in {entry.term for entry in TERMS}


def test_no_name_is_of_two_terms():
    """A question for a name must have one answer, whatever its case."""
    names = Counter(name.lower() for term in TERMS for name in (term.term, *term.aliases))
    assert [name for name, count in names.items() if count > 1] == []


def broken_by(terms: list[Term], rule: Callable[[Term], bool]) -> list[str]:
    return [term.term for term in terms if not rule(term)]


def is_a_sentence(text: str, words: range = range(8, 21)) -> bool:
    return len(sentences_in(text)) == 1 and len(text.split()) in words and text.endswith(".")


def test_a_definition_is_a_sentence_that_begins_with_its_subject():
    def keeps(term: Term) -> bool:
        beginning = " ".join(term.definition.split()[: 3 + len(term.term.split())]).lower()
        return is_a_sentence(term.definition) and any(name.lower() in beginning for name in (term.term, *term.aliases))

    assert broken_by(TERMS, keeps) == []
    assert broken_by(TERMS, lambda term: term.definition[0].isupper() or term.definition.startswith(term.term)) == []


def test_an_explanation_is_2_to_4_sentences_of_30_to_80_words():
    assert broken_by(TERMS, lambda term: 2 <= len(sentences_in(term.explanation)) <= 4) == []
    assert broken_by(TERMS, lambda term: 30 <= len(term.explanation.split()) <= 80) == []
    assert broken_by(TERMS, lambda term: term.explanation[-1] in ".!?") == []


def test_why_is_a_sentence():
    assert broken_by(TERMS, lambda term: is_a_sentence(term.why) and term.why[0].isupper()) == []


def test_related_terms_are_2_to_4_others_of_the_handbook():
    names = {term.term for term in TERMS}
    assert broken_by(TERMS, lambda term: 2 <= len(set(term.related)) == len(term.related) <= 4) == []
    assert broken_by(TERMS, lambda term: set(term.related) <= names - {term.term}) == []


def test_entries_are_plain_ascii_on_one_line_without_markup():
    def texts(term: Term) -> tuple[str, ...]:
        return (term.term, *term.aliases, term.definition, term.explanation, term.why)

    assert broken_by(TERMS, lambda term: all(re.fullmatch(r"[!-~]+( [!-~]+)*", text) for text in texts(term))) == []
    assert broken_by(TERMS, lambda term: not re.search(r"`|\*\*|\]\(", " ".join(texts(term)))) == []
    assert broken_by(TERMS, lambda term: len(term.aliases) <= 3) == []


def test_no_two_definitions_are_nearly_the_same():
    """By the words they share, but for the names of the terms: a tutor's answers must be told apart."""
    words = {
        term.term: set(re.findall(r"\w+", term.definition.lower())) - set(re.findall(r"\w+", term.term.lower()))
        for term in TERMS
    }
    shares = {
        (one, other): len(words[one] & words[other]) / len(words[one] | words[other])
        for one, other in itertools.combinations(words, 2)
    }
    assert {pair: round(share, 2) for pair, share in shares.items() if share > 0.6} == {}


# ---------------------------------------------------------------------------------------------- the bundled corpus


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(open_source(None).documents())


def test_the_corpus_is_a_stable_stream(documents):
    source = open_source(None)
    assert list(source.documents()) == documents
    assert list(source.documents()) == documents, "a source can be read again"
    assert source.fingerprint == open_source(None).fingerprint
    assert (source.name, source.columns, source.text_column) == ("bundled", [], None)
    assert len({place for place, _ in source.rows()}) > 0.99 * len(documents), "a place is of one document"


def test_the_corpus_begins_with_the_handbook(documents):
    assert documents[: len(TERMS)] == [corpus.page(term) for term in TERMS]


def test_a_page_of_the_handbook_holds_the_whole_entry():
    entry = Term(
        "Chapter", "tensor", ("array",), "A tensor is this.", "It works so.", "It matters.", ("vector", "norm")
    )
    assert corpus.page(entry) == "tensor\n\nA tensor is this. It works so. It matters.\nRelated: vector, norm.\n"


@pytest.mark.parametrize(
    "documented",
    [json, json.loads, json.JSONDecoder, textwrap.dedent, Path, Counter.most_common, inspect.signature],
    ids=lambda value: value.__name__,
)
def test_the_corpus_has_the_docstrings_of_the_python_that_runs(documents, documented):
    assert inspect.cleandoc(documented.__doc__) + "\n" in documents


def test_the_corpus_is_text_that_a_tokenizer_gives_back(documents):
    assert len(documents) > 5000
    assert sum(map(len, documents)) > 1_000_000
    for document in documents:
        assert unicodedata.is_normalized("NFC", document)
        assert document.encode().decode() == document
        assert document.endswith("\n")


def test_docstrings_are_collected_in_a_fixed_order(tmp_path):
    library = {
        "b.py": '"""The module b, which comes second."""\n',
        "a.py": '''"""The module a, which comes first."""

class Box:
    """A box.

    Its own indentation goes,
        and what stands deeper stays, naïve.
    """

    def open(self):
        """Open the box and look inside."""
        def hidden():
            """A function inside of a function."""

    def close(self):
        "too short"

    def shake(self):
        return "no docstring, however long it may be"

async def later(): """What happens some time later."""
''',
        "package/deep.py": "def f():\n    r'''A docstring in a package \\here'''\n",
        "package/__init__.py": "",
        "package/broken.py": 'def ("""This file is meant to be broken."""',
        "package/data.txt": '"""This is no Python, but long enough."""',
        "test/test_it.py": '"""Tests are no documentation of a library."""',
        "package/tests/test_it.py": '"""Tests are no documentation of a library."""',
        "site-packages/other.py": '"""What else is installed differs by machine."""',
    }
    folders = ["zoo", "kiosk", "Bakery", "school", "garage", "mill"]
    library |= {f"{name}/module.py": f'"""What a {name} is and does."""' for name in folders}
    for name, text in library.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert list(corpus.docstrings_below(tmp_path)) == [
        ("a.py, line 1", "The module a, which comes first.\n"),
        ("a.py, line 3", "A box.\n\nIts own indentation goes,\n    and what stands deeper stays, naïve.\n"),
        ("a.py, line 21", "What happens some time later.\n"),
        ("a.py, line 10", "Open the box and look inside.\n"),
        ("a.py, line 12", "A function inside of a function.\n"),
        ("b.py, line 1", "The module b, which comes second.\n"),
        ("Bakery/module.py, line 1", "What a Bakery is and does.\n"),
        ("garage/module.py, line 1", "What a garage is and does.\n"),
        ("kiosk/module.py, line 1", "What a kiosk is and does.\n"),
        ("mill/module.py, line 1", "What a mill is and does.\n"),
        ("package/deep.py, line 1", "A docstring in a package \\here\n"),
        ("school/module.py, line 1", "What a school is and does.\n"),
        ("zoo/module.py, line 1", "What a zoo is and does.\n"),
    ]
