"""The `llmkit` command: one small function per verb; heavy imports inside, so that --help answers at once."""

import argparse
import json
import sys
from typing import Any

import llmkit
from llmkit.errors import UserError, nearest, noting, refuse, run


class _Parser(argparse.ArgumentParser):
    """argparse that raises `UserError`, with the nearest option for an unknown one."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; {self.prog} --help shows how it is used")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        known = [name for action in self._verb(found)._actions for name in action.option_strings]
        names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        refuse([f"unknown option {name}{nearest(name, known)}" for name in names])
        refuse([f"one word too many: {word!r}" for word in unknown])
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(action.choices)
            raise argparse.ArgumentError(action, f"{value} is none of {', '.join(choices)}{nearest(value, choices)}")

    def _verb(self, found: Any) -> argparse.ArgumentParser:
        choices = self._subparsers._group_actions[0].choices if self._subparsers else {}
        return choices.get(getattr(found, "verb", None), self)


def main() -> None:
    run(_main)


def _main() -> int:
    parser = _Parser(prog="llmkit", description=llmkit.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"llmkit {llmkit.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    check = _verb(verbs, "check", _check, "look at data before training on it")
    check.add_argument(
        "data", nargs="?", metavar="DATA", help="file, folder or Hub dataset id; none: the bundled corpus"
    )
    check.add_argument("--text_column", help="column of the text, where its name does not say so")
    check.add_argument("--validation_data", help="held-out text of its own")
    check.add_argument("--validation_fraction", type=float, help="share of documents held out; by size if not given")
    check.add_argument("--split_seed", type=int, default=0, help="another seed holds out other documents")
    check.add_argument("--tokenizer", help="tokenizer or model folder, to count tokens with")
    check.add_argument("--depth", type=int, help="forecast for a model of this depth")
    check.add_argument("--time_budget", default="5m", help="forecast for this budget; default %(default)s")
    check.add_argument("--json", action="store_true", help="print one JSON object")

    generate = _verb(verbs, "generate", _generate, "continue a text")
    generate.add_argument("model", metavar="FOLDER", help="model folder or Hub id")
    generate.add_argument("prompt", nargs="?", default="", help="the text to continue; none starts a document")
    generate.add_argument("--max_new_tokens", type=int, default=200, help="default %(default)s")
    generate.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest token; default %(default)s"
    )
    generate.add_argument("--top_k", type=int, default=0, help="sample among this many tokens; 0: all")
    generate.add_argument("--top_p", type=float, default=1.0, help="sample among the likeliest tokens of this total")
    generate.add_argument("--seed", type=int, help="the same seed gives the same text")

    evaluate = _verb(verbs, "evaluate", _evaluate, "measure a model on a text")
    evaluate.add_argument("model", metavar="FOLDER", help="model folder or Hub id")
    evaluate.add_argument("--data", required=True, help="file, folder or Hub dataset id; all of it is the test")
    evaluate.add_argument("--text_column", help="column of the text, where its name does not say so")
    evaluate.add_argument("--context_length", type=int, help="tokens of a window; the model's own if not given")
    evaluate.add_argument("--json", action="store_true", help="print the metrics object and nothing else")

    options = parser.parse_args()
    return options.run(options)


def _verb(verbs: Any, name: str, function: Any, help: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
    parser.set_defaults(run=function)
    return parser


def _check(options: argparse.Namespace) -> int:
    import dataclasses

    from llmkit.data.check import check_text
    from llmkit.data.text import TextOptions
    from llmkit.folder import require_model_folder
    from llmkit.training.budget import parse_budget

    problems = []
    if options.depth is not None and options.depth < 1:
        problems.append(f"--depth {options.depth}: must be 1 or more")
    with noting(problems):
        parse_budget(options.time_budget)
    if options.tokenizer:
        with noting(problems):
            require_model_folder(options.tokenizer, "--tokenizer", weights=False)
    refuse(problems)
    names = [field.name for field in dataclasses.fields(TextOptions)]
    report, sides = check_text(TextOptions(**{name: getattr(options, name) for name in names}))
    if not report["problems"]:
        report |= _tokens(options, report, sides)
    if not report["problems"]:
        from llmkit.training.forecast import forecast

        report["forecast"] = forecast(report, options.depth, options.time_budget)
    print(json.dumps(report, indent=2, ensure_ascii=False) if options.json else _table(report))
    if not options.json:
        refuse(report["problems"])
    return 2 if report["problems"] else 0


def _tokens(options: argparse.Namespace, report: dict[str, Any], sides: Any) -> dict[str, Any]:
    """Token counts of both sides, and whether they are enough to train on.

    Without --tokenizer they are counted only for a text that might be too small: training its tokenizer takes no time.
    """
    from llmkit.data.check import count_tokens, problem_of_length
    from llmkit.options import Setting, Settings

    if options.tokenizer:
        from llmkit.modeling.models import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer, "--tokenizer")
    elif report["train_bytes"] < 100_000:
        from llmkit.tokenization.bpe import tokenizer_for

        tokenizer = tokenizer_for(sides, Settings(vocab_size=Setting(None, "default")))
    else:
        return {}
    import torch

    from llmkit.training.plan import plan_context

    counts = count_tokens(sides, tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    context = plan_context(Settings(context_length=Setting(None, "default")), device)
    problem = problem_of_length(counts["train_tokens"], sides.train_documents, context)
    return {"vocab_size": len(tokenizer), **counts, "problems": [problem] if problem else []}


def _generate(options: argparse.Namespace) -> int:
    from llmkit.inference.generate import load, stream

    problems = []
    if not options.temperature >= 0:
        problems.append(f"--temperature {options.temperature}: must be 0 or more")
    if not 0 < options.top_p <= 1:
        problems.append(f"--top_p {options.top_p}: must be above 0 and at most 1")
    if options.max_new_tokens < 1:
        problems.append(f"--max_new_tokens {options.max_new_tokens}: must be 1 or more")
    if options.top_k < 0:
        problems.append(f"--top_k {options.top_k}: must be 0 (all) or more")
    if options.seed is not None and not 0 <= options.seed < 2**64:
        problems.append(f"--seed {options.seed}: must be from 0 to {2**64 - 1}")
    try:
        options.prompt.encode("utf-8")
    except UnicodeEncodeError as error:  # Python keeps bytes of the command line that are no UTF-8 as surrogates
        problems.append(f"the prompt is not UTF-8 at character {error.start}; write it in the terminal's encoding")
    refuse(problems)
    model, tokenizer = load(options.model)
    sampling = (options.max_new_tokens, options.temperature, options.top_k, options.top_p, options.seed)
    pieces = stream(model, tokenizer, options.prompt, *sampling)
    sys.stdout.write(options.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from llmkit.evaluation.language_model import evaluate_language_model

    metrics = evaluate_language_model(options.model, options.data, options.text_column, options.context_length)
    print(json.dumps(metrics, indent=2) if options.json else _table(metrics))
    return 0


def _table(values: dict[str, Any], indent: str = "") -> str:
    """A flat or nested object as aligned lines."""
    lines = []
    width = max(len(name) for name in values)
    for name, value in values.items():
        if name == "problems" or value is None:
            continue
        label = name.replace("_", " ")
        if isinstance(value, dict):
            lines += [f"{indent}{label}", _table(value, indent + "  ")]
            continue
        if isinstance(value, list):
            value = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)
        elif isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        lines.append(f"{indent}{label:<{width}}  {value}")
    return "\n".join(lines)
