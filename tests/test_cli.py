"""The `llmkit` command: what each verb prints, refuses and leaves with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import run_llmkit, sentences

from llmkit.cli import main


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def llmkit(monkeypatch, capsys, tmp_path):
    """`llmkit …` inside this process, which has already imported what takes seconds to import."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["llmkit", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        return Answer(left.value.code, *capsys.readouterr())

    return call


def refused(answer: Answer, *expected: str) -> None:
    """Exit code 2, nothing on stdout, and one problem that holds all of `expected`."""
    assert (answer.code, answer.out) == (2, "")
    lines = answer.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert [line for line in lines if all(part in line for part in expected)], answer.err


def table(out: str) -> dict[str, str]:
    """What a person reads, by its label."""
    lines = [line.strip().partition("  ") for line in out.splitlines()]
    return {label: value.strip() for label, _, value in lines}


# ---------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("words", [["--help"], ["check", "--help"], ["generate", "-h"], ["--version"], ["chekc"]])
def test_help_and_mistakes_answer_without_heavy_imports(words, tmp_path):
    code = (
        f"import sys; sys.argv = ['llmkit', *{words}]\n"
        "from llmkit.cli import main\n"
        "try: main()\n"
        "finally: print('imported:', sorted({'torch', 'transformers', 'numpy', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "imported: []"
    assert done.returncode == (2 if words == ["chekc"] else 0)


def test_help_names_every_verb(tmp_path):
    text = run_llmkit("--help", cwd=tmp_path).stdout
    for verb in ("check", "generate", "evaluate"):
        assert f"\n    {verb} " in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["VERB", "--help"]),
        (["chekc"], ["chekc", "check, generate, evaluate", "did you mean check?"]),
        (["zzz"], ["zzz", "check, generate, evaluate"]),
        (["check", "--tokeniser", "runs/gpt"], ["unknown option --tokeniser", "did you mean --tokenizer?"]),
        (["check", "a.txt", "--depht=3"], ["unknown option --depht;", "did you mean --depth?"]),
        (["check", "--token", "x"], ["unknown option --token;", "--tokenizer"]),  # no abbreviations
        (["generate", "runs/gpt", "--temp", "0"], ["--temp", "did you mean --temperature?"]),
        (["check", "a.txt", "b.txt"], ["one word too many", "'b.txt'"]),
        (["check", "--depth", "deep"], ["--depth", "int", "'deep'"]),
        (["check", "--depth", "0"], ["--depth 0", "1 or more"]),
        (["check", "--time_budget", "soon"], ["--time_budget soon", "5m"]),
        (["evaluate", "runs/gpt"], ["--data", "required"]),
        (["generate"], ["FOLDER", "required"]),
    ],
)
def test_wrong_words_are_refused_with_the_fix(llmkit, words, expected):
    refused(llmkit(*words), *expected)


