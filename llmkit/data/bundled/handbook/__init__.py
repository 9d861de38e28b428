"""The handbook: the terms of the road from zero to a large language model, one YAML file per chapter."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Term:
    """An entry of the handbook; `related` names other entries, `aliases` are other names of this one."""

    chapter: str
    term: str
    aliases: tuple[str, ...]
    definition: str
    explanation: str
    why: str
    related: tuple[str, ...]


def read_handbook() -> list[Term]:
    """All terms in the order of the chapters."""
    import yaml

    terms = []
    for file in sorted(Path(__file__).parent.glob("*.yaml")):
        chapter = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for entry in chapter["terms"]:
            entry = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
            terms.append(Term(chapter=chapter["title"], **entry))
    return terms
