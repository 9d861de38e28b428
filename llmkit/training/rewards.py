"""Rewards: plain functions that say how good a model's answers are.

A reward is handed the answers, and the columns of their rows as lists of the same length, and returns a number for each answer.
It is TRL's signature:

    def short(completions: list[str], **columns) -> list[float]:
        return [1.0 if len(text) < 80 else 0.0 for text in completions]

Two are bundled; `--reward my_rewards.py:short` takes one from a file. Both bundled ones give whole credit or none: with partial
credit a model learns to collect it (one that had 18 % of its arithmetic right came out with 9 %).
"""

import functools
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from llmkit.data.conversations import Question
from llmkit.errors import UserError, nearest
from llmkit.folder import fingerprint

Reward = Callable[..., list[float]]

# What a model may write, for a first try of a reward: nothing, a number, a refusal, many lines, no words at all.
MADE_UP = ("", "7", "I do not know.", "First this,\n\nthen that: 1, 2, 3.", "🙂 </s> \\(-1.5e3\\)")
TRIED_ON = 4  # rows
# A minus sign belongs to a number unless it stands between two.
_NUMBER = re.compile(r"(?:(?<![\w)])[-−])?\d+(?:,\d{3})*(?:\.\d+)?")
_GIVEN = {"prompts", "completions"}  # arguments that are no columns


# ---------------------------------------------------------------------------------------------- bundled rewards


def correct_number(completions: list[str], answer: list[Any], **columns: Any) -> list[float]:
    """1.0 where the last number of an answer equals the last one in the row's `answer`, 0.0 elsewhere.

    Raises:
        ValueError: a row's `answer` holds no number.
    """
    return [float(last_number(text) == _right_number(right)) for text, right in zip(completions, answer, strict=True)]


def exact_match(completions: list[str], answer: list[Any], **columns: Any) -> list[float]:
    """1.0 where an answer is the row's `answer` up to white space, 0.0 elsewhere."""
    return [float(text.split() == str(right).split()) for text, right in zip(completions, answer, strict=True)]


BUNDLED: dict[str, Reward] = {reward.__name__: reward for reward in (correct_number, exact_match)}


def last_number(text: str) -> Decimal | None:
    """The last number of a text, where a chain of thought has its result; None if there is none."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def _right_number(answer: Any) -> Decimal:
    number = last_number(str(answer))
    if number is None:
        raise ValueError(f"the row's answer {answer!r} holds no number")
    return number


# ---------------------------------------------------------------------------------------------- finding one


def load_reward(text: str) -> Reward:
    """The reward that `--reward` names: a bundled one, or FILE.py:FUNCTION.

    Raises:
        UserError: no such name, file or function; it cannot be called; the file fails when it is read.
    """
    file, colon, name = text.rpartition(":")
    if not colon:
        if text in BUNDLED:
            return BUNDLED[text]
        if text.endswith(".py"):
            raise UserError(f"--reward {text}: names no function; write {text}:FUNCTION")
        raise UserError(
            f"--reward {text}: is none of {', '.join(BUNDLED)}, nor FILE.py:FUNCTION{nearest(text, BUNDLED)}"
        )
    path = Path(file)
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.py")]) if path.parent.is_dir() else ""
        raise UserError(f"--reward {text}: there is no file {file or repr(file)}{near}")
    if path.suffix != ".py":
        raise UserError(f"--reward {text}: {file} is no Python file; its name must end in .py")
    module = _module(path, text)
    found = getattr(module, name, None)
    if found is None:
        functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        hint = nearest(name, functions) or (f"; it has {', '.join(functions)}" if functions else "")
        raise UserError(f"--reward {text}: {file} has no function {name or repr(name)}{hint}")
    if not callable(found):
        raise UserError(
            f"--reward {text}: {name} is {type(found).__name__} and cannot be called; name a function "
            "(completions, **columns) -> list of numbers"
        )
    return found


def _module(path: Path, text: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in the file looks itself up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UserError(f"--reward {text}: {path} cannot be imported: {_said(error, spec.origin)}; mend it") from error
    return module


def reward_fingerprint(text: str) -> str:
    """What a run's identity depends on: the name, and the content of the file."""
    file, colon, name = text.rpartition(":")
    return f"{fingerprint(file)}:{name}" if colon else text


