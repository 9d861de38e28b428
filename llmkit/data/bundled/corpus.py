"""The bundled corpus: the docstrings of the running Python's standard library, and the handbook."""

import ast
import hashlib
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llmkit.data.bundled.handbook import Term, read_handbook
from llmkit.data.sources import Source
from llmkit.folder import atomic_write, cache_folder

SHORTEST_DOCSTRING = 20  # characters; below, it is a title and no text
_NOT_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


def source() -> Source:
    """The corpus as a `Source`; the docstrings are collected once per Python and cached."""
    docstrings = _cached_docstrings()
    handbook = [page(term) for term in read_handbook()]
    with open(docstrings, "rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
    digest.update("\0".join(handbook).encode())

    def rows() -> Iterator[tuple[str, str | None]]:
        for number, text in enumerate(handbook, 1):
            yield f"handbook, term {number}", text
        with open(docstrings, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield row["place"], row["text"]

    version = ".".join(map(str, sys.version_info[:3]))
    return Source("bundled", f"handbook and docstrings of Python {version}", digest.hexdigest(), rows)


def page(term: Term) -> str:
    """A term as a page of the handbook."""
    return f"{term.term}\n\n{term.definition} {term.explanation} {term.why}\nRelated: {', '.join(term.related)}.\n"


def _cached_docstrings() -> Path:
    """A JSONL file of {"place", "text"} of every docstring; parsing a whole library takes seconds, so it is kept."""
    library = Path(sysconfig.get_path("stdlib"))
    key = hashlib.blake2b(f"{sys.version} {library}".encode(), digest_size=8).hexdigest()
    file = cache_folder("docstrings") / f"{key}.jsonl"
    if not file.exists():
        with atomic_write(file) as stream:
            for place, text in docstrings_below(library):
                stream.write(json.dumps({"place": place, "text": text}, ensure_ascii=False) + "\n")
    return file


def docstrings_below(library: Path) -> Iterator[tuple[str, str]]:
    """(place, docstring) of every module, class and function in the Python files below a folder, in a fixed order."""
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(name for name in folders if name not in _NOT_DOCUMENTATION)
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            file = Path(folder, name)
            try:
                tree = ast.parse(file.read_bytes())
            except (SyntaxError, ValueError):  # a library may ship files that are meant to be broken
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
                    if len(text) >= SHORTEST_DOCSTRING:
                        place = file.relative_to(library).as_posix()
                        yield f"{place}, line {getattr(node, 'lineno', 1)}", text + "\n"
