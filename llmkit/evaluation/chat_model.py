"""A chat model on conversations of one's own: how many answers are exactly right, and whether another model has more."""

import textwrap
from dataclasses import dataclass
from typing import Any

from llmkit.data.conversations import (
    COMPLETION,
    INSTRUCTION,
    MESSAGES,
    OUTPUT,
    PROMPT,
    Conversation,
    conversation_from,
    read_rows,
    tutor_rows,
)
from llmkit.data.sources import open_table
from llmkit.errors import UserError, noting, refuse
from llmkit.evaluation.chat import Answers, answer_rows, compare

TUTOR = "tutor"  # as --data: the bundled tests; a file of that name is ./tutor
SIGNIFICANCE = 0.05  # a difference with a smaller p value is called more than noise
WRONG_SHOWN = 20
_FORMS = ((MESSAGES,), (PROMPT, COMPLETION), (INSTRUCTION, OUTPUT))


@dataclass
class ChatEvaluation:
    """The answers of one model, or of two, to the same questions.

    Attributes:
        data: as the user gave it.
        fingerprint: of the data.
        models: each model's name, and its answers by the name of the test; the first is the one that is asked about.
    """

    data: str
    fingerprint: str
    models: list[tuple[str, dict[str, Answers]]]

    def to_json(self) -> dict[str, Any]:
        """The figures, flat; those of the other model below "against", and the comparison of each test."""
        ours, *others = (_figures(name, answers) for name, answers in self.models)
        report = {"data": self.data, "data_fingerprint": self.fingerprint, **ours}
        for theirs in others:
            report |= {"against": theirs, "comparison": self.comparison()}
        return report

    def comparison(self) -> dict[str, dict[str, Any]]:
        """Of each test, on how many rows one of the two models alone is right, and whether that is more than noise."""
        (_, ours), (_, theirs) = self.models
        found = {test: compare(answers, theirs[test]) for test, answers in ours.items()}
        return {
            test: figures | {"more_than_noise": figures["p_value"] < SIGNIFICANCE} for test, figures in found.items()
        }

    def table(self) -> str:
        """The same for a person, with the first wrong answers of the first model."""
        lines: list[str] = []
        columns = [max(len(name), 26) for name, _ in self.models]
        for test in self.models[0][1]:
            figures = [answers[test].metrics() for _, answers in self.models]
            shares = [name for name in figures[0] if f"{name}_n" in figures[0]]
            labels = [name.removeprefix("exact_match").lstrip("_").replace("_", " ") or "all" for name in shares]
            width = max(len(label) for label in [*labels, f"{test}, exactly right"])
            names = (f"{name:<{column}}" for (name, _), column in zip(self.models, columns, strict=True))
            lines.append(f"{f'{test}, exactly right':<{width}}  {'  '.join(names)}  rows")
            for name, label in zip(shares, labels, strict=True):
                cells = (f"{_share(found, name):<{column}}" for found, column in zip(figures, columns, strict=True))
                lines.append(f"{label:<{width}}  {'  '.join(cells)}  {figures[0][f'{name}_n']:,}")
            if len(self.models) > 1:
                lines.append(self._verdict(test))
        wrong = [entry for answers in self.models[0][1].values() for entry in answers.wrong()]
        if wrong:
            more = (
                f", the first {WRONG_SHOWN} of {len(wrong):,} (--json has them all)" if len(wrong) > WRONG_SHOWN else ""
            )
            lines.append(f"wrong answers of {self.models[0][0]}{more}:")
        for entry in wrong[:WRONG_SHOWN]:
            kind = f"[{entry['kind']}] " if entry["kind"] else ""
            lines += [
                f"  {kind}{_short(entry['question'])}",
                f"    answer  {_short(entry['answer']) or '(nothing)'}",
                f"    right   {_short(entry['right'])}",
            ]
        return "\n".join(lines)

    def _verdict(self, test: str) -> str:
        (ours, _), (theirs, _) = self.models
        found = self.comparison()[test]
        verdict = "more than noise" if found["more_than_noise"] else "no more than noise"
        return (
            f"{ours} alone is right on {found['only_this_right']:,} rows, {theirs} alone on {found['only_other_right']:,}: "
            f"{verdict} (McNemar's exact test on the paired rows, p = {found['p_value']:.2g})"
        )


def holds_conversations(data: str) -> bool:
    """Whether data are rows of conversations, by the columns of the first one; a text otherwise.

    Raises:
        UserError: the first row cannot be read.
    """
    if data == TUTOR:
        return True
    try:
        table = open_table(data)
    except (
        UserError
    ):  # plain text, or something that is refused again, in the same words, as the text it is then taken for
        return False
    _, row = next(table.rows(), ("", {}))
    return any(all(any(name in row for name in names) for names in form) for form in _FORMS)


def open_conversations(data: str) -> tuple[dict[str, list[Conversation]], str]:
    """The tests that `--data` names, by name, and the fingerprint of the data.

    Raises:
        UserError: every row that cannot be used.
    """
    if data == TUTOR:
        rows = tutor_rows(0, 0)
        return {"test": rows.validation, **rows.further}, rows.fingerprint
    table = open_table(data)
    return {"test": read_rows(table, conversation_from)}, table.fingerprint


def evaluate_chat_model(name: str, data: str, against: str | None = None) -> ChatEvaluation:
    """Let a model, or two, answer the last question of every row, greedily.

    Args:
        name: model folder, adapter folder or Hub id.
        data: what `--data` takes, or "tutor"; all of it is the test.
        against: another model.

    Raises:
        UserError: of models and data, all at once, before a model is loaded.
    """
    from llmkit.inference.chat import load_chat_tokenizer
    from llmkit.inference.generate import load_weights

    problems: list[str] = []
    models = [(name, "the model")] + ([(against, "--against")] if against is not None else [])
    tokenizers = []
    for model, option in models:
        with noting(problems):
            tokenizers.append(load_chat_tokenizer(model, option))
    with noting(problems):
        tests, fingerprint = open_conversations(data)
    refuse(problems)
    answers = [
        (model, _answer(model, load_weights(model, tokenizer, option), tokenizer, tests))
        for (model, option), tokenizer in zip(models, tokenizers, strict=True)
    ]
    return ChatEvaluation(data, fingerprint, answers)


def _answer(name: str, model: Any, tokenizer: Any, tests: dict[str, list[Conversation]]) -> dict[str, Answers]:
    from tqdm import tqdm

    rows = sum(map(len, tests.values()))
    with tqdm(total=rows, desc=f"{name} answers", disable=None, leave=False) as bar:  # None: only on a terminal
        return {test: answer_rows(model, tokenizer, some, bar.update) for test, some in tests.items()}


def _figures(name: str, answers: dict[str, Answers]) -> dict[str, Any]:
    found: dict[str, Any] = {"model": name}
    for test, given in answers.items():
        found |= given.metrics("exact_match" if test == "test" else f"exact_match_{test}")
    return found | {"wrong_answers": {test: given.wrong() for test, given in answers.items()}}


def _share(figures: dict[str, Any], name: str) -> str:
    low, high = figures[f"{name}_ci"]
    return f"{figures[name]:6.1%} ({low:.1%} to {high:.1%})"


def _short(text: str) -> str:
    return textwrap.shorten(text, 300, placeholder=" …")
