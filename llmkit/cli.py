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
        "data",
        nargs="?",
        metavar="DATA",
        help="file, folder or Hub dataset id; none: the bundled corpus; tutor: the bundled conversations",
    )
    check.add_argument("--text_column", help="column of the text, where its name does not say so")
    check.add_argument("--validation_data", help="held-out text of its own")
    check.add_argument("--validation_fraction", type=float, help="share of documents held out; by size if not given")
    check.add_argument("--split_seed", type=int, default=0, help="another seed holds out other documents")
    check.add_argument("--tokenizer", help="tokenizer or model folder, to count tokens with")
    check.add_argument("--depth", type=int, help="forecast for a model of this depth")
    check.add_argument("--time_budget", default="5m", help="forecast for this budget; default %(default)s")
    check.add_argument("--model", metavar="FOLDER", help="of conversations: the model folder or Hub id to go on from")
    check.add_argument(
        "--max_length", type=int, help="tokens of the longest conversation; what --model looks back over"
    )
    check.add_argument("--chat_template_path", metavar="FILE.jinja", help="a chat template instead of the tokenizer's")
    check.add_argument("--rows", type=int, help="conversations whose trained and masked text is shown; 3 if not given")
    check.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="trained green, masked red; default %(default)s",
    )
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

    evaluate = _verb(verbs, "evaluate", _evaluate, "measure a model on a text, on conversations, or on benchmarks")
    evaluate.add_argument("model", metavar="FOLDER", help="model folder or Hub id")
    evaluate.add_argument(
        "--data", help="file, folder or Hub dataset id, all of it the test; tutor: the bundled tutor's tests"
    )
    evaluate.add_argument("--text_column", help="column of the text, where its name does not say so")
    evaluate.add_argument("--context_length", type=int, help="tokens of a window of text; the model's own if not given")
    evaluate.add_argument("--against", metavar="OTHER_FOLDER", help="another model, on the same conversations")
    evaluate.add_argument("--tasks", metavar="NAME,NAME", help="benchmarks by lm-eval instead of --data (extra: eval)")
    evaluate.add_argument("--include_path", metavar="FOLDER", help="task files of your own for --tasks")
    evaluate.add_argument("--limit", type=int, help="rows of each of the --tasks; all if not given")
    evaluate.add_argument("--json", action="store_true", help="print the metrics object and nothing else")

    chat = _verb(verbs, "chat", _chat, "talk to a model in the terminal, or send it questions through a pipe")
    chat.add_argument("model", metavar="FOLDER", help="model folder, adapter folder or Hub id")
    chat.add_argument("--system", metavar="TEXT", help="who the assistant is")
    chat.add_argument("--max_new_tokens", type=int, help="of an answer; by the model's context if not given")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token; default %(default)s")
    chat.add_argument("--top_k", type=int, default=0, help="sample among this many tokens; 0: all")
    chat.add_argument("--top_p", type=float, default=1.0, help="sample among the likeliest tokens of this total")
    chat.add_argument("--seed", type=int, help="the same seed gives the same answers")

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

    chat = _chat_at_first_sight(options)
    if chat is not None:
        return _check_chat(options, chat)
    problems = [
        f"--{name} {getattr(options, name)}: is for conversations, and {options.data or 'the bundled corpus'} holds none; leave it out"
        for name in _OF_CHAT
        if getattr(options, name) is not None
    ]
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


_OF_CHAT = ("max_length", "chat_template_path", "rows")  # options of `check` for conversations
_ROWS_SHOWN = 3


def _is_tutor(options: argparse.Namespace) -> bool:
    from pathlib import Path

    return options.data is None or (options.data == "tutor" and not Path("tutor").exists())


def _chat_at_first_sight(options: argparse.Namespace) -> dict[str, Any] | None:
    """The beginning of the report on conversations, preferences or questions; None where the data is text.

    The columns decide. --model says that it is no text, and --text_column that it is.
    """
    from llmkit.data.check_chat import at_first_sight

    if options.data is not None and not options.data.strip():
        return None
    if _is_tutor(options):
        return {"data": "tutor", "kind": "conversations"} if options.data or options.model else None
    if options.text_column and not options.model:
        return None
    found: dict[str, Any] = {"data": options.data, "kind": None}
    with noting([]):  # what cannot be read is said when all of it is
        found = at_first_sight(options.data)
    if found["kind"] is None and options.model:
        found["kind"] = "conversations"
    return found if found["kind"] else None


