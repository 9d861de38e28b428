"""`llmkit check` on conversations, preferences and questions: what it counts, shows, refuses and leaves with."""

import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import run_llmkit, sentences
from transformers import AutoModelForCausalLM

from llmkit.cli import main
from llmkit.data.check_chat import POINTS, kind_of
from llmkit.data.conversations import MOST_PROBLEMS
from llmkit.modeling.models import new_model
from llmkit.modeling.sizes import shape_of_depth
from llmkit.tokenization.bpe import train_bpe

CONTEXT = 256


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def report(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    """`llmkit check …` inside this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["llmkit", "check", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        return Answer(left.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def tokenizer():
    """Every digit is a token by itself, so that lengths can be told beforehand."""
    return train_bpe(sentences(300), 400)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer) -> Path:
    """A model folder with random weights that looks back over 256 tokens."""
    folder = tmp_path_factory.mktemp("model") / "gpt"
    new_model(shape_of_depth(1, len(tokenizer), CONTEXT), tokenizer, 0.02).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(*contents: str | None, system: str | None = None) -> dict:
    """A row of messages: user and assistant in turn, below a system message."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *messages]}


def write(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def held_out(count: int = 2) -> list[object]:
    """The option for held-out rows of their own, so that every row of the data is on the training side."""
    return ["--validation_data", write("held_out.jsonl", [chat(f"held out {n}", f"9{n}") for n in range(count)])]


# ---------------------------------------------------------------------------------------------- which data it is


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ("messages", "conversations"),
        ("conversations id", "conversations"),
        ("prompt completion", "conversations"),
        ("question answer", "conversations"),
        ("instruction input output", "conversations"),
        ("instruction input output text", "conversations"),  # as tatsu-lab/alpaca has it
        ("instruction", "conversations"),  # refused there, with what is missing
        ("prompt chosen rejected", "preferences"),
        ("chosen rejected", "preferences"),
        ("prompt chosen", "preferences"),
        ("prompt", "questions"),
        ("question level", "questions"),
        ("text", None),
        ("text question", None),
        ("Text prompt", None),
        ("title summary", None),
        ("", None),
    ],
)
def test_columns_tell_what_rows_are(columns, kind):
    assert kind_of(columns.split()) == kind


ROWS = {
    "conversations": [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "id": n} for n in range(30)],
    "preferences": [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No"} for n in range(30)],
    "questions": [{"prompt": f"What is {n}?", "solution": n} for n in range(30)],
}


@pytest.mark.parametrize("kind", ROWS)
def test_without_a_model_everything_that_needs_no_tokenizer_is_told(check, kind):
    answer = check(write("rows.jsonl", ROWS[kind]), "--validation_fraction", 0.3, "--json")
    report = answer.report
    assert (answer.code, report["problems"]) == (0, [])
    assert (report["data"], report["kind"], report["format"]) == ("rows.jsonl", kind, "jsonl, 1 file")
    assert report["columns"] == list(ROWS[kind][0])
    assert report["train_rows"] + report["validation_rows"] == 30
    assert 1 <= report["validation_rows"] < 25
    answers = 0 if kind == "questions" else 30
    assert report["messages"] == {"system": 0, "user": 30, "assistant": answers}
    assert report["rows_by_turns"] == {"1": 30}
    assert not {"chat_template", "tokens_per_row", "forecast", "shown_rows"} & report.keys()
    lengths = report["characters_per_answer"]
    assert lengths is None if kind == "questions" else (lengths["minimum"], lengths["maximum"]) == (8, 9)
    assert check("rows.jsonl", "--validation_fraction", 0.3).code == 0


def test_text_stays_text(check, text_file):
    assert check(text_file, "--json").report["documents"] > 0
    rows = [{"instruction": f"Do {n}", "output": line, "text": line} for n, line in enumerate(sentences(100))]
    write("rows.jsonl", rows)
    assert "train_rows" in check("rows.jsonl", "--json").report
    report = check("rows.jsonl", "--text_column", "text", "--json").report
    assert (report["text_column"], report["documents"]) == ("text", 100)


