"""Conversations, preferences and checkable questions: how rows of data become them, and what is refused.

A row of conversations has one of three forms, found by its columns:

    messages                         [{"role": "system" | "user" | "assistant", "content": "…"}, …]
    prompt, completion               one question and its answer
    instruction, input, output       the same; the input, where there is one, stands below the instruction

A conversation may begin with one system message; after it user and assistant take turns, and the assistant has the last
word. Preferences are a prompt with a chosen and a rejected answer; checkable questions are a prompt and whatever a reward
function reads. Everything that is wrong with a file is said at once, by row.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from llmkit.data.duplicates import GramIndex, content_hash
from llmkit.data.sources import Table, composed, open_table
from llmkit.errors import UserError, noting, refuse
from llmkit.options import option

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
TOKENIZER_ROWS = 12_000  # of the tutor: about as many bytes as its handbook and the docstrings have
MOST_PROBLEMS = 20  # that are said of one file
# The columns of each form and the names they go by, the first of them ours.
MESSAGES = ("messages", "conversations", "conversation")
PROMPT = ("prompt", "question", "query")
COMPLETION = ("completion", "response", "answer")
INSTRUCTION, INPUT = ("instruction",), ("input", "context")
OUTPUT = ("output", "response", "completion", "answer")
CHOSEN, REJECTED = ("chosen",), ("rejected",)
# ShareGPT's way to write a message.
_FOREIGN_KEYS = {"from": "role", "value": "content"}
_FOREIGN_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's; `kind` groups rows when they are evaluated."""

    messages: tuple[Message, ...]
    place: str
    kind: str | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]

    @property
    def identity(self) -> str:
        """What makes two rows the same one for the split: everything but the answer to the last question."""
        return "\n".join(message["content"] for message in self.prompt)


@dataclass(frozen=True)
class Preference:
    """A prompt and two answers to it."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    place: str

    @property
    def identity(self) -> str:
        return "\n".join(message["content"] for message in self.prompt)


@dataclass(frozen=True)
class Question:
    """A prompt whose answers a reward function can check; `columns` is the row as the file has it."""

    prompt: tuple[Message, ...]
    columns: dict[str, Any]
    place: str

    @property
    def identity(self) -> str:
        return "\n".join(message["content"] for message in self.prompt)


Row = TypeVar("Row", Conversation, Preference, Question)


@dataclass
class Rows(Generic[Row]):
    """Rows of one kind and their two sides.

    Attributes:
        name, format, fingerprint: of the source.
        train, validation: the sides.
        copies: rows that were left out since they equal an earlier one.
        near_copies: training rows that were left out since they nearly equal a held-out one.
        validation_fingerprint: of held-out rows of their own.
        further: other held-out rows by name.
    """

    name: str
    format: str
    fingerprint: str
    train: list[Row]
    validation: list[Row]
    copies: int = 0
    near_copies: int = 0
    validation_fingerprint: str | None = None
    further: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """What a run's identity depends on."""
        return {"data": self.fingerprint, "validation_data": self.validation_fingerprint}

    def counts(self) -> dict[str, Any]:
        """The plain figures, for llmkit.json."""
        return {
            "name": self.name,
            "format": self.format,
            "fingerprint": self.fingerprint,
            "train_rows": len(self.train),
            "validation_rows": len(self.validation),
            "copies": self.copies,
            "near_copies": self.near_copies,
        }


@dataclass
class RowOptions:
    """Which rows, and which of them are held out."""

    data: str | None = option(None, "File, folder or Hub dataset id; None: the bundled data.")
    validation_data: str | None = option(None, "Held-out rows of their own.")
    validation_fraction: float = option(0.1, "Share of rows held out, by their prompts.")
    split_seed: int = option(0, "Another seed holds out other rows.")


# ---------------------------------------------------------------------------------------------- from rows