def _check_chat(options: argparse.Namespace, report: dict[str, Any]) -> int:
    """Check conversations, preferences or questions as a recipe would that trains on them.

    Args:
        report: from `_chat_at_first_sight`.
    """
    from llmkit.data.check_chat import READERS, check_rows, describe
    from llmkit.data.conversations import open_rows
    from llmkit.training.finetuning import FinetuneOptions, open_conversations, require_causal_model

    refuse(_problems_of_chat_options(options, report["kind"]))
    problems: list[str] = []
    parent: dict[str, Any] = {}
    if options.model:
        with noting(problems):
            parent = require_causal_model(options.model)
    chosen = FinetuneOptions(
        data=None if _is_tutor(options) else options.data,
        validation_data=options.validation_data,
        split_seed=options.split_seed,
    )
    if options.validation_fraction is not None:
        chosen.validation_fraction = options.validation_fraction
    rows = None
    if report["kind"] == "conversations":
        rows = open_conversations(chosen, problems)
    else:
        with noting(problems):
            rows = open_rows(chosen, READERS[report["kind"]])
    if rows is not None:
        report |= check_rows(rows)
    if options.model and not problems:
        with noting(problems):
            report |= _chat_with_model(options, rows, parent, problems)
    report["problems"] = problems
    if options.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(describe(report, options.color == "always" or (options.color == "auto" and sys.stdout.isatty())))
        refuse(problems)
    return 2 if problems else 0


def _problems_of_chat_options(options: argparse.Namespace, kind: str) -> list[str]:
    data = "the tutor" if _is_tutor(options) else options.data
    problems = [
        f"--{name} {getattr(options, name)}: is for text, and {data} holds {kind}; {fix}"
        for name, fix in (
            ("text_column", "leave it out"),
            ("tokenizer", "give --model FOLDER instead"),
            ("depth", "give --model FOLDER instead"),
        )
        if getattr(options, name) is not None
    ]
    if not options.model:
        problems += [
            f"--{name} {getattr(options, name)}: needs a tokenizer; give --model FOLDER too"
            for name in _OF_CHAT
            if getattr(options, name) is not None
        ]
    if options.max_length is not None and options.max_length < 2:
        problems.append(f"--max_length {options.max_length}: must be 2 or more")
    if options.rows is not None and options.rows < 0:
        problems.append(f"--rows {options.rows}: must be 0 or more")
    if not -(2**63) <= options.split_seed < 2**63:
        problems.append(f"--split_seed {options.split_seed}: must be a number of 64 bits")
    if _is_tutor(options) and (options.validation_data or options.validation_fraction is not None):
        problems.append(
            "--validation_data and --validation_fraction: the bundled data has its own test; give --data, or leave them out"
        )
    return problems