def test_the_tutor_is_checked_by_its_name(check):
    answer = check("tutor", "--json")
    report = answer.report
    assert (answer.code, report["problems"]) == (0, [])
    assert (report["data"], report["kind"], report["train_rows"]) == ("tutor", "conversations", 24_000)
    assert report["further_rows"]["blind"] >= 60
    assert len(report["rows_by_turns"]) >= 3
    assert "not in my handbook" in report["repeated_answers"][0]["answer"]


def test_a_file_called_tutor_is_a_file(check):
    Path("tutor").write_text("x")
    answer = check("tutor", "--json")
    assert answer.code == 2
    assert "--data tutor" in answer.report["problems"][0]


# ---------------------------------------------------------------------------------------------- rows, roles, copies


def test_sides_roles_and_turns_are_counted(check):
    rows = [
        chat("a1", "1"),
        chat("a2", "2", "a3", "3"),
        chat("a4", "4", system="S"),
        chat("a5", "5", "6", "7", "8", "9"),
    ]
    answer = check(write("chats.jsonl", rows), *held_out(2), "--json")
    report = answer.report
    assert (report["train_rows"], report["validation_rows"]) == (4, 2)
    assert report["messages"] == {"system": 1, "user": 9, "assistant": 9}
    assert report["rows_by_turns"] == {"1": 4, "2": 1, "3": 1}
    assert report["rows_with_system_message"] == 1
    out = check("chats.jsonl", *held_out(2)).out
    for line in (
        "data: chats.jsonl (jsonl, 1 file, columns messages): conversations",
        "rows: train 4, held out 2",
        "messages: 1 system, 9 user, 9 assistant; 1 rows with a system message",
        "rows by turns: 4 of 1, 1 of 2, 1 of 3",
    ):
        assert line in out.splitlines()


def test_copies_and_leaks_across_the_split_are_counted(check):
    long = "please tell me in a few words what the capital of the country of {} is"
    rows = [chat(f"short {n}", str(n)) for n in range(10)]
    rows += [chat("short 1", "1"), chat("short 2", "2")]  # exact copies
    rows += [chat(long.format("France"), "Paris"), chat("said twice", "x")]
    Path("held_out.jsonl").write_text(
        "".join(json.dumps(chat(text, "y")) + "\n" for text in (long.format("Spain"), "said  twice", "something else"))
    )
    report = check(write("chats.jsonl", rows), "--validation_data", "held_out.jsonl", "--json").report
    assert (report["exact_copies"], report["near_copies_across_the_split"]) == (2, 2)
    assert (report["train_rows"], report["validation_rows"]) == (10, 3)
    out = check("chats.jsonl", "--validation_data", "held_out.jsonl").out
    assert "left out: 2 exact copies, 2 near copies across the split" in out


def test_answers_that_come_often_are_shown(check):
    answers = ["Sure!"] * 5 + ["No."] * 4 + ["Yes."] * 3 + ["Perhaps."] * 2 + ["once"]
    rows = [chat(f"question {n}", answer) for n, answer in enumerate(answers)]
    report = check(write("chats.jsonl", rows), *held_out(), "--json").report
    assert report["repeated_answers"] == [
        {"answer": "Sure!", "rows": 5},
        {"answer": "No.", "rows": 4},
        {"answer": "Yes.", "rows": 3},
    ]
    assert "the same answer in 5 rows: 'Sure!'" in check("chats.jsonl", *held_out()).out


# ---------------------------------------------------------------------------------------------- tokens