def conversation_from(row: dict[str, Any], place: str) -> Conversation:
    """One row as a conversation.

    Raises:
        UserError: what is wrong with it, with its place.
    """
    form = _form(
        row, (("messages", MESSAGES), ("prompt", PROMPT, COMPLETION), ("instruction", INSTRUCTION, OUTPUT)), place
    )
    if form == "messages":
        messages = _messages(_value(row, MESSAGES), place)
    elif form == "prompt":
        messages = [*_turns(row, PROMPT, "user", place), *_turns(row, COMPLETION, "assistant", place)]
    else:
        messages = [_instruction(row, place), _message("assistant", _text(row, OUTPUT, place))]
    check_turns(messages, place)
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"{place}: ends with the {messages[-1]['role']}; the last message must be the assistant's answer"
        )
    kind = row.get("kind")
    return Conversation(tuple(messages), place, str(kind) if kind is not None else None)


def preference_from(row: dict[str, Any], place: str) -> Preference:
    """One row as a preference. Chosen and rejected may be texts, or whole conversations with the prompt in them.

    Raises:
        UserError: what is wrong with it, with its place.
    """
    _form(row, (("preference", CHOSEN, REJECTED),), place)
    sides = [_turns(row, names, "assistant", place) for names in (CHOSEN, REJECTED)]
    given = _turns(row, PROMPT, "user", place) if _value(row, PROMPT) is not None else []
    if not given and _value(row, INSTRUCTION) is not None:
        given = [_instruction(row, place)]
    if not given:  # the prompt is what both conversations begin with
        given = sides[0][:-1]
    for side in sides:
        before = side[:-1]
        if before and before != given:
            raise UserError(f"{place}: chosen and rejected must answer the same prompt; an earlier message differs")
        if side[-1]["role"] != "assistant":
            raise UserError(f"{place}: chosen and rejected must end with the assistant's answer")
    if not given:
        raise UserError(f"{place}: has no prompt; add a column prompt")
    check_turns([*given, sides[0][-1]], place)
    chosen, rejected = (side[-1]["content"] for side in sides)
    if chosen.strip() == rejected.strip():
        raise UserError(
            f"{place}: chosen and rejected are equal ({chosen[:40]!r}); nothing is preferred; leave the row out"
        )
    return Preference(tuple(given), chosen, rejected, place)


def question_from(row: dict[str, Any], place: str) -> Question:
    """One row as a question for a reward function: a prompt, or a conversation without its last answer.

    Raises:
        UserError: what is wrong with it, with its place.
    """
    form = _form(row, (("prompt", PROMPT), ("messages", MESSAGES)), place)
    if form == "messages":
        messages = _messages(_value(row, MESSAGES), place)
        columns = row | {"answer": row.get("answer", messages[-1]["content"])}
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    else:
        messages, columns = _turns(row, PROMPT, "user", place), dict(row)
    check_turns(messages, place, needs_answer=False)
    if messages[-1]["role"] != "user":
        raise UserError(f"{place}: the prompt must end with the user's message")
    return Question(tuple(messages), columns, place)


def check_turns(messages: list[Message], place: str, needs_answer: bool = True) -> None:
    """The rules of a conversation: one system message at most, and first; then user and assistant in turn.

    Raises:
        UserError: the rule that is broken, with the index of the message, counted from 0.
    """
    if needs_answer and not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"{place}: no message is the assistant's, so there is nothing to learn; add the answer")
    rest = list(enumerate(messages))
    if rest and rest[0][1]["role"] == "system":
        rest = rest[1:]
    expected = "user"
    for index, message in rest:
        if message["role"] == "system":
            raise UserError(f"{place}, message {index}: a system message stands first or nowhere")
        if message["role"] != expected:
            raise UserError(
                f"{place}, message {index}: is the {message['role']}'s where the {expected}'s is expected; user and assistant "
                "take turns, and the user begins; join messages of one speaker"
            )
        expected = "assistant" if expected == "user" else "user"


def _form(row: dict[str, Any], forms: Iterable[tuple[str, *tuple[tuple[str, ...], ...]]], place: str) -> str:
    for name, *columns in forms:
        if all(any(column in row for column in names) for names in columns):
            return name
    wanted = " or ".join("+".join(names[0] for names in columns) for _, *columns in forms)
    raise UserError(f"{place}: has the columns {', '.join(map(str, row)) or 'none'}; {wanted} are needed")


