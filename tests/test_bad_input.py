"""What a person gives wrong is refused by the recipes: exit code 2, the value, the place and the fix, and no trace of a run.

Most cases call a recipe's `main` in this process, because a process of its own spends seconds on imports; a few are
real commands, for the exit code.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_recipe, sentences

from llmkit.errors import UserError

PRETRAIN, TOKENIZER = "pretrain_gpt", "train_tokenizer"
LINES = sentences(700)
# What a case does not give itself. Should a case not be refused, it is a run of two steps.
GOOD = {PRETRAIN: {"--data": "tales.txt", "--max_steps": "2"}, TOKENIZER: {"--data": "tales.txt"}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, text_file, gpt) -> Path:
    """A folder with every bad input by name; `tales.txt` and `gpt` are good."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copy(text_file, folder / "tales.txt")
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text(" \n\n\n")
    (folder / "binary.txt").write_bytes(b"text\0text")
    (folder / "latin1.txt").write_bytes(b"The river.\n" * 500 + "Straße\n".encode("latin-1"))
    (folder / "line.txt").write_text("The river sees the house.\n")
    (folder / "three.jsonl").write_text(jsonl(LINES[:3]))
    (folder / "short.jsonl").write_text(jsonl(LINES[:12]))
    (folder / "columns.csv").write_text("title,summary\n" + "a,b\n" * 50)
    (folder / "broken.jsonl").write_text(jsonl(LINES[:50]) + '{"text": "The ri')
    (folder / "number.jsonl").write_text(jsonl(LINES[:50]) + '{"text": 3}\n')
    (folder / "no_texts").mkdir()
    (folder / "no_texts" / "photo.jpg").touch()
    shutil.copytree(gpt, folder / "gpt")
    shutil.copytree(gpt, folder / "no_tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(gpt, folder / "no_weights", ignore=shutil.ignore_patterns("*.safetensors"))
    run_recipe(TOKENIZER, "--data", "tales.txt", "--vocab_size", 400, "--output_dir", "tokenizer_400", cwd=folder)
    return folder


def jsonl(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture(scope="module")
def recipes() -> dict:
    """The recipes as modules."""
    found = {}
    for name in (PRETRAIN, TOKENIZER):
        spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
        found[name] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found


@pytest.fixture
def refuse(recipes, inputs, tmp_path, monkeypatch):
    """Runs a recipe that must refuse, and returns its problems."""
    monkeypatch.chdir(inputs)

    def call(recipe: str, words: str, output_dir: Path | None = None) -> list[str]:
        given = words.split()
        left_out = {*given, "--max_steps"} if "--time_budget" in given else given
        good = [word for pair in GOOD[recipe].items() if pair[0] not in left_out for word in pair]
        output = ["--output_dir", str(output_dir or tmp_path / "out")] if "--output_dir" not in given else []
        monkeypatch.setattr(sys, "argv", [f"recipes/{recipe}.py", *good, *given, *output])
        with pytest.raises(UserError) as refused:
            recipes[recipe].main()
        return refused.value.problems

    return call


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------------------------------- one thing wrong

TEXT = [
    ("--data missing.txt", ["--data missing.txt", "no such file"]),
    ("--data tails.txt", ["--data tails.txt", "did you mean tales.txt?"]),
    ("--data nobody/corpus", ["--data nobody/corpus", "HF_HUB_OFFLINE"]),
    ("--data empty.txt", ["--data empty.txt", "empty"]),
    ("--data blank.txt", ["--data blank.txt", "no text"]),
    ("--data binary.txt", ["--data binary.txt", "binary", "offset 4"]),
    ("--data latin1.txt", ["--data latin1.txt", "not UTF-8", "0xdf at offset 5504", "iconv -f LATIN1 -t UTF-8"]),
    ("--data line.txt", ["--data line.txt", "one document of 26 bytes", "more text", "--validation_data"]),
    ("--data three.jsonl", ["--data three.jsonl", "3 documents", "held-out", "--validation_fraction"]),
    ("--data columns.csv", ["--data columns.csv", "title, summary", "--text_column"]),
    ("--data columns.csv --text_column titel", ["--text_column titel", "title, summary", "did you mean title?"]),
    ("--data tales.txt --text_column text", ["--text_column text", "plain text", "leave it out"]),
    ("--data broken.jsonl", ["--data broken.jsonl, line 51", "not JSON"]),
    ("--data number.jsonl", ["number.jsonl, line 51", "column text", "int"]),
    ("--data no_texts", ["--data no_texts", ".txt"]),
    ("--data no_texts/photo.jpg", ["--data no_texts/photo.jpg", ".jpg", ".txt"]),
    ("--validation_data missing.txt", ["--validation_data missing.txt", "no such file"]),
    ("--validation_data latin1.txt", ["--validation_data latin1.txt", "0xdf at offset 5504"]),
    ("--validation_fraction 1.5", ["--validation_fraction 1.5", "between 0 and 1"]),
    ("--validation_fraction nan", ["--validation_fraction", "nan"]),
    ("--validation_fraction -0.5", ["--validation_fraction -0.5", "between 0 and 1"]),
    ("--validation_fraction 0.9999", ["train", "--validation_fraction 0.9999"]),
    ("--split_seed 99999999999999999999", ["--split_seed 99999999999999999999", "64 bits"]),
]
OPTIONS = [
    ("--dta tales.txt", ["--dta", "did you mean --data?"]),
    ("--split_seed one", ["--split_seed", "int", "'one'"]),
    ("--overwrite perhaps", ["--overwrite", "perhaps"]),
    ("--config missing.yaml", ["--config missing.yaml", "no such file"]),
    ("--vocab_size 60000", ["--vocab_size 60000", "this text supports", "more text"]),
    ("--vocab_size 259", ["--vocab_size 259", "260"]),
    ("--output_dir tales.txt", ["--output_dir tales.txt", "is a file", "name a folder"]),
    ("--output_dir tales.txt/out", ["--output_dir tales.txt/out", "is a file", "name a folder"]),
    ("--output_dir no_texts", ["--output_dir no_texts", "not empty", "--overwrite"]),
]
MODEL = [
    ("--optimizer sgd", ["--optimizer", "'sgd'", "muon", "adamw"]),
    ("--lr_scheduler_kwargs {steps}", ["--lr_scheduler_kwargs", "{steps}", "JSON"]),
    ("--eval_strategy sometimes", ["--eval_strategy sometimes", "steps"]),
    ("--learning_rate nan", ["--learning_rate", "nan"]),
    ("--max_steps 0", ["--max_steps 0", "1 or more"]),
    ("--optim adafactor", ["--optim adafactor", "changes nothing", "--optimizer"]),
    ("--max_steps 2 --time_budget 5m", ["--max_steps 2", "--time_budget 5m", "give one"]),
    ("--data short.jsonl", ["--context_length", "two samples", "more text"]),
    ("--context_length 100000", ["--context_length 100000", "two samples", "shorten the context"]),
    ("--context_length 0", ["--context_length 0", "2 or more"]),
    ("--per_device_train_batch_size 4000", ["--per_device_train_batch_size 4000", "too few for one batch"]),
    ("--depth 0", ["--depth 0", "1 or more"]),
    ("--depth 1 --hidden_size 100 --num_attention_heads 3", ["--hidden_size 100", "--num_attention_heads 3"]),
    ("--depth 1 --hidden_size 63", ["--hidden_size 63", "even"]),
    (
        "--depth 1 --num_attention_heads 4 --num_key_value_heads 3",
        ["--num_attention_heads 4", "--num_key_value_heads 3"],
    ),
    ("--decay_share 1.5", ["--decay_share 1.5", "between 0 and 1"]),
    ("--time_budget soon", ["--time_budget soon", "5m, 90s or 1h30m"]),
    ("--time_budget 0s", ["--time_budget 0s", "5m, 90s or 1h30m"]),
    ("--depth 1 --time_budget 1s", ["--time_budget 1s", "too short", "give at least"]),
    ("--model nowhere", ["--model nowhere", "no such folder"]),
    ("--model nobody/gpt", ["--model nobody/gpt", "HF_HUB_OFFLINE"]),
    ("--tokenizer nobody/gpt", ["--tokenizer nobody/gpt", "HF_HUB_OFFLINE"]),
    ("--model no_tokenizer", ["--model no_tokenizer", "lacks", "tokenizer.json"]),
    ("--model no_weights", ["--model no_weights", "lacks", "model.safetensors"]),
    ("--model tokenizer_400", ["--model tokenizer_400", "lacks", "config.json", "model.safetensors"]),
    ("--tokenizer no_tokenizer", ["--tokenizer no_tokenizer", "lacks", "tokenizer.json"]),
    ("--model gpt --tokenizer tokenizer_400", ["gpt", "320 rows", "400 tokens", "the model's own tokenizer"]),
    ("--model gpt --depth 2", ["--depth 2", "gpt", "leave one of the two out"]),
    ("--model gpt --vocab_size 300", ["--vocab_size 300", "leave one of the two out"]),
    ("--tokenizer gpt --vocab_size 300", ["--vocab_size 300", "leave one of the two out"]),
    ("--model gpt --context_length 64", ["--context_length 64", "32"]),
]
CASES = [(recipe, *case) for recipe in (PRETRAIN, TOKENIZER) for case in TEXT + OPTIONS]
CASES += [(PRETRAIN, *case) for case in MODEL]


@pytest.mark.parametrize(("recipe", "words", "expected"), CASES, ids=lambda value: value if type(value) is str else "")
def test_bad_input_is_refused_with_the_fix_and_leaves_no_trace(refuse, inputs, tmp_path, recipe, words, expected):
    before = everything_below(inputs)
    (problem,) = refuse(recipe, words)
    for part in expected:
        assert part in problem
    assert list(tmp_path.iterdir()) == []
    assert everything_below(inputs) == before


@pytest.mark.parametrize(("words", "expected"), [case for case in TEXT if "0.9999" not in case[0]])
def test_check_refuses_the_same_text(inputs, monkeypatch, capsys, words, expected):
    """Whoever runs `llmkit check` first meets every problem of the text there, in the same words."""
    from llmkit import cli

    monkeypatch.chdir(inputs)
    given = words.removeprefix("--data ").split()
    positional = [] if words.startswith("--data ") else ["tales.txt"]
    monkeypatch.setattr(sys, "argv", ["llmkit", "check", *positional, *given])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    problem = capsys.readouterr().err
    for part in expected:
        assert part in problem


# ---------------------------------------------------------------------------------------------- several things wrong


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        (
            PRETRAIN,
            "--dpeth 2 --optimizer sgd --num_train_epochs many --bf16 maybe --seed 1 --seed 2",
            ["--dpeth", "--optimizer", "--num_train_epochs", "--bf16", "--seed is given twice"],
        ),
        (TOKENIZER, "--dta x --vocab_size many --overwrite maybe", ["--dta", "--vocab_size", "--overwrite"]),
        (
            PRETRAIN,
            "--depth 0 --decay_share 2 --time_budget soon --context_length -1",
            ["--depth 0", "--decay_share 2.0", "--time_budget soon", "--context_length -1"],
        ),
        (PRETRAIN, "--model gpt --depth 2 --vocab_size 300", ["--depth 2", "--vocab_size 300"]),
        (
            PRETRAIN,
            "--data missing.txt --validation_data gone.txt --validation_fraction 7",
            ["--data missing.txt", "--validation_data gone.txt", "--validation_fraction 7.0"],
        ),
        (
            TOKENIZER,
            "--data missing.txt --validation_data gone.txt --validation_fraction 7",
            ["--data missing.txt", "--validation_data gone.txt", "--validation_fraction 7.0"],
        ),
        (
            PRETRAIN,
            "--data missing.txt --model nowhere --tokenizer gone",
            ["--data missing.txt", "--model nowhere", "--tokenizer gone"],
        ),
    ],
)
def test_several_problems_are_said_at_once(refuse, tmp_path, recipe, words, expected):
    problems = refuse(recipe, words)
    assert len(problems) == len(expected)
    for part in expected:
        assert sum(part in problem for problem in problems) == 1, part
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- an earlier run