def test_exact_masks_are_shown_for_a_single_turn(check, model):
    words = (write("chats.jsonl", [chat("What is it?", "A thing.")]), *held_out(), "--model", model)
    (row,) = check(*words, "--json").report["shown_rows"]
    assert row["place"] == "chats.jsonl, line 1"
    assert row["pieces"] == [
        {"text": "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", "trained": False},
        {"text": "A thing.<|im_end|>", "trained": True},
        {"text": "\n", "trained": False},
    ]
    out = check(*words).out
    assert "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n[[A thing.<|im_end|>]]\n" in out
    assert "\x1b" not in out, "no colour where it is no terminal"


def test_exact_masks_are_shown_for_several_turns_and_a_system_message(check, model):
    rows = [chat("naïve?", "Yes 🙂", "And\n\n2?", "No.", system="Be short.")]
    words = (write("chats.jsonl", rows), *held_out(), "--model", model)
    expected = (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\nnaïve?<|im_end|>\n<|im_start|>assistant\n[[Yes 🙂<|im_end|>]]\n"
        "<|im_start|>user\nAnd\n\n2?<|im_end|>\n<|im_start|>assistant\n[[No.<|im_end|>]]\n"
    )
    assert expected in check(*words).out
    (row,) = check(*words, "--json").report["shown_rows"]
    assert "".join(f"[[{piece['text']}]]" if piece["trained"] else piece["text"] for piece in row["pieces"]) == expected


def test_colour_is_green_for_trained_and_red_for_masked(check, model):
    words = (write("chats.jsonl", [chat("Q?", "A.")]), *held_out(), "--model", model)
    out = check(*words, "--color", "always").out
    assert "\x1b[31m<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n\x1b[0m\x1b[32mA.<|im_end|>\x1b[0m" in out
    assert "[[" not in out
    assert "\x1b" not in check(*words, "--color", "never").out


def test_a_row_can_do_nothing_to_a_terminal(check, model):
    rows = [chat("clear \x1b[2J the screen", "\x07 bell")]
    out = check(write("chats.jsonl", rows), *held_out(), "--model", model).out
    assert "clear \\x1b[2J the screen" in out
    assert "\\x07 bell" in out
    assert not {"\x1b", "\x07"} & set(out)


@pytest.mark.parametrize(("given", "shown"), [([], 3), (["--rows", 0], 0), (["--rows", 5], 5), (["--rows", 99], 8)])
def test_as_many_rows_are_shown_as_asked_for(check, model, given, shown):
    rows = [chat(f"question {n}", str(n)) for n in range(8)]
    words = (write("chats.jsonl", rows), *held_out(), "--model", model, *given)
    places = [row["place"] for row in check(*words, "--json").report["shown_rows"]]
    assert places == [f"chats.jsonl, line {n}" for n in range(1, shown + 1)]
    assert check(*words).out.count("--- chats.jsonl, line") == shown


