"""Where documents come from: files, folders, a Hub dataset or the bundled corpus, always as a stream.

A document is a piece of text that is split and packed as one. A row of a table (.jsonl, .json, .csv, .tsv, .parquet)
is a document. A file of a folder of texts is a document too, unless it is long: a text of more than a few pages
is cut into sections, so that one book can have a training and a held-out side. The cuts depend on the paragraph before
them and on nothing else (content-defined chunking, as backup programs do it), so a text that grows keeps its sections.

Text is read as UTF-8 and brought to Unicode's composed form (NFC), as the tokenizer's class does with its input: after that,
every document comes back from its tokens byte for byte.
"""

import contextlib
import csv
import gzip
import hashlib
import json
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from llmkit.errors import UserError

TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = TEXT_SUFFIXES + TABLE_SUFFIXES
TEXT_COLUMNS = ("text", "content", "document", "body", "article", "story", "passage", "sentence")

SECTION_BYTES = 2048  # mean length of a section
LONGEST_SECTION_BYTES = 16 * SECTION_BYTES  # and the longest, for a text without a blank line
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


@dataclass
class Source:
    """Data that can be read again and again.

    Attributes:
        name: as the user gave it, or "bundled".
        format: what was found, for people ("3 text files", "jsonl", "Hub dataset").
        columns: of a table, in order; empty for plain text.
        text_column: the column that holds the text; None for plain text.
        fingerprint: of the content: equal data has an equal fingerprint wherever it lies.
        rows: a function that starts a fresh stream of (place, text); the text is None where a row has none.
    """

    name: str
    format: str
    fingerprint: str
    rows: Callable[[], Iterator[tuple[str, str | None]]] = field(repr=False)
    columns: list[str] = field(default_factory=list)
    text_column: str | None = None

    def documents(self) -> Iterator[str]:
        """The texts that are not empty, in order."""
        return (text for _, text in self.rows() if text and not text.isspace())


@dataclass
class Table:
    """Rows of data that hold more than one text, and can be read again and again.

    Attributes:
        name: as the user gave it, or "bundled".
        format: what was found, for people.
        fingerprint: of the content.
        rows: a function that starts a fresh stream of (place, row).
    """

    name: str
    format: str
    fingerprint: str
    rows: Callable[[], Iterator[tuple[str, dict[str, Any]]]] = field(repr=False)


def open_table(data: str, option: str = "--data") -> Table:
    """Find the rows of a file, a folder of files, or a Hub dataset.

    Raises:
        UserError: missing or empty; plain text; a Hub id while offline.
    """
    path = Path(data)
    if not path.exists() and not _looks_local(data):
        name, stream = _hub_rows(data, option)
        return Table(name, "Hub dataset", hashlib.blake2b(name.encode(), digest_size=16).hexdigest(), stream)
    files, suffixes = _files_of(data, option)
    if suffixes & set(TEXT_SUFFIXES):
        raise UserError(
            f"{option} {path}: is plain text, and rows with named columns are needed here; give {', '.join(TABLE_SUFFIXES)}"
        )

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for file in files:
            yield from table_rows(file, option)

    return Table(str(path), _format_of(files, suffixes), _fingerprint(files, None), rows)


def composed(text: str | None) -> str | None:
    """The text in Unicode's composed form, NFC."""
    return text if text is None or text.isascii() else unicodedata.normalize("NFC", text)


def open_source(data: str | None, text_column: str | None = None, option: str = "--data") -> Source:
    """Find out what `data` is, without reading more than the beginning (and the bytes, for the fingerprint).

    Args:
        data: a file or folder, a Hub dataset id (with @revision if wanted), or None for the bundled corpus.
        text_column: the column that holds the text, where it is not found by its name.
        option: the option that brought `data`, for messages.

    Raises:
        UserError: missing, empty, binary or wrongly encoded file; unknown format; no text column; Hub id while offline.
    """
    if data is not None and not data.strip():
        raise UserError(f"{option} {data!r}: is empty; name a file, a folder or a Hub dataset, or leave {option} out")
    if data is None:
        from llmkit.data.bundled import corpus

        return corpus.source()
    path = Path(data)
    if path.exists() or _looks_local(data):
        return _local_source(data, text_column, option)
    return _hub_source(data, text_column, option)