def test_a_wrong_option_leaves_with_code_2_and_says_it_once(tmp_path):
    done = run_llmkit("check", "a.txt", "--tokeniser", "runs/gpt", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown option --tokeniser; did you mean --tokenizer?\n"


# ---------------------------------------------------------------------------------------------- check


def test_check_prints_one_json_object_and_nothing_else(text_file, tmp_path):
    done = run_llmkit("check", text_file, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["data"] == str(text_file)
    assert report["format"] == "txt, 1 file"
    assert report["documents"] == report["train_documents"] + report["validation_documents"]
    assert report["train_bytes"] + report["validation_bytes"] == text_file.stat().st_size
    assert report["validation_fraction"] == 0.1
    assert report["forecast"]["depth"] >= 1
    assert list(tmp_path.iterdir()) == []


def test_check_prints_a_table(llmkit, text_file):
    answer = llmkit("check", text_file)
    assert answer.code == 0
    report = json.loads(llmkit("check", text_file, "--json").out)
    shown = table(answer.out)
    assert shown["documents"] == str(report["documents"])
    assert shown["train bytes"] == f"{report['train_bytes']:,}"
    assert shown["bytes per document"] == shown["forecast"] == ""  # headings of the lines below them
    assert shown["maximum"] == f"{report['bytes_per_document']['maximum']:,}"
    assert shown["parameters"] == f"{report['forecast']['parameters']:,}"
    assert "problems" not in shown


def test_check_counts_with_a_given_tokenizer(llmkit, gpt, text_file):
    """Counted by hand: every document's tokens and its end-of-text token, over both sides."""
    from transformers import AutoTokenizer

    from llmkit.data.sources import open_source

    tokenizer = AutoTokenizer.from_pretrained(gpt)
    documents = list(open_source(str(text_file)).documents())
    report = json.loads(llmkit("check", text_file, "--tokenizer", gpt, "--json").out)
    assert report["vocab_size"] == report["forecast"]["vocabulary"] == len(tokenizer) == 300
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in documents)
    assert report["train_tokens"] + report["validation_tokens"] == tokens
    assert report["forecast"]["tokens_per_pass"] == report["train_tokens"]


def test_check_forecasts_for_a_given_depth(llmkit, text_file):
    shallow, deep = (
        json.loads(llmkit("check", text_file, "--depth", depth, "--json").out)["forecast"] for depth in (1, 4)
    )
    assert (shallow["depth"], deep["depth"]) == (1, 4)
    assert shallow["parameters"] < deep["parameters"]


def test_check_of_the_bundled_corpus(llmkit):
    answer = llmkit("check", "--json")
    report = json.loads(answer.out)
    assert answer.code == 0
    assert report["data"] == "bundled"
    assert report["problems"] == []
    assert report["train_bytes"] > 1_000_000


@pytest.mark.parametrize("tokenizer", ["missing", "empty"])
def test_check_with_something_that_is_no_tokenizer_is_refused(llmkit, text_file, tmp_path, tokenizer):
    (tmp_path / "empty").mkdir()
    refused(llmkit("check", text_file, "--tokenizer", tokenizer), f"--tokenizer {tokenizer}")


def rows(count: int) -> str:
    return "".join(json.dumps({"text": line}) + "\n" for line in sentences(count))


@pytest.mark.parametrize(
    ("name", "content", "words", "expected"),
    [
        ("missing.txt", None, [], ["--data missing.txt", "no such file"]),
        ("empty.txt", "", [], ["empty.txt", "empty"]),
        ("blank.txt", " \n\n", [], ["blank.txt", "no text"]),
        ("line.txt", "One line.\n", [], ["line.txt", "one document", "--validation_data"]),
        ("three.jsonl", rows(3), [], ["three.jsonl", "held-out", "--validation_fraction"]),
        ("short.jsonl", rows(12), [], ["--context_length 256", "tokens in 11 documents", "more text"]),
        ("table.csv", "title,summary\na,b\n", [], ["table.csv", "title, summary", "--text_column"]),
        ("table.csv", "title,summary\na,b\n", ["--text_column", "titel"], ["--text_column titel", "mean title?"]),
        ("short.jsonl", rows(12), ["--validation_fraction", "1.5"], ["--validation_fraction 1.5", "0 and 1"]),
        ("short.jsonl", rows(12), ["--validation_fraction", "-0.5"], ["--validation_fraction -0.5", "0 and 1"]),
        ("short.jsonl", rows(12), ["--validation_fraction", "nan"], ["--validation_fraction nan", "0 and 1"]),
        ("short.jsonl", rows(12), ["--split_seed", str(2**70)], ["--split_seed", "64 bits"]),
        ("short.jsonl", rows(12), ["--validation_data", "missing.txt"], ["--validation_data missing.txt", "no such"]),
    ],
)
def test_check_leaves_with_code_2_where_training_would_be_refused(llmkit, tmp_path, name, content, words, expected):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    for_a_program = llmkit("check", name, *words, "--json")
    assert for_a_program.code == 2
    (problem,) = json.loads(for_a_program.out)["problems"]
    assert all(part in problem for part in expected), problem
    for_a_person = llmkit("check", name, *words)
    assert for_a_person.code == 2
    assert for_a_person.err == f"error: {problem}\n"


def test_check_says_all_problems_at_once(llmkit):
    words = ["missing.txt", "--validation_data", "gone.txt", "--validation_fraction", 2]
    problems = json.loads(llmkit("check", *words, "--json").out)["problems"]
    assert [problem.split(":")[0] for problem in problems] == [
        "--validation_fraction 2.0",
        "--data missing.txt",
        "--validation_data gone.txt",
    ]


# ---------------------------------------------------------------------------------------------- generate


def test_generate_with_a_seed_writes_the_same_text_again(llmkit, gpt):
    """In two processes: nothing of the text may hang on the one that writes it, or on what it did before."""
    words = ("generate", gpt, "The river", "--seed", 3, "--max_new_tokens", 12)
    first = run_llmkit(*words, cwd=gpt).stdout
    assert [llmkit(*words).out for _ in range(2)] == [first, first]
    assert first.startswith("The river")
    assert len(first) > len("The river\n")


def test_generate_with_another_seed_writes_another_text(llmkit, gpt):
    texts = {llmkit("generate", gpt, "The", "--seed", seed, "--max_new_tokens", 20).out for seed in range(3)}
    assert len(texts) == 3


def test_generate_at_temperature_0_takes_the_likeliest_token(llmkit, gpt):
    """Compared with the argmax of the logits, one token after the other."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(gpt), AutoModelForCausalLM.from_pretrained(gpt).eval()
    ids = [tokenizer.eos_token_id, *tokenizer.encode("The river")]
    for _ in range(8):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    words = ("generate", gpt, "The river", "--temperature", 0, "--max_new_tokens", 8)
    assert [llmkit(*words, "--seed", seed) for seed in (1, 2)] == [Answer(0, expected + "\n", "")] * 2


def test_generate_refuses_a_prompt_that_fills_the_context(llmkit, gpt):
    """The context is 32 tokens, one of them the end-of-text token in front; every digit is a token by itself."""
    refused(llmkit("generate", gpt, "1" * 32), "32 tokens", "looks back over 32", "shorten")
    refused(llmkit("generate", gpt, "1" * 31), "31 tokens", "looks back over 32", "shorten")
    answer = llmkit("generate", gpt, "1" * 30, "--max_new_tokens", 100)
    assert answer.code == 0
    assert answer.out.startswith("1" * 30)


def test_generate_refuses_all_impossible_numbers_at_once(llmkit):
    words = ["--temperature", "nan", "--top_p", 0, "--top_k", -2, "--max_new_tokens", 0, "--seed", -1]
    answer = llmkit("generate", "runs/gpt", *words)
    assert answer.code == 2
    assert [line.split(":")[1].strip() for line in answer.err.splitlines()] == [
        "--temperature nan",
        "--top_p 0.0",
        "--max_new_tokens 0",
        "--top_k -2",
        "--seed -1",
    ]


def test_generate_refuses_a_prompt_in_another_encoding(tmp_path):
    """A Latin-1 é, as a script of another encoding would pass it."""
    done = run_llmkit("generate", "runs/gpt", os.fsdecode(b"caf\xe9"), cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the prompt is not UTF-8 at character 3;")


@pytest.mark.parametrize("words", [["generate", "runs/gtp"], ["evaluate", "runs/gtp", "--data", "tales.txt"]])
def test_an_unknown_folder_names_those_that_are_there(llmkit, tmp_path, words):
    for name in ("gpt", "chat"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    (tmp_path / "tales.txt").write_text("A tale.\n")
    refused(llmkit(*words), "runs/gtp", "no such folder", "runs/chat, runs/gpt")


def test_a_hub_id_is_refused_while_offline(llmkit):
    refused(llmkit("generate", "nobody/gpt"), "nobody/gpt", "HF_HUB_OFFLINE")


# ---------------------------------------------------------------------------------------------- evaluate


@pytest.fixture(scope="module")
def test_text(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("held_out") / "held_out.jsonl"
    lines = [json.dumps({"text": line}) for line in [*sentences(60, seed=1), ""]]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_evaluate_prints_the_metrics_object_and_nothing_else(gpt, test_text):
    """Each figure against the parts that it is made of: the row of tokens built here, measured by `bits_per_byte`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmkit.evaluation.bits_per_byte import bits_per_byte
    from llmkit.tokenization.byte_lengths import token_byte_lengths

    metrics = json.loads(run_llmkit("evaluate", gpt, "--data", test_text, "--json", cwd=gpt).stdout)
    tokenizer, model = AutoTokenizer.from_pretrained(gpt), AutoModelForCausalLM.from_pretrained(gpt)
    ids = []
    for text in sentences(60, seed=1):
        ids += [*tokenizer.encode(text), tokenizer.eos_token_id]
    expected = bits_per_byte(model, np.array(ids), token_byte_lengths(tokenizer), context_length=32)
    assert metrics["bits_per_byte"] == pytest.approx(expected.value, rel=1e-6)
    assert metrics["bits_per_byte_ci"] == pytest.approx(expected.interval, rel=1e-6)
    assert metrics["nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-6)
    assert metrics["bits_per_byte_n"] == sum(len(text.encode()) for text in sentences(60, seed=1))
    assert (metrics["documents"], metrics["tokens"], metrics["context_length"]) == (60, len(ids), 32)
    assert metrics.keys() == {
        "bits_per_byte",
        "bits_per_byte_ci",
        "bits_per_byte_n",
        "documents",
        "tokens",
        "nats_per_token",
        "context_length",
        "data_fingerprint",
    }


def test_evaluate_prints_a_table(llmkit, gpt, test_text):
    words = ("evaluate", gpt, "--data", test_text, "--context_length", 16)
    metrics = json.loads(llmkit(*words, "--json").out)
    shown = table(llmkit(*words).out)
    assert shown["bits per byte"] == f"{metrics['bits_per_byte']:.4g}"
    assert shown["bits per byte n"] == f"{metrics['bits_per_byte_n']:,}"
    assert shown["context length"] == "16"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "missing.txt"], ["--data missing.txt", "no such file"]),
        (["--data", "blank.txt"], ["--data blank.txt", "no text"]),
        (["--data", "tales.txt", "--context_length", "33"], ["--context_length 33", "32 tokens"]),
        (["--data", "tales.txt", "--context_length", "-1"], ["--context_length -1", "32 tokens"]),
    ],
)
def test_evaluate_refuses(llmkit, gpt, tmp_path, words, expected):
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "tales.txt").write_text("A tale.\n")
    refused(llmkit("evaluate", gpt, *words), *expected)