def _value(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _text(row: dict[str, Any], names: tuple[str, ...], place: str) -> str:
    name = next(name for name in names if name in row)
    value = row[name]
    if value is None:
        raise UserError(f"{place}: {name} is null; fill it in, or leave the row out")
    if not isinstance(value, str):
        raise UserError(f"{place}: {name} must hold text, found {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{place}: {name} is empty; fill it in, or leave the row out")
    return composed(value)


def _instruction(row: dict[str, Any], place: str) -> Message:
    """An instruction as the user's message, with its input, where it has one, below."""
    instruction, below = _text(row, INSTRUCTION, place), _value(row, INPUT)
    if below is not None and not isinstance(below, str):
        raise UserError(f"{place}: input must hold text, found {type(below).__name__}")
    return _message("user", f"{instruction}\n\n{composed(below)}" if below and below.strip() else instruction)


def _turns(row: dict[str, Any], names: tuple[str, ...], role: str, place: str) -> list[Message]:
    """A column that holds a text, said by `role`, or messages."""
    value = _value(row, names)
    return _messages(value, place) if isinstance(value, list) else [_message(role, _text(row, names, place))]


def _message(role: str, content: str) -> Message:
    # Space around an answer would be learned, and is trimmed by most templates; inside it stays as it is.
    return {"role": role, "content": content.strip()}


def _messages(value: Any, place: str) -> list[Message]:
    if value is None:
        raise UserError(f"{place}: messages is null; fill it in, or leave the row out")
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise UserError(f'{place}: messages must be a list like [{{"role": "user", "content": "…"}}, …]')
    messages = []
    for index, given in enumerate(value):
        message = {_FOREIGN_KEYS.get(key, key): content for key, content in given.items()}
        role = _FOREIGN_ROLES.get(message.get("role"), message.get("role"))
        content = message.get("content")
        where = f"{place}, message {index}"
        if role not in ROLES:
            raise UserError(f"{where}: the role is {role!r}; known are {', '.join(ROLES)}")
        if not isinstance(content, str):
            what = "null" if content is None else type(content).__name__
            raise UserError(f"{where}: the content is {what}, and must be text")
        if not content.strip():
            raise UserError(f"{where}: the content is empty; fill it in, or leave the row out")
        messages.append(_message(role, composed(content)))
    return messages


# ---------------------------------------------------------------------------------------------- whole files


def read_rows(table: Table, read: Callable[[dict[str, Any], str], Row]) -> list[Row]:
    """All rows of a table, read by one of the functions above.

    Raises:
        UserError: every row that cannot be used, up to `MOST_PROBLEMS`; several forms in one file; no row.
    """
    rows: list[Row] = []
    problems: list[str] = []
    first: tuple[str, frozenset[str]] | None = None
    for place, row in table.rows():
        form = frozenset(_known(row))
        first = first or (place, form)
        if form != first[1]:
            problems.append(
                f"{place}: has {'+'.join(sorted(form)) or 'no known column'}, and {first[0]} has {'+'.join(sorted(first[1]))}; "
                "one file holds rows of one form: make two files of it"
            )
            continue
        with noting(problems):
            rows.append(read(row, place))
    if not rows and not problems:
        problems.append(f"{table.name}: holds no row")
    if len(problems) > MOST_PROBLEMS:
        problems = [*problems[:MOST_PROBLEMS], f"and {len(problems) - MOST_PROBLEMS} more rows like these"]
    refuse(problems)
    return rows


def _known(row: dict[str, Any]) -> set[str]:
    """Which of the forms' columns a row has; optional ones do not make another form."""
    every = (MESSAGES, PROMPT, COMPLETION, INSTRUCTION, OUTPUT, CHOSEN, REJECTED)
    return {name for names in every for name in names if name in row}


def open_rows(options: RowOptions, read: Callable[[dict[str, Any], str], Row]) -> "Rows[Row]":
    """The rows that the options name, split by their prompts.

    Raises:
        UserError: of the options and of both files, all at once.
    """
    problems: list[str] = []
    if not 0 < options.validation_fraction < 1:
        problems.append(f"--validation_fraction {options.validation_fraction}: must be between 0 and 1")
    rows: list[Row] = []
    held_out: list[Row] | None = None
    table = held_out_table = None
    with noting(problems):
        table = open_table(options.data)
        rows = read_rows(table, read)
    if options.validation_data:
        with noting(problems):
            held_out_table = open_table(options.validation_data, "--validation_data")
            held_out = read_rows(held_out_table, read)
    refuse(problems)
    sides = split_rows(rows, held_out, options.validation_fraction, options.split_seed)
    made = Rows(table.name, table.format, table.fingerprint, *sides)
    made.validation_fingerprint = held_out_table.fingerprint if held_out_table else None
    if not made.train or not made.validation:
        side = "train on" if not made.train else "hold out"
        raise UserError(
            f"--data {options.data}: {len(rows)} rows leave none to {side} ({made.copies} are copies, {made.near_copies} near "
            "copies of held-out ones); change --validation_fraction, give more rows, or --validation_data"
        )
    return made


def split_rows(
    rows: list[Row], held_out: list[Row] | None, fraction: float, seed: int
) -> tuple[list[Row], list[Row], int, int]:
    """Both sides, and the counts of rows left out as copies and near copies.

    The side follows from a hash of the prompt: rows with one prompt stand on one side, and a row never changes side when
    data is added. Of rows that are equal altogether one stays; training rows whose prompt nearly equals a held-out one are
    left out.
    """
    kept: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        content = dataclasses.replace(row, place="")
        kept.setdefault((repr(content),), row)
    unique = list(kept.values())
    copies = len(rows) - len(unique)
    if held_out is None:
        border = fraction * 2.0**64
        train = [row for row in unique if content_hash(row.identity, seed) >= border]
        held_out = [row for row in unique if content_hash(row.identity, seed) < border]
    else:
        train = unique
    prompts = {content_hash(row.identity) for row in held_out}
    index = GramIndex((number, row.identity) for number, row in enumerate(held_out))
    near = {number for number, _ in index.near_duplicates((n, row.identity) for n, row in enumerate(train))}
    near |= {number for number, row in enumerate(train) if content_hash(row.identity) in prompts}
    return [row for n, row in enumerate(train) if n not in near], held_out, copies, len(near)


def tutor_rows(count: int, seed: int) -> "Rows[Conversation]":
    """The bundled tutor: `count` training conversations, and its two tests as "validation" and, further, "blind"."""
    from llmkit.data.bundled import tutor

    def conversations(rows: list[dict[str, Any]], what: str) -> list[Conversation]:
        return [conversation_from(row, f"tutor, {what} row {number}") for number, row in enumerate(rows)]

    return Rows(
        name="bundled",
        format=f"tutor, made from the handbook with seed {seed}",
        fingerprint=f"{tutor.fingerprint()}-{count}-{seed}",
        train=conversations(tutor.training_rows(count, seed), "train"),
        validation=conversations(tutor.test_rows(), "test"),
        further={"blind": conversations(tutor.blind_rows(), "blind")},
    )


@dataclass(frozen=True)
class Said:
    """What is said in conversations, as texts, for a tokenizer to learn from."""

    texts: list[str]
    fingerprints: dict[str, str | None]


def said_in(data: str | None) -> Said:
    """The training side of conversations as texts.

    Args:
        data: a file, folder or Hub dataset id; "tutor": the bundled ones; None: nothing.

    Raises:
        UserError: as `open_rows`.
    """
    if data is None:
        return Said([], {})
    rows = tutor_rows(TOKENIZER_ROWS, 0) if data == "tutor" else open_rows(RowOptions(data=data), conversation_from)
    texts = ["\n".join(message["content"] for message in row.messages) for row in rows.train]
    return Said(texts, {"conversations": rows.fingerprint})