@pytest.fixture
def earlier(inputs, tmp_path) -> Path:
    """A finished run."""
    return shutil.copytree(inputs / "gpt", tmp_path / "out")


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        (PRETRAIN, "--depth 1 --max_steps 13", ["--max_steps was 12 and is 13", "another folder", "--overwrite"]),
        (PRETRAIN, "--depth 2", ["--depth was 1 and is 2"]),
        (PRETRAIN, "--data three.jsonl", ["--data was", "and is three.jsonl"]),
        (TOKENIZER, "--vocab_size 300", ["it is of pretrain_gpt"]),
    ],
)
def test_an_output_folder_with_another_run_is_refused_and_kept(refuse, earlier, recipe, words, expected):
    before = everything_below(earlier)
    (problem,) = refuse(recipe, words)
    for part in [f"--output_dir {earlier}", *expected]:
        assert part in problem
    assert everything_below(earlier) == before


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (PRETRAIN, "--data three.jsonl"),
        (PRETRAIN, "--vocab_size 60000"),
        (PRETRAIN, "--context_length 100000"),
        (PRETRAIN, "--depth 1 --hidden_size 100 --num_attention_heads 3"),
        (PRETRAIN, "--depth 1 --time_budget 1s"),
        (TOKENIZER, "--data three.jsonl"),
        (TOKENIZER, "--vocab_size 60000"),
    ],
)
def test_a_run_that_is_refused_does_not_overwrite(refuse, earlier, recipe, words):
    """--overwrite deletes for a run that can start: what is refused must not cost a person the model that was there."""
    before = everything_below(earlier)
    refuse(recipe, words + " --overwrite")
    assert everything_below(earlier) == before


# ---------------------------------------------------------------------------------------------- real commands


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        (PRETRAIN, "--dta tales.txt --depth deep", ["did you mean --data?", "'deep'"]),
        (PRETRAIN, "--data tales.txt --depth 1 --num_attention_heads 5", ["--num_attention_heads 5"]),
        (TOKENIZER, "--data latin1.txt", ["0xdf at offset 5504"]),
    ],
)
def test_a_refused_command_leaves_with_code_2(inputs, recipe, words, expected):
    done = run_recipe(recipe, *words.split(), cwd=inputs, check=False)
    assert done.returncode == 2
    problems = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(problems) == len(expected)
    for problem, part in zip(problems, expected, strict=True):
        assert part in problem
    assert "Traceback" not in done.stderr
    assert not (inputs / "runs").exists()
