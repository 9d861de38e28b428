"""Reading data: every format, what is recognised, and what is refused with its place."""

import csv
import gzip
import io
import json
import random
import socket
import unicodedata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import run_recipe, sentences

from llmkit.data.sources import LONGEST_SECTION_BYTES, SECTION_BYTES, TEXT_COLUMNS, Source, open_source
from llmkit.data.splits import split
from llmkit.errors import UserError

TEXTS = ["First, with a comma.", 'A "quoted" word; naïve 🙂', "Two\nlines\tand a tab"]
TABLES = ("jsonl", "json", "csv", "tsv", "parquet")


def table_bytes(suffix: str, rows: list[dict]) -> bytes:
    """A table in one of the formats, made by its usual library."""
    if suffix == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if suffix == "json":
        return json.dumps(rows).encode()
    if suffix == "parquet":
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
        return stream.getvalue()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write(file: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def source_of(path: Path, **options) -> Source:
    return open_source(str(path), **options)


def documents(path: Path, **options) -> list[str]:
    return list(source_of(path, **options).documents())


def problem_of(path: str | Path, **options) -> str:
    """The only problem of data that is refused, at opening or while it is read."""
    with pytest.raises(UserError) as refused:
        list(open_source(str(path), **options).rows())
    assert len(refused.value.problems) == 1
    return refused.value.problems[0]


# ---------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", TABLES)
def test_every_row_of_a_table_is_a_document(tmp_path, suffix, packed):
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    source = source_of(write(tmp_path / f"rows.{suffix}{packed}", table_bytes(suffix, rows)))
    assert list(source.documents()) == TEXTS
    assert list(source.documents()) == TEXTS, "a source can be read again"
    assert (source.columns, source.text_column) == (["id", "text"], "text")
    assert source.format == f"{suffix}, 1 file"


@pytest.mark.parametrize(
    ("suffix", "places"),
    [
        ("jsonl", ["line 1", "line 2", "line 3"]),
        ("json", ["row 1", "row 2", "row 3"]),
        ("csv", ["line 2", "line 3", "line 5"]),  # the last row ends in line 5: its text has two lines
        ("tsv", ["line 2", "line 3", "line 5"]),
        ("parquet", ["row 1", "row 2", "row 3"]),
    ],
)
def test_a_row_knows_its_place(tmp_path, suffix, places):
    file = write(tmp_path / f"rows.{suffix}", table_bytes(suffix, [{"text": text} for text in TEXTS]))
    assert list(source_of(file).rows()) == [(f"{file}, {p}", text) for p, text in zip(places, TEXTS, strict=True)]


@pytest.mark.parametrize("name", ["tale.txt", "tale.md", "tale.txt.gz", "tale.md.gz", "TALE.TXT", "TALE.TXT.GZ"])
def test_a_short_text_file_is_one_document(tmp_path, name):
    file, text = tmp_path / name, "# A tale\n\nOnce upon a time.\nThe end 🙂\n"
    file.write_bytes(gzip.compress(text.encode()) if name.lower().endswith("gz") else text.encode())
    source = source_of(file)
    assert list(source.rows()) == [(f"{file}, byte 0", text)]
    assert (source.columns, source.text_column) == ([], None)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    write(tmp_path / "b.txt", "second\n")
    write(tmp_path / "a" / "z.md.gz", "first\n")
    write(tmp_path / "c" / "deep" / "x.txt", "third\n")
    write(tmp_path / "picture.png", b"\x89PNG\0")
    source = source_of(tmp_path)
    assert list(source.documents()) == ["first\n", "second\n", "third\n"]
    assert source.format == "text, 3 files"


@pytest.mark.parametrize("suffix", TABLES)
def test_a_folder_of_tables_may_hold_a_packed_one(tmp_path, suffix):
    write(tmp_path / f"1.{suffix}", table_bytes(suffix, [{"text": "one"}]))
    write(tmp_path / f"2.{suffix}.gz", table_bytes(suffix, [{"text": "two"}]))
    assert documents(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("empty", ["1.jsonl", "2.jsonl"])
def test_an_empty_file_among_tables_is_no_obstacle_wherever_it_stands(tmp_path, empty):
    for name in ("1.jsonl", "2.jsonl"):
        write(tmp_path / name, "" if name == empty else '{"text": "here"}\n')
    assert documents(tmp_path) == ["here"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_without_text_are_kept_as_rows_and_are_no_documents(tmp_path, suffix):
    rows = [{"text": "one"}, {"text": None}, {"text": ""}, {"text": " \n"}, {"text": "two"}]
    source = source_of(write(tmp_path / f"rows.{suffix}", table_bytes(suffix, rows)))
    assert [text for _, text in source.rows()] == ["one", None, "", " \n", "two"]
    assert list(source.documents()) == ["one", "two"]


def test_blank_lines_and_crlf_in_tables_are_no_rows(tmp_path):
    assert documents(write(tmp_path / "a.jsonl", '\n{"text": "one"}\r\n\n{"text": "two"}')) == ["one", "two"]
    assert documents(write(tmp_path / "a.csv", 'text,n\r\none,1\r\n\r\n"two",2')) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt.gz"])
def test_the_mark_that_some_programs_put_before_utf8_is_no_text(tmp_path, name):
    """Notepad, Excel and PowerShell write U+FEFF first; only there is it a mark."""
    suffix = name.split(".")[1]
    text = "Hello \ufeff"
    content = text.encode() if suffix == "txt" else table_bytes(suffix, [{"text": text}])
    assert documents(write(tmp_path / name, b"\xef\xbb\xbf" + content)) == [text]


@pytest.mark.parametrize("suffix", ["txt", *TABLES])
def test_text_is_composed(tmp_path, suffix):
    """The same word must be the same bytes, or it is two words to a tokenizer and no copy to the split."""
    decomposed = unicodedata.normalize("NFD", "Café, naïve, Å, 한글")
    assert decomposed != "Café, naïve, Å, 한글"
    content = decomposed.encode() if suffix == "txt" else table_bytes(suffix, [{"text": decomposed}])
    assert documents(write(tmp_path / f"a.{suffix}", content)) == ["Café, naïve, Å, 한글"]


def test_the_fingerprint_is_of_the_content(tmp_path):
    rows = [{"text": "one", "title": "two"}]
    one = source_of(write(tmp_path / "here" / "a.csv", table_bytes("csv", rows)))
    moved = source_of(write(tmp_path / "there" / "b.csv", table_bytes("csv", rows)))
    assert one.fingerprint == moved.fingerprint
    same_bytes = [source_of(write(tmp_path / f"same.{suffix}", "text\nx\n")) for suffix in ("csv", "tsv", "txt")]
    assert len({source.fingerprint for source in same_bytes}) == 3
    others = [
        source_of(tmp_path / "here" / "a.csv", text_column="title"),
        source_of(write(tmp_path / "c.csv", table_bytes("csv", [*rows, {"text": "three", "title": "four"}]))),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 3


# ---------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        *[(["id", name, "n"], name) for name in TEXT_COLUMNS],
        (["id", "TEXT"], "TEXT"),
        (["Content", "n"], "Content"),
        (["content", "text"], "text"),  # the surer name wins, wherever it stands
        (["sentence", "body"], "body"),
        (["Text", "text"], "Text"),  # of two that are alike, the first
        (["whatever"], "whatever"),  # the only one
    ],
)
def test_the_text_column_is_recognised(tmp_path, columns, expected):
    row = {column: f"in {column}" for column in columns}
    source = source_of(write(tmp_path / "a.jsonl", table_bytes("jsonl", [row])))
    assert source.text_column == expected
    assert list(source.documents()) == [f"in {expected}"]


def test_the_text_column_can_be_named(tmp_path):
    file = write(tmp_path / "a.csv", "text,summary\nlong,short\n")
    assert documents(file, text_column="summary") == ["short"]


def test_a_table_without_a_text_column_lists_its_columns_and_the_option(tmp_path):
    file = write(tmp_path / "a.csv", "question,answer\nx,y\n")
    problem = problem_of(file)
    assert all(word in problem for word in (str(file), "question, answer", "--text_column"))


def test_a_wrong_column_name_is_answered_with_the_nearest(tmp_path):
    problem = problem_of(write(tmp_path / "a.csv", "id,body_text\n1,x\n"), text_column="bodytext")
    assert all(word in problem for word in ("--text_column bodytext", "id, body_text", "did you mean body_text?"))


def test_plain_text_has_no_column_to_name(tmp_path):
    problem = problem_of(write(tmp_path / "a.txt", "x\n"), text_column="text")
    assert all(word in problem for word in ("--text_column text", "a.txt", "leave it out"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_column_that_holds_no_text_is_refused_at_its_row(tmp_path, suffix):
    file = write(tmp_path / f"a.{suffix}", table_bytes(suffix, [{"text": 5, "n": 1}]))
    problem = problem_of(file)
    assert all(word in problem for word in (str(file), " 1:", "column text", "int"))


def test_half_a_character_is_refused_at_its_row(tmp_path):
    """JSON can spell a lone surrogate, from an emoji that was cut in two; UTF-8 and the tokenizer cannot.

    It once came through to the tokenizer, which failed with a TypeError that named neither file nor line.
    """
    file = write(tmp_path / "a.jsonl", '{"text": "ok"}\n{"text": "cut \\ud83d"}\n')
    problem = problem_of(file)
    assert all(word in problem for word in (f"{file}, line 2", "column text", "\\ud83d", "character 4", "U+FFFD"))
    assert documents(write(tmp_path / "b.jsonl", '{"text": "whole \\ud83d\\ude42"}\n')) == ["whole 🙂"]


# ---------------------------------------------------------------------------------------------- sections


def paragraphs(count: int, seed: int = 0) -> list[str]:
    """Paragraphs of two to eight sentences, each with its blank line."""
    draw = random.Random(seed)
    lines = iter(sentences(8 * count, seed))
    return ["\n".join(next(lines) for _ in range(draw.randrange(2, 9))) + "\n\n" for _ in range(count)]


def sections_of(file: Path, text: str) -> list[str]:
    return documents(write(file, text))


@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_sections_are_the_text_and_their_places_are_true(tmp_path, name):
    text = "".join(paragraphs(300))
    file = write(tmp_path / name, text)
    rows = list(source_of(file).rows())
    assert "".join(section for _, section in rows) == text
    for place, section in rows:
        start = int(place.removeprefix(f"{file}, byte "))
        assert text.encode()[start:].startswith(section.encode())


def test_sections_end_at_blank_lines_and_are_of_the_stated_size(tmp_path):
    sections = sections_of(tmp_path / "book.txt", "".join(paragraphs(2000)))
    sizes = [len(section.encode()) for section in sections]
    assert all(section.endswith("\n\n") for section in sections)
    assert min(sizes[:-1]) > SECTION_BYTES // 4
    assert max(sizes) < LONGEST_SECTION_BYTES
    assert SECTION_BYTES / 1.5 < sum(sizes) / len(sizes) < SECTION_BYTES * 1.5


def test_a_text_that_grows_keeps_its_sections(tmp_path):
    """Only the last one may go on: the text that follows decides where it ends."""
    old = paragraphs(400)
    before = sections_of(tmp_path / "old.txt", "".join(old))
    after = sections_of(tmp_path / "new.txt", "".join(old + paragraphs(100, seed=1)))
    assert after[: len(before) - 1] == before[:-1]
    assert len(after) > len(before)


@pytest.mark.parametrize("at", [0, 200], ids=["at the beginning", "in the middle"])
def test_text_that_is_added_elsewhere_moves_few_sections(tmp_path, at):
    old = paragraphs(400)
    before = sections_of(tmp_path / "old.txt", "".join(old))
    after = sections_of(tmp_path / "new.txt", "".join(old[:at] + paragraphs(1, seed=1) + old[at:]))
    assert len(set(before) - set(after)) <= 3


def test_a_text_that_grows_keeps_its_sides(tmp_path):
    old = paragraphs(400)
    files = [write(tmp_path / "old.txt", "".join(old)), write(tmp_path / "new.txt", "".join(old + paragraphs(400, 1)))]
    before, after = (split(source_of(file), validation_fraction=0.3) for file in files)
    assert after.sides[: len(before.sides) - 1].tolist() == before.sides[:-1].tolist()
    assert {0, 1} <= set(before.sides[:-1].tolist()), "both sides are there to be kept"


def test_a_text_without_blank_lines_is_cut_all_the_same(tmp_path):
    text = "\n".join(sentences(2000)) + "\n"
    sections = sections_of(tmp_path / "log.txt", text)
    assert "".join(sections) == text
    longest_line = max(len(line.encode()) for line in text.splitlines(keepends=True))
    for section in sections[:-1]:
        assert LONGEST_SECTION_BYTES < len(section.encode()) <= LONGEST_SECTION_BYTES + longest_line


def test_files_do_not_run_into_each_other(tmp_path):
    write(tmp_path / "a.txt", "end of a")
    write(tmp_path / "b.txt", "start of b")
    assert documents(tmp_path) == ["end of a", "start of b"]


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("wrong", ["tails.txt", "tales.tx", "tales", "tales.txt.gz", "./tale.txt"])
def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path, monkeypatch, wrong):
    write(tmp_path / "tales.txt", "x\n")
    monkeypatch.chdir(tmp_path)
    problem = problem_of(wrong)
    assert f"--data {wrong}" in problem
    assert "did you mean tales.txt?" in problem


def test_a_missing_folder_is_named_and_so_is_the_option(tmp_path):
    problem = problem_of(tmp_path / "nowhere" / "a.txt", option="--validation_data")
    assert problem.startswith(f"--validation_data {tmp_path / 'nowhere' / 'a.txt'}")
    assert f"folder {tmp_path / 'nowhere'} is not there" in problem


@pytest.mark.parametrize("name", ["org/data", "org/data-2.5", "org/data@v1.0", "data"])
def test_a_hub_id_is_refused_at_once_while_offline(tmp_path, monkeypatch, name):
    """A version number in an id makes no file of it: org/data-2.5 was once answered with "no such file" even online."""

    def no_network(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.chdir(tmp_path)
    problem = problem_of(name)
    assert f"--data {name}" in problem
    assert "HF_HUB_OFFLINE" in problem


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", ["is empty"]),
        ("a.csv", b"", ["is empty"]),
        ("a.csv", b"text,n\n", ["holds no row"]),
        ("a.json", b"[]", ["holds no row"]),
        ("a.docx", b"PK", [".docx", ".txt", ".parquet", ".gz", "rename"]),
        ("README", b"x", ["nothing", ".txt"]),
        ("a.txt", b"ab\0c", ["binary", "offset 2"]),
        ("a.csv", b"text\nab\0c\n", ["binary", "offset 7"]),
        ("a.txt", "text".encode("utf-16"), ["UTF-16", "iconv -f UTF-16 -t UTF-8"]),
        ("a.txt", b"\xfe\xff" + "text".encode("utf-16-be"), ["UTF-16", "iconv"]),
        ("a.csv", "text\nx\n".encode("utf-16"), ["UTF-16", "iconv"]),
        ("a.txt", "0123456\ncafé\n".encode("latin-1"), ["UTF-8", "0xe9", "offset 11", "iconv -f LATIN1 -t UTF-8"]),
        ("a.txt", "naïve\n".encode() + "café\n".encode("latin-1"), ["0xe9", "offset 10"]),
        ("a.csv", "text\ncafé\n".encode("latin-1"), ["0xe9", "offset 8"]),
        ("a.jsonl", '{"text": "ok"}\n{"text": "é"}\n'.encode("latin-1"), ["0xe9", "offset 25"]),
        ("a.json", '[\n{"text": "é"}\n]'.encode("latin-1"), ["0xe9", "offset 12"]),
        ("a.txt", "end: é".encode()[:-1], ["0xc3", "offset 5"]),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', ["line 3", "JSON"]),
        ("a.jsonl", b'{"text": "x"}\n["x"]\n', ["line 2", "object"]),
        ("a.json", b'[{"text": "x"},\n {"text": }]', ["line 2", "JSON"]),
        ("a.json", b'{"text": "x"}', ["list of objects", ".jsonl"]),
        ("a.json", b'["x"]', ["list of objects"]),
        ("a.csv", b'text,n\n"two\nlines",1\nc\n', ["line 4", "fewer cells", "header (2)"]),
        ("a.csv", b"text,n\na,1\na,1,2\n", ["line 3", "more cells", "header (2)"]),
        ("a.csv", b'text,n\n\n"a"b,1\n', ["line 3", "CSV", "quote"]),
        ("a.csv", b'text,n\na,1\n"open,1\nb,2\n', ["line 3", "CSV", "quote"]),
        ("a.tsv", b'text\tn\na\t1\n"open\t1\nb\t2\n', ["line 3", "TSV", "quote"]),
        ("a.parquet", b"PAR1 and no more", ["whole parquet file"]),
    ],
)
def test_data_that_cannot_be_read_is_refused_with_its_place(tmp_path, name, content, words):
    file = write(tmp_path / name, content)
    problem = problem_of(file)
    assert problem.startswith(f"--data {file}")
    assert [word for word in words if word not in problem] == []


def test_offsets_in_a_packed_file_are_those_of_its_content(tmp_path):
    assert "offset 11" in problem_of(write(tmp_path / "a.txt.gz", "0123456\ncafé\n".encode("latin-1")))


@pytest.mark.parametrize("number", [1, 2], ids=["first file", "second file"])
def test_a_broken_file_of_a_folder_is_named(tmp_path, number):
    for n in (1, 2):
        write(tmp_path / f"{n}.txt", b"\xff\xfeb\0" if n == number else b"fine\n")
    assert problem_of(tmp_path).startswith(f"--data {tmp_path / f'{number}.txt'}: is UTF-16")


def damaged(content: bytes, how: str) -> bytes:
    if how == "cut short":
        return content[:-20_000]
    if how == "another checksum":
        return content[:-5] + bytes([content[-5] ^ 255]) + content[-4:]
    if how == "a byte changed at the beginning":
        return content[:12] + bytes([content[12] ^ 255]) + content[13:]
    return b"plain text"


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("how", ["cut short", "another checksum", "a byte changed at the beginning", "not packed"])
def test_a_damaged_gzip_file_is_refused_wherever_the_damage_is(tmp_path, suffix, how):
    """A download that stopped breaks far behind the beginning that is looked at first."""
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh ", k=1000)) for _ in range(200)]
    content = "\n".join(texts).encode() if suffix == "txt" else table_bytes(suffix, [{"text": t} for t in texts])
    file = tmp_path / f"a.{suffix}.gz"
    file.write_bytes(damaged(gzip.compress(content), how))
    assert problem_of(file).startswith(f"--data {file}: is not a whole gzip file")


def test_a_parquet_file_with_a_damaged_page_is_refused(tmp_path):
    content = bytearray(table_bytes("parquet", [{"text": "x" * 100}]))
    content[4:40] = b"\xff" * 36
    file = write(tmp_path / "a.parquet", bytes(content))
    assert problem_of(file).startswith(f"--data {file}: is not a whole parquet file")


def test_a_folder_of_several_formats_is_refused(tmp_path):
    write(tmp_path / "a.csv", "text\nx\n")
    write(tmp_path / "b.jsonl", '{"text": "x"}\n')
    assert all(word in problem_of(tmp_path) for word in (str(tmp_path), ".csv, .jsonl", "one"))
    (tmp_path / "b.jsonl").rename(tmp_path / "b.txt")
    assert ".csv, .txt" in problem_of(tmp_path)


def test_a_folder_without_data_says_what_it_looked_for(tmp_path):
    write(tmp_path / "a.png", b"x")
    assert all(word in problem_of(tmp_path) for word in (str(tmp_path), ".txt", ".parquet", ".gz"))


def test_a_folder_of_empty_files_is_empty(tmp_path):
    write(tmp_path / "a.txt", b"")
    write(tmp_path / "b.txt", b"")
    assert "is empty" in problem_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [("missing.txt", None, "no such file"), ("late.txt", b"fine\n" * 20_000 + b"caf\xe9\n", "offset 100003")],
)
def test_a_recipe_ends_with_exit_code_2_and_writes_nothing(tmp_path, name, content, word):
    if content is not None:
        write(tmp_path / name, content)
    done = run_recipe("train_tokenizer", "--data", name, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ([name] if content else [])