def _looks_local(data: str) -> bool:
    path = Path(data)
    # A dot makes no file of org/data-2.5 or org/data@v1.0, unless the folder is there.
    is_file_name = data_suffix(path) in SUFFIXES or (path.suffix and path.parent.is_dir())
    return bool(is_file_name) or data.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(data)


def _similar_name(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return f"; the folder {path.parent} is not there either"
    found = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / found[0]}?" if found else ""


# ---------------------------------------------------------------------------------------------- local files


def data_suffix(path: Path) -> str:
    """The suffix that tells the format: that before .gz, in lower case."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _files_of(data: str, option: str) -> tuple[list[Path], set[str]]:
    """The data files of a path, and their formats: one table format, or plain text."""
    path = Path(data)
    if not path.exists():
        raise UserError(f"{option} {data}: there is no such file or folder{_similar_name(path)}")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and data_suffix(p) in SUFFIXES)
        if not files:
            raise UserError(f"{option} {path}: no file in it ends in {', '.join(SUFFIXES)} (or one of these and .gz)")
    else:
        files = [path]
        if data_suffix(path) not in SUFFIXES:
            raise UserError(
                f"{option} {path}: ends in {path.suffix or 'nothing'}; known are {', '.join(SUFFIXES)}, "
                "each also with .gz; rename the file after what it holds"
            )
    suffixes = {data_suffix(file) for file in files}
    tables = suffixes - set(TEXT_SUFFIXES)
    if tables and (len(tables) > 1 or len(suffixes) > 1):
        raise UserError(f"{option} {path}: holds several formats ({', '.join(sorted(suffixes))}); give a folder of one")
    if all(file.stat().st_size == 0 for file in files):
        raise UserError(f"{option} {path}: is empty")
    return files, suffixes


def _format_of(files: list[Path], suffixes: set[str]) -> str:
    kind = next(iter(suffixes)) if len(suffixes) == 1 else "text"
    return f"{kind.lstrip('.')}, {len(files)} file{'s' if len(files) > 1 else ''}"


def _local_source(data: str, text_column: str | None, option: str) -> Source:
    path = Path(data)
    files, suffixes = _files_of(data, option)
    columns: list[str] = []
    column = None
    if not suffixes & set(TEXT_SUFFIXES):
        columns = _columns(files, f"{option} {path}", option)
        column = _find_text_column(columns, text_column, f"{option} {path}")
    elif text_column is not None:
        raise UserError(f"--text_column {text_column}: {path} is plain text and has no columns; leave it out")
    else:
        _refuse_binary(files[0], option)

    def rows() -> Iterator[tuple[str, str | None]]:
        for file in files:
            if column is None:
                yield from ((place, composed(text)) for place, text in _text_rows(file, option))
            else:
                yield from ((place, _text_of(row, column, place)) for place, row in table_rows(file, option))

    return Source(
        name=str(path),
        format=_format_of(files, suffixes),
        fingerprint=_fingerprint(files, column),
        rows=rows,
        columns=columns,
        text_column=column,
    )


def _fingerprint(files: list[Path], text_column: str | None) -> str:
    digest = hashlib.blake2b(f"{SECTION_BYTES}".encode(), digest_size=16)
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
        digest.update(data_suffix(file).encode())
    digest.update((text_column or "").encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _open_bytes(file: Path, option: str) -> Iterator[BinaryIO]:
    if file.suffix.lower() != ".gz":
        with open(file, "rb") as stream:
            yield stream
        return
    try:
        with gzip.open(file, "rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:  # at the first byte, or in the middle of a stream
        raise UserError(f"{option} {file}: is not a whole gzip file ({error})") from None


def _refuse_binary(file: Path, option: str) -> None:
    with _open_bytes(file, option) as stream:
        head = stream.read(65536)
    for mark, name in ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if head.startswith(mark):
            raise UserError(
                f"{option} {file}: is {name} (byte order mark at offset 0); convert it: iconv -f {name} -t UTF-8"
            )
    if b"\0" in head:
        raise UserError(f"{option} {file}: is a binary file (a zero byte at offset {head.index(0)}); give a text")


def _decode(line: bytes, offset: int, file: Path, option: str) -> str:
    try:
        # UTF-8's own mark at the beginning of a file is no text.
        return line.decode("utf-8").removeprefix("\ufeff" if offset == 0 else "")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise UserError(
            f"{option} {file}: is not UTF-8: byte 0x{byte:02x} at offset {offset + error.start}; "
            f"if it is Latin-1, convert it: iconv -f LATIN1 -t UTF-8"
        ) from None


def _text_rows(file: Path, option: str) -> Iterator[tuple[str, str]]:
    """The sections of a text file with their places."""
    _refuse_binary(file, option)
    section: list[str] = []
    start = size = offset = 0
    with _open_bytes(file, option) as stream:
        for line in stream:
            section.append(_decode(line, offset, file, option))
            offset += len(line)
            size += len(line)
            if (not line.strip() and size > SECTION_BYTES // 4 and _is_border(section)) or size > LONGEST_SECTION_BYTES:
                yield f"{file}, byte {start}", "".join(section)
                section, start, size = [], offset, 0
    if size:
        yield f"{file}, byte {start}", "".join(section)


def _is_border(section: list[str]) -> bool:
    """Whether the paragraph before a blank line ends a section: one of about eight paragraphs of 500 bytes does.

    Decided by the paragraph alone: text that is added or changed elsewhere moves no border.
    """
    paragraph: list[str] = []
    for line in reversed(section[:-1]):
        if not line.strip():
            break
        paragraph.append(line)
    text = "".join(reversed(paragraph))
    # A long paragraph is more likely to be a border, so that sections are of about SECTION_BYTES in any text.
    draw = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") / 2**32
    return draw < len(text) / SECTION_BYTES


def table_rows(file: Path, option: str = "--data") -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one table file with their places, as a stream.

    Raises:
        UserError: a row that cannot be read, with its place.
    """
    suffix = data_suffix(file)
    if suffix == ".parquet":
        import pyarrow.parquet

        content, number = file, 0
        if file.suffix.lower() == ".gz":  # unpacked at once: parquet is read from its end, which a stream has not
            with _open_bytes(file, option) as stream:
                content = pyarrow.BufferReader(stream.read())
        try:
            for batch in pyarrow.parquet.ParquetFile(content).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", row
        except (OSError, ValueError) as error:
            raise UserError(f"{option} {file}: is not a whole parquet file ({error})") from None
        return
    _refuse_binary(file, option)
    if suffix == ".json":
        with _open_bytes(file, option) as stream:
            try:
                content = json.loads(_decode(stream.read(), 0, file, option))
            except json.JSONDecodeError as error:
                raise UserError(f"{option} {file}, line {error.lineno}: is not JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{option} {file}: is not JSON that can be read ({error})") from None
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise UserError(f"{option} {file}: must hold a list of objects; one object a line is called .jsonl")
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(content, 1))
        return

    def lines() -> Iterator[str]:
        offset = 0
        with _open_bytes(file, option) as stream:
            for line in stream:
                yield _decode(line, offset, file, option)
                offset += len(line)

    if suffix == ".jsonl":
        for number, line in enumerate(lines(), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{option} {file}, line {number}: is not JSON that can be read ({error})") from None
                if not isinstance(row, dict):
                    raise UserError(f'{option} {file}, line {number}: must be an object like {{"text": "…"}}')
                yield f"{file}, line {number}", row
        return
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(lines(), delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    try:
        twice = sorted({name for name in reader.fieldnames or [] if reader.fieldnames.count(name) > 1})
        if twice:
            raise UserError(f"{option} {file}, line 1: has two columns called {', '.join(twice)}; rename one")
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{option} {file}, line {reader.line_num}: has {'more' if None in row else 'fewer'} cells "
                    f"than the header ({len(reader.fieldnames)})"
                )
            yield f"{file}, line {reader.line_num}", row
    except csv.Error as error:
        # The row that failed begins behind the last one; an open quote would run to the end of the file.
        raise UserError(
            f"{option} {file}, line {reader.line_num + 1}: is not {suffix[1:].upper()} ({error}); "
            "a cell that begins with a quote ends with one, and a quote inside it is doubled"
        ) from None


def _columns(files: list[Path], place: str, option: str) -> list[str]:
    for file in files:
        for _, row in table_rows(file, option):
            return list(row)
    raise UserError(f"{place}: holds no row")


def _find_text_column(columns: list[str], wanted: str | None, place: str) -> str:
    import difflib

    if wanted is not None:
        if wanted in columns:
            return wanted
        found = difflib.get_close_matches(wanted, columns, n=1)
        hint = f"; did you mean {found[0]}?" if found else ""
        raise UserError(f"--text_column {wanted}: {place} has the columns {', '.join(columns)}{hint}")
    by_lower_name = {column.lower(): column for column in reversed(columns)}
    for name in TEXT_COLUMNS:
        if name in by_lower_name:
            return by_lower_name[name]
    if len(columns) == 1:
        return columns[0]
    raise UserError(f"{place}: none of the columns {', '.join(columns)} is called text; name it with --text_column")


def _text_of(row: dict[str, Any], column: str, place: str) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: column {column} must hold text, found {type(value).__name__}")
    if value and not value.isascii() and (half := _LONE_SURROGATE.search(value)):  # JSON can spell what UTF-8 cannot
        raise UserError(
            f"{place}: column {column} holds half a character (\\u{ord(half[0]):04x}, a surrogate without its other half) "
            f"at character {half.start()}; put U+FFFD in its place, or leave the row out"
        )
    return composed(value)


# ---------------------------------------------------------------------------------------------- the Hub


def _hub_rows(data: str, option: str) -> tuple[str, Callable[[], Iterator[tuple[str, dict[str, Any]]]]]:
    """The pinned name of a Hub dataset, and a function that starts a stream of its training split's rows."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    if constants.is_offline_mode():
        raise UserError(
            f"{option} {data}: no such file, and a Hub dataset cannot be asked for: HF_HUB_OFFLINE is set"
            f"{_similar_name(Path(data))}"
        )
    repo_id, _, revision = data.partition("@")
    try:
        sha = HfApi().dataset_info(repo_id, revision=revision or None, timeout=10).sha
    except HfHubHTTPError as error:
        raise UserError(f"{option} {data}: no such file, and the Hub says: {str(error).splitlines()[0]}") from None
    except (httpx.HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{option} {data}: no such file, and the Hub does not answer ({type(error).__name__}); "
            "check the path, or the network"
        ) from None

    import datasets

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        stream = datasets.load_dataset(repo_id, revision=sha, split="train", streaming=True)
        return ((f"{data}, row {number}", row) for number, row in enumerate(stream, 1))

    return f"{repo_id}@{sha}", rows


def _hub_source(data: str, text_column: str | None, option: str) -> Source:
    name, stream = _hub_rows(data, option)
    columns = list(next(stream())[1])
    column = _find_text_column(columns, text_column, f"{option} {data}")

    def rows() -> Iterator[tuple[str, str | None]]:
        for place, row in stream():
            yield place, _text_of(row, column, place)

    return Source(
        name=name,
        format="Hub dataset",
        fingerprint=hashlib.blake2b(f"{name}:{column}".encode(), digest_size=16).hexdigest(),
        rows=rows,
        columns=columns,
        text_column=column,
    )
