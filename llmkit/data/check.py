"""What is in a data set, what training would make of it, and why it would refuse: before any compute."""

from typing import Any

from llmkit.data.sources import Source
from llmkit.data.splits import Split, problems_of
from llmkit.data.text import Text, TextOptions
from llmkit.errors import noting


def problem_of_length(train_tokens: int, train_documents: int, context_length: int) -> str | None:
    """Why a training side is too short: a pass over it needs a sample, and its offset costs up to another."""
    if (train_tokens - 1) // context_length - 1 >= 1:
        return None
    return (
        f"--context_length {context_length}: the training side is {train_tokens:,} tokens in {train_documents:,} documents, "
        "less than two samples; shorten the context or give more text"
    )


def check_text(options: TextOptions) -> tuple[dict[str, Any], Split | None]:
    """Look at a text corpus.

    Returns:
        A flat report, with "problems" (why training would be refused, in words; empty if it would start), and the split
        where one could be made.
    """
    report: dict[str, Any] = {"data": options.data or "bundled"}
    problems: list[str] = []
    sides = None
    with noting(problems):
        text = Text.open(options)
        report |= _of_source(text.source)
        sides = text.split()
    if problems:
        return report | {"problems": problems}, None
    names = ("minimum", "5_percent", "25_percent", "median", "75_percent", "95_percent", "maximum")
    report |= {
        "documents": sides.documents,
        "empty_rows": sides.empty,
        "exact_copies": sides.copies,
        "near_copies_across_the_split": sides.near_copies,
        "bytes_per_document": dict(zip(names, sides.length_percentiles, strict=True)),
        "validation_fraction": None if options.validation_data else sides.validation_fraction,
        "train_documents": sides.train_documents,
        "train_bytes": sides.train_bytes,
        "validation_documents": sides.validation_documents,
        "validation_bytes": sides.validation_bytes,
        "problems": problems_of(sides),
    }
    return report, sides


def _of_source(source: Source) -> dict[str, Any]:
    return {
        "format": source.format,
        "columns": source.columns or None,
        "text_column": source.text_column,
        "fingerprint": source.fingerprint,
    }


def count_tokens(sides: Split, tokenizer: Any) -> dict[str, int]:
    """Tokens of both sides, end-of-text tokens included."""
    from llmkit.data.packing import encode_texts

    return {
        f"{side}_tokens": sum(len(ids) + 1 for batch in encode_texts(texts, tokenizer) for ids in batch)
        for side, texts in (("train", sides.train()), ("validation", sides.validation()))
    }
