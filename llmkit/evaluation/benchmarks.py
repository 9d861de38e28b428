"""Benchmarks of language models by name, run by lm-eval (EleutherAI's lm-evaluation-harness, the extra `eval`)."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmkit.errors import UserError, nearest, noting, refuse

BATCH_SIZE = 8


def evaluate_tasks(name: str, tasks: str, include_path: str | None = None, limit: int | None = None) -> dict[str, Any]:
    """A model on benchmarks, as lm-eval defines them: without a chat template, and with the tasks' own examples.

    Args:
        name: model folder, adapter folder or Hub id.
        tasks: names of tasks or groups, with commas between; `*` stands for any letters.
        include_path: a folder of task files of one's own. With files whose data are local too, nothing asks the network.
        limit: rows of each task; all if None.

    Returns:
        Under "tasks" each task's figures with their standard errors and its number of rows, groups included.

    Raises:
        UserError: lm-eval is not installed, or a task, its data, the folder or the model cannot be had; before a model is loaded.
    """
    from llmkit.inference.generate import load, require_model

    problems: list[str] = []
    if find_spec("lm_eval") is None:
        problems.append("--tasks: needs lm-eval, which is not installed; pip install 'llmkit[eval]'")
    if include_path is not None and not Path(include_path).is_dir():
        problems.append(f"--include_path {include_path}: there is no such folder; give the one with the task files")
    if limit is not None and limit < 1:
        problems.append(f"--limit {limit}: must be 1 or more")
    with noting(problems):
        require_model(name)
    refuse(problems)

    import datasets
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it would warn of a model that is handed over loaded
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # which asks the network also for a local file
    manager = TaskManager(include_path=include_path)
    names = _names(tasks, manager)
    try:
        manager.load(names)  # once before the model, since it is the data that may be missing
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"--tasks {tasks}: cannot be loaded ({type(error).__name__}: {_first_line(error)}); where there is no network, give "
            "task files with local data by --include_path"
        ) from None
    model, tokenizer = load(name)
    try:
        # The model, and not its name: a folder called runs/gpt would be looked up on the Hub.
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE),
            tasks=names,
            task_manager=manager,
            limit=limit,
            log_samples=False,
        )
    except AssertionError as error:  # how lm-eval says that a task asks for longer answers than the context holds
        raise UserError(f"--tasks {tasks}: lm-eval refuses the model {name}: {_first_line(error)}") from None
    results = {**found["results"], **found.get("groups", {})}
    return {"model": name, "limit": limit, "tasks": {task: _figures(values) for task, values in results.items()}}


def _names(tasks: str, manager: Any) -> list[str]:
    names: list[str] = []
    problems = []
    for given in filter(None, (part.strip() for part in tasks.split(","))):
        found = manager.match_tasks([given])
        if not found:
            problems.append(f"--tasks {given}: there is no such task{nearest(given, manager.all_tasks)}")
        names += [name for name in found if name not in names]
    if not names and not problems:
        problems.append(f"--tasks {tasks!r}: names no task; give names with commas between")
    refuse(problems)
    return names


def _figures(values: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's "acc,none" and "exact_match,strict" as `acc` and `exact_match (strict)`, numbers only, and the rows as `n`."""
    figures: dict[str, Any] = {}
    for key, value in values.items():
        metric, comma, way = key.partition(",")
        if comma and isinstance(value, int | float):
            figures[metric if way == "none" else f"{metric} ({way})"] = float(value)
    if "sample_len" in values:
        figures["n"] = int(values["sample_len"])
    return figures


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
