"""What is in a file of conversations, preferences or questions, and what training would make of it: before any compute."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from llmkit.data.chat_samples import Fitted, fit
from llmkit.data.conversations import (
    CHOSEN,
    COMPLETION,
    INSTRUCTION,
    MESSAGES,
    OUTPUT,
    PROMPT,
    REJECTED,
    ROLES,
    Conversation,
    Message,
    Preference,
    Question,
    Rows,
    conversation_from,
    preference_from,
    question_from,
)
from llmkit.data.sources import TEXT_COLUMNS, open_table
from llmkit.errors import noting
from llmkit.tokenization.chat import Encoded, encode_conversations, end_tokens, prompt_ids

Kind = Literal["conversations", "preferences", "questions"]
READERS: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "conversations": conversation_from,
    "preferences": preference_from,
    "questions": question_from,
}
MOST_REPEATED = 3  # answers that are shown
POINTS = {
    "minimum": 0,
    "5_percent": 5,
    "25_percent": 25,
    "median": 50,
    "75_percent": 75,
    "95_percent": 95,
    "maximum": 100,
}
_SHOWN_CHARACTERS = 600  # of a stretch of trained or masked text
_SHOWN_ANSWER = 80
_GREEN, _RED, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# ---------------------------------------------------------------------------------------------- at first sight


def kind_of(columns: Iterable[str]) -> Kind | None:
    """What rows of these columns are; None for text.

    A whole form outweighs a column of text beside it (some sets carry every conversation as one text too); a part of a form
    does not.
    """
    names = set(columns)
    if names & set(CHOSEN) and names & set(REJECTED):
        return "preferences"
    forms = ((MESSAGES,), (PROMPT, COMPLETION), (INSTRUCTION, OUTPUT))
    if any(all(names & set(column) for column in form) for form in forms):
        return "conversations"
    if any(name.lower() in TEXT_COLUMNS for name in names):
        return None
    if names & {*CHOSEN, *REJECTED}:
        return "preferences"
    if names & set(INSTRUCTION):
        return "conversations"
    return "questions" if names & set(PROMPT) else None


def at_first_sight(data: str) -> dict[str, Any]:
    """What the first row tells: "data", "kind" (None for text), "format" and "columns".

    Raises:
        UserError: the rows cannot be read, or the data is plain text.
    """
    table = open_table(data)
    first = next((row for _, row in table.rows()), {})
    return {"data": data, "kind": kind_of(first), "format": table.format, "columns": list(first)}


# ---------------------------------------------------------------------------------------------- figures


def check_rows(rows: Rows) -> dict[str, Any]:
    """What needs no tokenizer: sides, copies, roles, turns, and the answers that come often.

    Of a preference the chosen answer counts.
    """
    every = [*rows.train, *rows.validation]
    conversations = [_conversations_of(row)[0] for row in every]
    roles = Counter(message["role"] for messages in conversations for message in messages)
    turns = Counter(sum(message["role"] == "user" for message in messages) for messages in conversations)
    answers = [messages[-1]["content"] for messages in conversations if messages[-1]["role"] == "assistant"]
    return {
        "format": rows.format,
        "fingerprint": rows.fingerprint,
        "train_rows": len(rows.train),
        "validation_rows": len(rows.validation),
        "further_rows": {name: len(more) for name, more in rows.further.items()},
        "exact_copies": rows.copies,
        "near_copies_across_the_split": rows.near_copies,
        "messages": {role: roles[role] for role in ROLES},
        "rows_by_turns": {str(number): turns[number] for number in sorted(turns)},
        "rows_with_system_message": sum(messages[0]["role"] == "system" for messages in conversations),
        "characters_per_answer": _percentiles([len(answer) for answer in answers]),
        "repeated_answers": [
            {"answer": answer, "rows": count}
            for answer, count in Counter(answers).most_common(MOST_REPEATED)
            if count > 1
        ],
    }


def check_tokens(
    rows: Rows, tokenizer: Any, max_length: int, shown: int, problems: list[str]
) -> tuple[dict[str, Any], Fitted | None]:
    """What a model's tokenizer and chat template make of the rows.

    A preference is two conversations, one for each answer; a question has nothing that is trained.

    Args:
        max_length: tokens of the longest conversation that is trained whole.
        shown: rows of the training side whose tokens are shown.
        problems: why training would be refused is added.

    Returns:
        Figures over both sides, and the training side as it would be fitted; None if that is refused, or of questions.

    Raises:
        UserError: the chat template cannot be trained with.
    """
    train, validation = _encode(rows.train, tokenizer), _encode(rows.validation, tokenizer)
    every = [*train, *validation]
    lengths = [len(sample.ids) for sample in every]
    too_long = [sample for sample in every if len(sample.ids) > max_length]
    report: dict[str, Any] = {
        "tokens_per_row": _percentiles(lengths),
        "too_long_rows": len(too_long),
        "too_long_share": len(too_long) / len(every),
    }
    per_row = len(train) // len(rows.train)
    report["shown_rows"] = [
        {
            "place": rows.train[number // per_row].place,
            "tokens": len(sample.ids),
            "trained_tokens": sum(sample.trained),
            "pieces": pieces_of(sample, tokenizer),
        }
        for number, sample in enumerate(train[: shown * per_row])
    ]
    if isinstance(rows.train[0], Question):
        return report, None
    ends = end_tokens(tokenizer)
    trained = [sum(sample.trained) for sample in every]
    report |= {
        "trained_tokens_per_row": _percentiles(trained),
        "trained_tokens": sum(trained),
        "trained_share": sum(trained) / sum(lengths),
        "trained_tokens_lost_if_dropped": sum(sum(sample.trained) for sample in too_long),
        "trained_tokens_lost_if_truncated": sum(sum(sample.trained[max_length:]) for sample in too_long),
        "fully_masked_rows": sum(not any(sample.trained[1:]) for sample in every),
        "fully_masked_rows_if_truncated": sum(not any(sample.trained[1:max_length]) for sample in every),
        "end_token": tokenizer.convert_ids_to_tokens(ends[0]),
        "answers": sum(
            message["role"] == "assistant"
            for row in (*rows.train, *rows.validation)
            for messages in _conversations_of(row)
            for message in messages
        ),
        "answers_with_trained_end": sum(_trained_ends(sample, ends) for sample in every),
    }
    fitted = None
    for option, side, encoded in (("--data", rows.train, train), ("--validation_data", rows.validation, validation)):
        places = [row.place for row in side for _ in _conversations_of(row)]
        with noting(problems):
            left = fit(encoded, places, max_length, "drop", option)
            fitted = left if encoded is train else fitted
    return report, fitted


def pieces_of(sample: Encoded, tokenizer: Any) -> list[dict[str, Any]]:
    """A conversation as its stretches of trained and masked text, which joined are the whole of it.

    Each is what it adds to the text before it: decoded by itself, a stretch would lose its space in some vocabularies.
    """
    pieces, text, place = [], "", 0
    for trained, stretch in itertools.groupby(sample.trained):
        place += len(list(stretch))
        until = tokenizer.decode(sample.ids[:place])
        pieces.append({"text": until[len(text) :], "trained": trained})
        text = until
    return pieces


def _conversations_of(row: Conversation | Preference | Question) -> list[tuple[Message, ...]]:
    """The conversations of a row: one, or of a preference one for each answer."""
    if isinstance(row, Conversation):
        return [row.messages]
    if isinstance(row, Preference):
        return [(*row.prompt, {"role": "assistant", "content": answer}) for answer in (row.chosen, row.rejected)]
    return [row.prompt]


def _encode(side: Sequence[Conversation | Preference | Question], tokenizer: Any) -> list[Encoded]:
    conversations = [messages for row in side for messages in _conversations_of(row)]
    if isinstance(side[0], Question):
        prompts = [prompt_ids(tokenizer, messages) for messages in conversations]
        return [Encoded(ids, [False] * len(ids)) for ids in prompts]
    return encode_conversations(tokenizer, conversations)


def _trained_ends(sample: Encoded, ends: list[int]) -> int:
    """How many stretches of trained tokens hold a token that ends an answer."""
    stretches = itertools.groupby(zip(sample.ids, sample.trained, strict=True), key=lambda pair: pair[1])
    return sum(trained and any(token in ends for token, _ in stretch) for trained, stretch in stretches)


def _percentiles(values: Sequence[int]) -> dict[str, int] | None:
    if not values:
        return None
    return dict(zip(POINTS, np.percentile(values, list(POINTS.values())).astype(int).tolist(), strict=True))


# ---------------------------------------------------------------------------------------------- for a person


def describe(report: dict[str, Any], color: bool) -> str:
    """The report as text; of one that was refused, what is known.

    Args:
        color: trained text in green and masked in red; otherwise trained text stands in [[double brackets]].
    """
    columns = f", columns {', '.join(report['columns'])}" if report.get("columns") else ""
    found = f" ({report['format']}{columns})" if "format" in report else ""
    lines = [f"data: {report['data']}{found}: {report['kind']}"]
    if "train_rows" in report:
        lines += _of_rows(report)
    if "chat_template" in report:
        lines.append(f"chat template: {report['chat_template']}")
    lines += _of_shown_rows(report.get("shown_rows", []), color)
    lines += _of_lengths(report)
    if "max_length" in report and "tokens_per_row" in report:
        lines += _of_context(report)
    lines += [
        f"the same answer in {repeated['rows']:,} rows: {_shortened(repeated['answer'], _SHOWN_ANSWER)!r}"
        for repeated in report.get("repeated_answers", [])
    ]
    if "forecast" in report:
        lines.append(
            "forecast, all weights: about {parameters:,} parameters, {memory_gb:.1f} GB; {tokens_per_second:,} tokens/s; "
            "{minutes_per_pass:.1f} minutes a pass, {minutes_of_training:.1f} for {passes:g}".format(
                **report["forecast"]
            )
        )
    return "\n".join(lines)


def _of_rows(report: dict[str, Any]) -> list[str]:
    further = [f"{name} {count:,}" for name, count in report["further_rows"].items()]
    roles = ", ".join(f"{count:,} {role}" for role, count in report["messages"].items())
    turns = ", ".join(f"{count:,} of {number}" for number, count in report["rows_by_turns"].items())
    return [
        "rows: " + ", ".join([f"train {report['train_rows']:,}", f"held out {report['validation_rows']:,}", *further]),
        f"  left out: {report['exact_copies']:,} exact copies, "
        f"{report['near_copies_across_the_split']:,} near copies across the split",
        f"messages: {roles}; {report['rows_with_system_message']:,} rows with a system message",
        f"rows by turns: {turns}",
    ]


def _of_shown_rows(rows: list[dict[str, Any]], color: bool) -> list[str]:
    lines = []
    for row in rows:
        marks = "green: trained, red: masked" if color else "[[trained]]"
        lines.append(f"--- {row['place']}: {row['tokens']:,} tokens, {row['trained_tokens']:,} trained ({marks})")
        text = ""
        for piece in row["pieces"]:
            shown = _printable(_shortened(piece["text"], _SHOWN_CHARACTERS))
            if color:
                text += f"{_GREEN if piece['trained'] else _RED}{shown}{_PLAIN}"
            else:
                text += f"[[{shown}]]" if piece["trained"] else shown
        lines.append(text)
    return [*lines, "---"] if lines else []


def _of_lengths(report: dict[str, Any]) -> list[str]:
    names = {
        "tokens_per_row": "tokens",
        "trained_tokens_per_row": "trained tokens",
        "characters_per_answer": "characters of the answer",
    }
    rows = {label: report[name] for name, label in names.items() if report.get(name)}
    if not rows:
        return []
    wide = max(map(len, rows))
    heads = [point.replace("_percent", " %") for point in POINTS]
    lines = [" ".join([" " * wide, *(f"{head:>9}" for head in heads)])]
    return lines + [
        " ".join([f"{label:<{wide}}", *(f"{values[point]:>9,}" for point in POINTS)]) for label, values in rows.items()
    ]


def _of_context(report: dict[str, Any]) -> list[str]:
    lines = [
        f"longer than {report['max_length']:,} tokens ({report['max_length_from']}): {report['too_long_rows']:,} rows, "
        f"{report['too_long_share']:.1%}"
    ]
    if "trained_tokens" not in report:
        return lines
    if report["too_long_rows"]:
        lines.append(
            f"  lost of {report['trained_tokens']:,} trained tokens: {report['trained_tokens_lost_if_dropped']:,} with --too_long drop "
            f"(the default), {report['trained_tokens_lost_if_truncated']:,} with truncate"
        )
    lines.append(f"trained: {report['trained_tokens']:,} tokens, {report['trained_share']:.0%} of all")
    lines.append(
        f"nothing to learn in {report['fully_masked_rows']:,} rows"
        + (
            f", in {report['fully_masked_rows_if_truncated']:,} if they are truncated"
            if report["too_long_rows"]
            else ""
        )
    )
    ended, answers = report["answers_with_trained_end"], report["answers"]
    lines.append(
        f"end token {report['end_token']}: trained in {ended:,} of {answers:,} answers"
        + ("" if ended == answers else "; a model does not learn to stop where it is masked")
    )
    return lines


def _shortened(text: str, most: int) -> str:
    """A text with its middle left out, if it is long."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} … {len(text) - most // 2 * 2:,} characters … {text[-(most // 2) :]}"


def _printable(text: str) -> str:
    """A text that can do nothing to a terminal: control characters but tabs and line breaks are spelled out."""
    return _CONTROL_CHARACTERS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
