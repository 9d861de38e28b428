"""What is in a data set, what training would make of it, and why it would refuse: before any compute."""

from typing import Any

from llmkit.data.sources import Source, open_source
from llmkit.data.splits import Split, problems_of, split
from llmkit.errors import UserError


def check_text(
    data: str | None,
    text_column: str | None = None,
    validation_data: str | None = None,
    validation_fraction: float | None = None,
    split_seed: int = 0,
) -> tuple[dict[str, Any], Split | None]:
    """Look at a text corpus.

    Returns:
        A flat report, with "problems" (why training would be refused, in words; empty if it would start), and the split
        where one could be made.
    """
    report: dict[str, Any] = {"data": data or "bundled"}
    try:
        source = open_source(data, text_column)
        validation = open_source(validation_data, text_column, "--validation_data") if validation_data else None
        report |= _of_source(source)
        sides = split(source, validation, validation_fraction, split_seed)
    except UserError as error:
        return report | {"problems": error.problems}, None
    names = ("minimum", "5_percent", "25_percent", "median", "75_percent", "95_percent", "maximum")
    report |= {
        "documents": sides.documents,
        "empty_rows": sides.empty,
        "exact_copies": sides.copies,
        "near_copies_across_the_split": sides.near_copies,
        "bytes_per_document": dict(zip(names, sides.length_percentiles, strict=True)),
        "validation_fraction": sides.validation_fraction if validation is None else None,
        "train_documents": sides.train_documents,
        "train_bytes": sides.train_bytes,
        "validation_documents": sides.validation_documents,
        "validation_bytes": sides.validation_bytes,
        # Copies across the split are dropped from the training side, so that nothing is left to overlap.
        "overlap_after_removal": 0,
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
