"""Preference tuning: pairs are encoded as they are served, the run leaves a stock folder with true figures, and nothing is silent."""

import contextlib
import importlib.util
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_recipe

from llmkit.data.conversations import Preference, RowOptions, open_rows, preference_from
from llmkit.errors import UserError
from llmkit.tokenization.chat import encode_conversations, end_tokens, prompt_ids
from llmkit.training.dpo import Pair, Ranking, encode_pairs, fit_pairs

STEPS = 24
# Rates for a model of two thousand parameters a row, so that something is seen after a few steps.
OPTIONS = ["--max_steps", STEPS, "--save_steps", 3, "--eval_steps", 8, "--per_device_train_batch_size", 4]
RATES = ["--optimizer", "adamw", "--learning_rate", "0.003"]


def preferences(count: int, seed: int = 0) -> list[dict]:
    """Pairs of which the polite answer is preferred."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnop", k=4)) for _ in range(3 * count)]
    return [
        {"prompt": f"{a} {b}?", "chosen": f"yes please {c}", "rejected": f"no {c}"}
        for a, b, c in zip(words[::3], words[1::3], words[2::3], strict=True)
    ]


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory, text_file) -> Path:
    """A folder with a tiny model that looks back far enough for a chat, and files of preferences."""
    place = tmp_path_factory.mktemp("preferences")
    words = ["--depth", 1, "--context_length", 96, "--vocab_size", 300, "--per_device_train_batch_size", 4]
    run_recipe("pretrain_gpt", "--data", text_file, *words, "--max_steps", 4, "--output_dir", "runs/gpt", cwd=place)
    rows = preferences(60)
    write_rows(place / "pairs.jsonl", rows)
    write_rows(place / "equal.jsonl", [*rows[:20], rows[20] | {"rejected": rows[20]["chosen"] + " "}])
    write_rows(place / "columns.jsonl", [{"prompt": "a", "chosen": "b"}] * 20)
    write_rows(place / "long.jsonl", [row | {"prompt": row["prompt"] + " x" * 200} for row in rows])
    return place


@pytest.fixture(scope="module")
def tokenizer(place):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place / "runs" / "gpt")


def align(cwd: Path, place: Path, *words: object) -> subprocess.CompletedProcess:
    given = ["--data", place / "pairs.jsonl", "--model", place / "runs" / "gpt", "--output_dir", "runs/preferred"]
    return run_recipe("align_dpo", *given, *OPTIONS, *words, cwd=cwd)


WAYS = {"full": RATES, "lora": ["--use_lora", "--learning_rate", "0.003"]}


@pytest.fixture(scope="module", params=WAYS)
def way(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(way, place, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp(f"whole-{way}")
    align(folder, place, *WAYS[way])
    return folder / "runs" / "preferred"


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def journal_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------- pairs as tokens

PROMPTS = {
    "one question": ({"role": "user", "content": "How far is it?"},),
    "several turns": (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello to you"},
        {"role": "user", "content": "How far is it?"},
    ),
    "a typed control token": ({"role": "user", "content": "say <|im_end|> and <|im_start|>assistant"},),
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_what_is_trained_is_our_encoding(prompt, tokenizer):
    """TRL's batch holds, for each answer, the ids and the mask that supervised fine-tuning has, and begins as it is served."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    row = Preference(prompt, "two miles", "no <|im_end|> idea at all", "row 0")
    (pair,) = encode_pairs(tokenizer, [row])
    assert pair.prompt == prompt_ids(tokenizer, prompt)
    example = {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
    batch = DataCollatorForPreference(tokenizer.pad_token_id)([example])
    for number, answer in enumerate((row.chosen, row.rejected)):
        (ours,) = encode_conversations(tokenizer, [[*prompt, {"role": "assistant", "content": answer}]])
        length = int(batch["attention_mask"][number].sum())
        # Behind the end token our encoding has the line break that begins the next turn, untrained.
        assert batch["input_ids"][number, :length].tolist() == ours.ids[:length]
        assert not any(ours.trained[length:])
        of_last = [trained and place >= len(pair.prompt) for place, trained in enumerate(ours.trained)]
        assert batch["completion_mask"][number, :length].bool().tolist() == of_last[:length]
        assert ours.ids[length - 1] == end_tokens(tokenizer)[0]


def test_control_tokens_that_are_typed_stay_text(tokenizer):
    (pair,) = encode_pairs(tokenizer, [Preference(PROMPTS["a typed control token"], "a <|im_end|> b", "c", "row 0")])
    end = end_tokens(tokenizer)[0]
    assert pair.prompt.count(end) == 1  # of the question
    assert pair.chosen.count(end) == 1
    assert tokenizer.decode(pair.chosen[:-1]) == "a <|im_end|> b"


PAIRS = [Pair([1, 2], [3, 4], [5]), Pair([1, 2], [3, 4, 5, 6], [3, 4, 5, 7]), Pair([1, 2], [3, 4, 5, 6], [7, 8])]


def test_pairs_that_are_too_long_are_counted():
    fitted = fit_pairs(PAIRS, ["a", "b", "c"], 4, "drop", "--data")
    assert (fitted.samples, fitted.too_long, fitted.dropped, fitted.cut_tokens) == (PAIRS[:1], 2, 2, 0)


def test_a_pair_that_differs_only_behind_the_cut_is_dropped():
    fitted = fit_pairs(PAIRS, ["a", "b", "c"], 4, "truncate", "--data")
    assert fitted.samples == [PAIRS[0], Pair([1, 2], [3, 4], [7, 8])]
    assert (fitted.too_long, fitted.dropped, fitted.cut_tokens) == (2, 1, 6)


def test_long_pairs_are_refused_by_place():
    with pytest.raises(UserError, match=r"2 of 3 pairs.*b \(6 tokens\), c \(6 tokens\)"):
        fit_pairs(PAIRS, ["a", "b", "c"], 4, "error", "--data")


def test_that_no_pair_is_left_is_refused():
    with pytest.raises(UserError, match="none of 3 pairs fits into 2 tokens"):
        fit_pairs(PAIRS, ["a", "b", "c"], 2, "truncate", "--data")


def test_the_two_accuracies_answer_different_questions():
    """The first pair is ranked right and was before; the second has gained much and is still ranked wrong."""
    ranking = Ranking(torch.tensor([[-1.0, -2.0], [-3.0, -2.0]]), torch.tensor([[-1.0, -3.0], [-9.0, -2.0]]), 0.5)
    metrics = ranking.metrics()
    assert metrics["preference_accuracy"] == metrics["baseline_preference_accuracy"] == 0.5
    assert metrics["reward_accuracy"] == 0.5
    assert metrics["reward_margin"] == pytest.approx(0.5 * (-1 + 6) / 2)
    assert metrics["preference_accuracy_n"] == metrics["reward_margin_n"] == 2
    low, high = metrics["preference_accuracy_ci"]
    assert 0 < low < 0.5 < high < 1


# ---------------------------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_the_folder_is_a_stock_model_folder(whole):
    assert {path.name for path in whole.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("README.md", "llmkit.json", "metrics.json", "metrics.jsonl", "report.html"),
    }
    assert json.loads((whole / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


@pytest.mark.slow
def test_preferences_are_learned(whole):
    metrics = metrics_of(whole)
    assert metrics["preference_accuracy"] >= metrics["baseline_preference_accuracy"]
    assert metrics["reward_accuracy"] > 0.5
    assert metrics["reward_margin"] > 0
    assert metrics["validation_loss"] < metrics["baseline_validation_loss"]


@pytest.mark.slow
def test_the_figures_are_those_of_the_model_in_the_folder(whole, place, tokenizer):
    """Ranked again by plain transformers, one answer at a time, over the held-out side as the recipe splits it."""
    from transformers import AutoModelForCausalLM

    rows = open_rows(RowOptions(data=str(place / "pairs.jsonl")), preference_from).validation
    pairs = encode_pairs(tokenizer, rows)

    @torch.no_grad()
    def scores(folder: Path) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

        def log_prob(prompt: list[int], answer: list[int]) -> float:
            ids = torch.tensor([prompt + answer])
            of_next = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
            return float(of_next.gather(-1, ids[0, len(prompt) :, None]).sum())

        return torch.tensor([[log_prob(p.prompt, p.chosen), log_prob(p.prompt, p.rejected)] for p in pairs])

    again = Ranking(scores(whole), scores(place / "runs" / "gpt"), 0.1).metrics()
    metrics = metrics_of(whole)
    assert again["preference_accuracy_n"] == metrics["preference_accuracy_n"] == len(rows)
    for name in ("preference_accuracy", "baseline_preference_accuracy", "reward_accuracy"):
        assert metrics[name] == again[name]
    assert metrics["reward_margin"] == pytest.approx(again["reward_margin"], abs=1e-3)


@pytest.mark.slow
def test_the_journal_has_the_curves(whole):
    steps = [line for line in journal_of(whole) if "loss" in line]
    assert len(steps) == STEPS
    assert all(0 <= line["reward_accuracy"] <= 1 for line in steps)
    # The first batch is scored by the reference itself; what is left is the rounding of another batch's shape.
    assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-3)
    ranked = {line["step"]: line["preference_accuracy"] for line in journal_of(whole) if "preference_accuracy" in line}
    assert list(ranked) == [8, 16, 24]
    assert ranked[24] == metrics_of(whole)["preference_accuracy"]  # few rows: a glance sees them all
    report = (whole / "report.html").read_text()
    assert "Reward margin" in report
    assert "Share of held-out pairs ranked right" in report


@pytest.mark.slow
def test_a_killed_run_started_again_ends_with_the_same_weights(whole, way, place, tmp_path):
    given = ["--data", place / "pairs.jsonl", "--model", place / "runs" / "gpt", "--output_dir", "runs/preferred"]
    command = [sys.executable, ROOT / "recipes" / "align_dpo.py", *given, *OPTIONS, *WAYS[way]]
    folder = tmp_path / "runs" / "preferred"
    with open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, stdout=output, stderr=output)
    try:
        while process.poll() is None and not (folder / "checkpoint-6" / "manifest.json").exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    finally:
        process.kill()
        process.wait()
    assert not (folder / "model.safetensors").exists()

    done = align(tmp_path, place, *WAYS[way])
    assert "goes on from" in done.stdout
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for name in ("preference_accuracy", "baseline_preference_accuracy", "reward_margin", "validation_loss"):
        assert metrics_of(folder)[name] == metrics_of(whole)[name]


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_align_dpo", ROOT / "recipes" / "align_dpo.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFUSED = [
    ("", ["--data", "required", "chosen and rejected"]),
    ("--data missing.jsonl", ["--data missing.jsonl", "no such file"]),
    ("--data equal.jsonl", ["equal.jsonl, line 21", "chosen and rejected are equal"]),
    ("--data columns.jsonl", ["columns.jsonl, line 1", "prompt, chosen", "rejected"]),
    ("--data long.jsonl", ["--data", "none of", "96 tokens", "--max_length"]),
    ("--data pairs.jsonl --max_length 97", ["--max_length 97", "96 tokens"]),
    ("--data pairs.jsonl --max_length 4 --too_long error", ["--too_long error", "longer than 4 tokens"]),
    ("--data pairs.jsonl --model nowhere", ["--model nowhere", "no such folder"]),
    ("--data pairs.jsonl --beta 0", ["--beta 0", "above 0"]),
    ("--data pairs.jsonl --loss_type sigmoyd", ["--loss_type sigmoyd", "did you mean sigmoid?"]),
    ("--data pairs.jsonl --loss_type sigmoid sft --loss_weights 1", ["loss_weights", "same length"]),
    ("--data pairs.jsonl --loss_type sft --beta 0.2", ["--beta 0.2", "changes nothing", "sft"]),
    ("--data pairs.jsonl --label_smoothing 0.1", ["--label_smoothing 0.1", "changes nothing", "robust"]),
    ("--data pairs.jsonl --loss_type exo_pair", ["exo_pair", "--label_smoothing"]),
    ("--data pairs.jsonl --f_divergence_type kl", ["--f_divergence_type kl", "reverse_kl"]),
    ("--data pairs.jsonl --loss_type apo_zero --f_divergence_type forward_kl", ["forward_kl", "apo_zero"]),
    ("--data pairs.jsonl --loss_type aot --use_weighting", ["--use_weighting", "aot"]),
    ("--data pairs.jsonl --sync_ref_model", ["--sync_ref_model", "changes nothing", "before the first step"]),
    ("--data pairs.jsonl --truncation_mode keep_start", ["--truncation_mode", "--too_long"]),
    ("--data pairs.jsonl --use_lora --optimizer muon", ["--optimizer muon", "--use_lora"]),
    ("--data pairs.jsonl --use_lora --muon_learning_rate 0.1", ["--muon_learning_rate 0.1", "--use_lora"]),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[words or "nothing" for words, _ in REFUSED])
def test_what_cannot_work_is_refused(words, said, recipe, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    model = [] if "--model" in words else ["--model", "runs/gpt"]
    output = tmp_path / "out"
    given = [*words.split(), *model, "--max_steps", "2", "--output_dir", str(output)]
    monkeypatch.setattr(sys, "argv", ["recipes/align_dpo.py", *given])
    with pytest.raises(UserError) as refused:
        recipe.main()
    problems = "\n".join(refused.value.problems)
    assert all(word in problems for word in said), problems
    assert not output.exists()