# ---------------------------------------------------------------------------------------------- calling it


def rewards_of(reward: Reward, questions: Sequence[Question], completions: Sequence[str]) -> list[float]:
    """What answers earn.

    Args:
        reward: the function; it gets the rows' columns, with None where a row lacks one, and `prompts`, their messages.
        questions: for each answer its question.
        completions: the answers.
    """
    names = dict.fromkeys(name for question in questions for name in question.columns)
    columns = {name: [question.columns.get(name) for question in questions] for name in names if name not in _GIVEN}
    return reward(completions=list(completions), prompts=[list(q.prompt) for q in questions], **columns)


def checked(reward: Reward) -> Reward:
    """The same reward, which says as a `UserError` what is wrong with it.

    The wrapped function raises it where the reward raises, returns another count than there are answers, or gives one of them
    no finite number (None, NaN, text). TRL would train on after some of these: it takes None and NaN for "not scored".
    """
    name = getattr(reward, "__name__", type(reward).__name__)

    @functools.wraps(reward)
    def function(completions: list[str], **columns: Any) -> list[float]:
        try:
            given = reward(completions=completions, **columns)
        except Exception as error:
            raise UserError(_of_raising(reward, name, error, completions, columns)) from error
        try:
            numbers = [given] if isinstance(given, str | dict) else list(given)
        except TypeError:
            raise UserError(
                f"--reward {name}: returned {_short(given)} ({type(given).__name__}) for {len(completions)} answers; return a "
                "list with one number for each"
            ) from None
        if len(numbers) != len(completions):
            raise UserError(
                f"--reward {name}: returned {len(numbers)} numbers for {len(completions)} answers, the first of which is "
                f"{_short(completions[0])}; return one for each, in their order"
            )
        for number, text in zip(numbers, completions, strict=True):
            if _finite(number) is None:
                raise UserError(
                    f"--reward {name}: returned {_short(number)} for the answer {_short(text)}; every answer needs a finite number: "
                    "return 0.0 where there is nothing to reward"
                )
        return [float(number) for number in numbers]

    return function


def try_reward(reward: Reward, questions: Sequence[Question]) -> None:
    """Call a checked reward on made-up answers to the first rows, before any model is loaded.

    Raises:
        UserError: what `checked` finds.
    """
    some = questions[:TRIED_ON]
    asked = [question for question in some for _ in MADE_UP]
    texts = [text for _ in some for text in MADE_UP]
    for question in some:  # and the right answer, where the row says it
        if "answer" in question.columns:
            asked.append(question)
            texts.append(str(question.columns["answer"]))
    rewards_of(reward, asked, texts)


def _of_raising(reward: Reward, name: str, error: Exception, completions: list[str], columns: dict[str, Any]) -> str:
    """What to say of a reward that raised: what, where, for which answer, and the fix."""
    said = _said(error, getattr(getattr(reward, "__code__", None), "co_filename", None))
    text = _first_that_raises(reward, completions, columns)
    of = f"for the answer {_short(text)}" if text is not None else f"for {len(completions)} answers together"
    fix = "a model may write anything: return 0.0 for what cannot be read"
    if isinstance(error, TypeError):
        fix = f"{fix}, and take (completions, **columns); the columns are {', '.join(columns)}"
    return f"--reward {name}: raised {said} {of}; {fix}"


def _first_that_raises(reward: Reward, completions: list[str], columns: dict[str, Any]) -> str | None:
    for number, text in enumerate(completions):
        try:
            reward(completions=[text], **{column: [values[number]] for column, values in columns.items()})
        except Exception:
            return text
    return None


def _said(error: BaseException, file: str | None) -> str:
    """An error in words, with the last line of the file that it went through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" ({file}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def _finite(value: Any) -> float | None:
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