def test_lengths_are_counted_in_tokens(check, model, tokenizer):
    """A question of one digit, and an answer of as many digits as its row says."""
    digits = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20]
    rows = [chat(str(n % 10), "7" * n) for n in digits]
    report = check(write("chats.jsonl", rows), *held_out(2), "--model", model, "--json").report
    around = sum(
        len(tokenizer(text)["input_ids"])
        for text in ("<|im_start|>user\n", "1", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", "\n")
    )
    prompt = len(tokenizer("<|im_start|>user\nheld out 0<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    validation = prompt + 2 + 1 + 1  # two digits, the end token and a line break
    lengths = sorted([*(around + n for n in digits), validation, validation])
    assert report["tokens_per_row"].keys() == report["trained_tokens_per_row"].keys() == POINTS.keys()
    assert (report["tokens_per_row"]["minimum"], report["tokens_per_row"]["maximum"]) == (lengths[0], lengths[-1])
    assert report["tokens_per_row"]["median"] == lengths[len(lengths) // 2]
    assert (report["trained_tokens_per_row"]["minimum"], report["trained_tokens_per_row"]["maximum"]) == (2, 21)
    assert report["trained_tokens"] == sum(digits) + len(digits) + 2 * 3
    assert report["trained_share"] == pytest.approx(report["trained_tokens"] / sum(lengths))
    assert report["answers"] == report["answers_with_trained_end"] == 13


def test_rows_that_are_too_long_are_counted_with_what_is_lost(check, model, tokenizer):
    """Of 10 rows one has an answer of 400 digits and one a question of 400; the model looks back over 256 tokens."""
    rows = [chat(f"{n}", "1") for n in range(8)] + [chat("8", "1" * 400), chat("1" * 400, "9")]
    words = (write("chats.jsonl", rows), *held_out(2), "--model", model)
    report = check(*words, "--json").report
    prompt = len(tokenizer("<|im_start|>user\n8<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    assert (report["max_length"], report["max_length_from"]) == (CONTEXT, f"inherited from {model}")
    assert report["too_long_rows"] == 2
    assert report["too_long_share"] == pytest.approx(2 / 12)
    assert report["trained_tokens_lost_if_dropped"] == 401 + 2
    assert report["trained_tokens_lost_if_truncated"] == 401 - (CONTEXT - prompt) + 2
    assert (report["fully_masked_rows"], report["fully_masked_rows_if_truncated"]) == (0, 1)
    assert report["problems"] == [], "training leaves them out, and says so"
    out = check(*words).out
    assert f"longer than 256 tokens (inherited from {model}): 2 rows, 16.7%" in out
    assert "nothing to learn in 0 rows, in 1 if they are truncated" in out


def test_a_shorter_context_can_be_asked_about(check, model):
    rows = [chat(f"{n}", "1" * n) for n in range(1, 41)]
    counts = []
    for length in (60, 40, 30):
        report = check(
            write("chats.jsonl", rows), *held_out(), "--model", model, "--max_length", length, "--json"
        ).report
        assert (report["max_length"], report["max_length_from"]) == (length, "command line")
        counts.append(report["too_long_rows"])
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_a_preference_is_two_conversations(check, model):
    rows = [{"prompt": "Which?", "chosen": "This one.", "rejected": "None."}]
    Path("held_out.jsonl").write_text(json.dumps({"prompt": "And?", "chosen": "Yes.", "rejected": "No."}) + "\n")
    words = (write("rows.jsonl", rows), "--validation_data", "held_out.jsonl", "--model", model)
    report = check(*words, "--json").report
    trained = [piece["text"] for row in report["shown_rows"] for piece in row["pieces"] if piece["trained"]]
    assert trained == ["This one.<|im_end|>", "None.<|im_end|>"]
    assert {row["place"] for row in report["shown_rows"]} == {"rows.jsonl, line 1"}
    assert report["answers"] == report["answers_with_trained_end"] == 4
    assert check(*words).code == 0


def test_of_a_question_nothing_is_trained(check, model):
    Path("held_out.jsonl").write_text('{"prompt": "3 + 3 ="}\n')
    words = (write("rows.jsonl", [{"prompt": "2 + 2 ="}]), "--validation_data", "held_out.jsonl", "--model", model)
    report = check(*words, "--json").report
    (row,) = report["shown_rows"]
    assert row["pieces"] == [{"text": "<|im_start|>user\n2 + 2 =<|im_end|>\n<|im_start|>assistant\n", "trained": False}]
    assert "trained_tokens" not in report
    assert check(*words).code == 0


# ---------------------------------------------------------------------------------------------- templates


WITHOUT_END = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def test_the_template_in_use_is_named(check, model, tmp_path):
    words = (write("chats.jsonl", [chat("Q?", "A.")]), *held_out())
    assert check(*words, "--model", model, "--json").report["chat_template"] == "the tokenizer's own"
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink()
    assert "chat template: llmkit's ChatML, since the tokenizer has none" in check(*words, "--model", bare).out
    Path("mine.jinja").write_text(WITHOUT_END)
    out = check(*words, "--model", model, "--chat_template_path", "mine.jinja").out
    assert "chat template: mine.jinja" in out


def test_a_template_that_does_not_train_the_end_token_is_shown(check, model):
    rows = [chat(f"question {n}", "A.") for n in range(3)]
    Path("mine.jinja").write_text(WITHOUT_END)
    words = (write("chats.jsonl", rows), *held_out(2), "--model", model)
    report = check(*words, "--chat_template_path", "mine.jinja", "--json").report
    assert (report["end_token"], report["answers"], report["answers_with_trained_end"]) == ("<|im_end|>", 5, 0)
    out = check(*words, "--chat_template_path", "mine.jinja").out
    assert "[[A.]]<|im_end|>" in out
    assert "end token <|im_end|>: trained in 0 of 5 answers; a model does not learn to stop" in out
    assert "trained in 5 of 5 answers\n" in check(*words).out


# ---------------------------------------------------------------------------------------------- forecast


def test_memory_and_time_are_forecast(check, model):
    rows = [chat(f"question {n}", "An answer.") for n in range(50)]
    words = (write("chats.jsonl", rows), *held_out(), "--model", model)
    report = check(*words, "--json").report
    forecast = report["forecast"]
    assert forecast["parameters"] == AutoModelForCausalLM.from_pretrained(model).num_parameters()
    assert forecast["memory_gb"] > 0.5
    assert forecast["tokens_per_second"] > 0
    assert forecast["passes"] == 3
    assert (
        50 * report["tokens_per_row"]["minimum"]
        <= forecast["tokens_per_pass"]
        <= 50 * report["tokens_per_row"]["maximum"]
    )
    assert "forecast, all weights: about" in check(*words).out


def test_no_weights_are_loaded(check, model, tmp_path):
    """They may be larger than this machine: a file that no one can read is no obstacle."""
    folder = tmp_path / "large"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    assert check(write("chats.jsonl", [chat("Q?", "A.")]), *held_out(), "--model", folder).code == 0


# ---------------------------------------------------------------------------------------------- refusals


def refused(answer: Answer, *expected: str) -> None:
    assert answer.code == 2
    lines = answer.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert [line for line in lines if all(part in line for part in expected)], answer.err


def test_all_problems_of_the_rows_are_said_at_once_with_their_index(check, model):
    good = chat("Q?", "A.")
    swapped = {"messages": [good["messages"][1], good["messages"][0]]}
    twice = {"messages": [good["messages"][0], good["messages"][0], good["messages"][1]]}
    rows = [
        good,
        chat("Q?", None),
        twice,
        swapped,
        {"messages": None},
        {"prompt": "Q", "completion": "A"},
        chat("alone"),
    ]
    answer = check(write("chats.jsonl", rows), "--model", model, "--json")
    assert answer.code == 2
    null, order, first, none, mixed, alone = answer.report["problems"]
    assert null.startswith("chats.jsonl, line 2, message 1: the content is null")
    assert order.startswith("chats.jsonl, line 3, message 1: is the user's where the assistant's is expected")
    assert first.startswith("chats.jsonl, line 4, message 0: is the assistant's where the user's is expected")
    assert none.startswith("chats.jsonl, line 5: messages is null")
    assert mixed.startswith("chats.jsonl, line 6: has completion+prompt, and chats.jsonl, line 1 has messages")
    assert alone.startswith("chats.jsonl, line 7: no message is the assistant's")
    for_a_person = check("chats.jsonl", "--model", model)
    assert for_a_person.code == 2
    assert for_a_person.err.splitlines() == [f"error: {problem}" for problem in answer.report["problems"]]
    assert for_a_person.out.startswith("data: chats.jsonl (jsonl, 1 file, columns messages): conversations")


def test_problems_without_end_are_cut(check):
    problems = check(write("chats.jsonl", [chat("Q?", None)] * 50), "--json").report["problems"]
    assert problems[MOST_PROBLEMS:] == [f"and {50 - MOST_PROBLEMS} more rows like these"]


def test_problems_of_the_model_and_of_the_rows_are_said_together(check):
    problems = check(write("chats.jsonl", [chat("Q?", None)]), "--model", "runs/nothing", "--json").report["problems"]
    assert len(problems) == 2
    assert problems[0].startswith("--model runs/nothing: there is no such folder")
    assert problems[1].startswith("chats.jsonl, line 1, message 1")


def test_an_encoder_is_refused(check, model, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    words = (write("chats.jsonl", [chat("Q?", "A.")]), *held_out(), "--model", folder)
    refused(check(*words), "--model", "BertModel", "does not continue text")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max_length", 1], ["--max_length 1", "2 or more"]),
        (["--max_length", 257], ["--max_length 257", "looks back over 256 tokens at most"]),
        (["--max_length", 4], ["--data", "none of 1 rows fits into 4 tokens", "raise --max_length"]),
        (["--rows", -1], ["--rows -1", "0 or more"]),
        (["--chat_template_path", "gone.jinja"], ["gone.jinja", "cannot be read"]),
        (["--depth", 3], ["--depth 3", "is for text", "--model FOLDER"]),
        (["--split_seed", 2**70], ["--split_seed", "64 bits"]),
        (["--color", "sometimes"], ["--color", "sometimes is none of auto, always, never"]),
        (["--max_lenght", 3], ["unknown option --max_lenght", "did you mean --max_length?"]),
    ],
)
def test_wrong_options_are_refused_with_the_fix(check, model, words, expected):
    refused(check(write("chats.jsonl", [chat("Q?", "A.")]), *held_out(), "--model", model, *words), *expected)


@pytest.mark.parametrize("name", ["max_length", "rows", "chat_template_path"])
def test_options_that_need_a_model_or_conversations_say_so(check, text_file, name):
    refused(check(write("chats.jsonl", [chat("Q?", "A.")]), f"--{name}", 3), f"--{name} 3", "give --model FOLDER too")
    refused(check(text_file, f"--{name}", 3), f"--{name} 3", "is for conversations", "leave it out")


def test_the_tutor_has_its_own_test(check):
    refused(check("tutor", "--validation_fraction", 0.2), "the bundled data has its own test")


def test_text_for_a_model_that_learns_conversations_is_refused(check, model, text_file):
    refused(check(text_file, "--model", model), "is plain text, and rows with named columns are needed")
    write("rows.jsonl", [{"text": "x"}])
    refused(
        check("rows.jsonl", "--model", model),
        "rows.jsonl, line 1",
        "has the columns text",
        "messages or prompt+completion",
    )


def test_an_empty_side_is_refused(check):
    refused(
        check(write("chats.jsonl", [chat("Q?", "A.")])),
        "--data chats.jsonl",
        "1 rows leave none to",
        "--validation_data",
    )


def test_the_command_prints_one_json_object_and_nothing_else(model, tmp_path):
    """In a process of its own, with its exit code."""
    rows = [chat(f"question number {n}", str(n)) for n in range(40)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_llmkit("check", "chats.jsonl", "--model", model, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report.keys() >= {
        "data", "kind", "format", "columns", "fingerprint", "train_rows", "validation_rows", "further_rows", "exact_copies",
        "near_copies_across_the_split", "messages", "rows_by_turns", "rows_with_system_message", "characters_per_answer",
        "repeated_answers", "model", "chat_template", "max_length", "max_length_from", "tokens_per_row", "too_long_rows",
        "too_long_share", "shown_rows", "trained_tokens_per_row", "trained_tokens", "trained_share",
        "trained_tokens_lost_if_dropped", "trained_tokens_lost_if_truncated", "fully_masked_rows",
        "fully_masked_rows_if_truncated", "end_token", "answers", "answers_with_trained_end", "forecast", "problems",
    }  # fmt: skip
    (tmp_path / "bad.jsonl").write_text(json.dumps(chat("Q?", None)) + "\n")
    done = run_llmkit("check", "bad.jsonl", "--model", model, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: bad.jsonl, line 1, message 1: the content is null")