def _chat_with_model(
    options: argparse.Namespace, rows: Any, parent: dict[str, Any], problems: list[str]
) -> dict[str, Any]:
    """What a model's tokenizer, template and context make of the rows, and what training would take; no weights are loaded.

    Raises:
        UserError: no tokenizer or chat template, or a --max_length that the model cannot look back over.
    """

    import torch
    from transformers import AutoConfig

    from llmkit.data.check_chat import check_tokens
    from llmkit.data.conversations import Conversation
    from llmkit.modeling.models import load_tokenizer
    from llmkit.options import Setting, Settings
    from llmkit.tokenization.chat import require_template
    from llmkit.training.finetuning import inherit

    tokenizer = load_tokenizer(options.model, "--model")
    template = require_template(tokenizer, options.chat_template_path)
    config = AutoConfig.from_pretrained(options.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length = Setting(options.max_length, "default" if options.max_length is None else "command line")
    settings = Settings(max_length=length, bf16=Setting(None, "default"), fp16=Setting(False, "default"))
    # Of the model, its configuration is all that is asked for.
    autocast = inherit(settings, config, options.model, parent, device)
    length = settings["max_length"]
    shown = _ROWS_SHOWN if options.rows is None else options.rows
    report = {"model": options.model, "chat_template": template}
    report |= {"max_length": length.value, "max_length_from": length.source}
    figures, fitted = check_tokens(rows, tokenizer, length.value, shown, problems)
    report |= figures
    if fitted is not None and not problems and isinstance(rows.train[0], Conversation):
        report["forecast"] = _forecast_of_finetuning(config, parent, fitted, _is_tutor(options), autocast, device)
    return report


def _forecast_of_finetuning(
    config: Any, parent: dict[str, Any], fitted: Any, is_tutor: bool, autocast: Any, device: Any
) -> dict[str, Any]:
    """Parameters, memory and minutes of training all weights by the recipe's defaults on this machine.

    Args:
        fitted: the training side.
        autocast: the dtype to compute in; None for float32.
    """
    from llmkit.modeling.sizes import shape_of_config
    from llmkit.training import plan
    from llmkit.training.forecast import PROGRAM_GB
    from llmkit.training.instruct import InstructArguments
    from llmkit.training.measure import matrix_peaks, use_all_cores

    if device.type == "cpu":
        use_all_cores()
    in_float32, in_bfloat16 = matrix_peaks(device)
    samples = fitted.samples
    shape = shape_of_config(
        config, max(fitted.tokens // len(samples), 1)
    )  # attention is over a row, not the whole context
    flops = (in_float32 if autocast is None else in_bfloat16) * plan.EFFICIENCY[device.type]
    rate = flops / shape.flops_per_token
    batch = min(InstructArguments.per_device_train_batch_size, len(samples))
    longest = max(len(sample.ids) for sample in samples)
    memory = shape.training_bytes(batch * longest, autocast is not None)
    embedding = shape.vocab_size * shape.hidden_size
    output = 0 if getattr(config, "tie_word_embeddings", True) else embedding
    memory += 16 * output  # weights, gradients and two numbers of AdamW, in float32
    if "muon_learning_rate" not in parent.get(
        "options", {}
    ):  # AdamW trains all of it, and keeps a number more than Muon
        memory += 4 * (shape.parameters - embedding)
    passes = 1.0 if is_tutor else InstructArguments.num_train_epochs
    return {
        "parameters": shape.parameters + output,
        "memory_gb": round(memory / 1e9 + PROGRAM_GB, 2),
        "tokens_per_pass": fitted.tokens,
        "tokens_per_second": round(rate),
        "minutes_per_pass": round(fitted.tokens / rate / 60, 2),
        "passes": passes,
        "minutes_of_training": round(passes * fitted.tokens / rate / 60, 2),
    }


def _generate(options: argparse.Namespace) -> int:
    refuse([*_problems_of_sampling(options), *_not_utf8(options.prompt, "the prompt")])
    from llmkit.inference.generate import load, stream

    model, tokenizer = load(options.model)
    sampling = (options.max_new_tokens, options.temperature, options.top_k, options.top_p, options.seed)
    pieces = stream(model, tokenizer, options.prompt, *sampling)
    sys.stdout.write(options.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
    return 0


def _chat(options: argparse.Namespace) -> int:
    refuse([*_problems_of_sampling(options), *_not_utf8(options.system or "", "--system")])
    from llmkit.inference.terminal import chat_in_terminal

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    return chat_in_terminal(options.model, options.system, **{name: getattr(options, name) for name in names})


def _problems_of_sampling(options: argparse.Namespace) -> list[str]:
    problems = []
    if not options.temperature >= 0:
        problems.append(f"--temperature {options.temperature}: must be 0 or more")
    if not 0 < options.top_p <= 1:
        problems.append(f"--top_p {options.top_p}: must be above 0 and at most 1")
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        problems.append(f"--max_new_tokens {options.max_new_tokens}: must be 1 or more")
    if options.top_k < 0:
        problems.append(f"--top_k {options.top_k}: must be 0 (all) or more")
    if options.seed is not None and not 0 <= options.seed < 2**64:
        problems.append(f"--seed {options.seed}: must be from 0 to {2**64 - 1}")
    return problems


def _not_utf8(text: str, what: str) -> list[str]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # Python keeps bytes of the command line that are no UTF-8 as surrogates
        return [f"{what} is not UTF-8 at character {error.start}; write it in the terminal's encoding"]
    return []


def _evaluate(options: argparse.Namespace) -> int:
    if (options.data is None) == (options.tasks is None):
        raise UserError("one of --data and --tasks is required: a test of your own, or benchmarks by name")
    if options.tasks is not None:
        _refuse_given(options, ("text_column", "context_length", "against"), "is of --data, and --tasks are given")
        from llmkit.evaluation.benchmarks import evaluate_tasks

        report = evaluate_tasks(options.model, options.tasks, options.include_path, options.limit)
        print(json.dumps(report, indent=2) if options.json else _table(report))
        return 0
    _refuse_given(options, ("include_path", "limit"), "is of --tasks, and --data is given")
    from llmkit.evaluation.chat_model import evaluate_chat_model, holds_conversations

    if options.text_column is None and holds_conversations(options.data):
        _refuse_given(options, ("context_length",), f"is of texts, and {options.data} holds conversations")
        evaluation = evaluate_chat_model(options.model, options.data, options.against)
        if options.json:
            print(json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False))
        else:
            print(evaluation.table())
        return 0
    _refuse_given(options, ("against",), f"compares answers, and {options.data} holds no conversations")
    from llmkit.evaluation.language_model import evaluate_language_model

    metrics = evaluate_language_model(options.model, options.data, options.text_column, options.context_length)
    print(json.dumps(metrics, indent=2) if options.json else _table(metrics))
    return 0


def _refuse_given(options: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    given = [(name, getattr(options, name)) for name in names]
    refuse([f"--{name} {value}: {why}; leave it out" for name, value in given if value is not None])


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
