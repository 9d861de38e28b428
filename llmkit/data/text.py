"""A text corpus as recipes and `llmkit check` take it: options, sources, both sides."""

from dataclasses import dataclass

from llmkit.data.sources import Source, open_source
from llmkit.data.splits import Split, problems_of, split
from llmkit.errors import noting, refuse
from llmkit.options import option


@dataclass
class TextOptions:
    """Which text, and which part of it is held out."""

    data: str | None = option(None, "File, folder or Hub dataset id; None: the bundled corpus.")
    text_column: str | None = option(None, "Column of the text, where its name does not say so.")
    validation_data: str | None = option(None, "Held-out text of its own.")
    validation_fraction: float | None = option(None, "Share of documents held out; None: by size.")
    split_seed: int = option(0, "Another seed holds out other documents.")


@dataclass
class Text:
    """An opened corpus."""

    options: TextOptions
    source: Source
    validation_source: Source | None

    @classmethod
    def open(cls, options: TextOptions) -> "Text":
        """Find out what the data is.

        Raises:
            UserError: an option is wrong, or a source cannot be read as text; all problems at once.
        """
        problems: list[str] = []
        fraction, seed = options.validation_fraction, options.split_seed
        if fraction is not None and not 0 < fraction < 1:
            problems.append(f"--validation_fraction {fraction}: must be between 0 and 1")
        if not -(2**63) <= seed < 2**63:
            problems.append(f"--split_seed {seed}: must be a number of 64 bits")
        source = held_out = None
        with noting(problems):
            source = open_source(options.data, options.text_column)
        if options.validation_data:
            with noting(problems):
                held_out = open_source(options.validation_data, options.text_column, "--validation_data")
        refuse(problems)
        return cls(options, source, held_out)

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """What a run's identity depends on."""
        held_out = self.validation_source
        return {"data": self.source.fingerprint, "validation_data": held_out.fingerprint if held_out else None}

    def split(self) -> Split:
        """Both sides, from the cache if this content was split before."""
        return split(self.source, self.validation_source, self.options.validation_fraction, self.options.split_seed)

    def usable_split(self) -> Split:
        """Both sides.

        Raises:
            UserError: one of them is empty.
        """
        sides = self.split()
        refuse(problems_of(sides))
        return sides
