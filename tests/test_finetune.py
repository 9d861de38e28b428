"""Teaching a model to answer, as a user does it: what is trained and in which order, what the run leaves, what is refused."""

import contextlib
import importlib.util
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_recipe, sentences
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from llmkit.data.chat_samples import Fitted, as_dataset, fit, training_order
from llmkit.data.conversations import RowOptions, conversation_from, open_rows
from llmkit.errors import UserError
from llmkit.evaluation.chat import generate_answers
from llmkit.folder import Run, fingerprint
from llmkit.modeling.sizes import shape_of_depth
from llmkit.options import Setting, Settings, parse_options
from llmkit.tokenization.chat import Encoded, encode_conversations, end_tokens, prompt_ids
from llmkit.training import finetuning
from llmkit.training.checkpoints import problem_of
from llmkit.training.finetuning import FinetuneOptions, FullOptions
from llmkit.training.instruct import InstructArguments, InstructTrainer, lay_out, score_answers_only

CONTEXT = 128
NOUNS = ["river", "house", "garden", "letter"]
STEPS = 30
# The held-out rows fit into one batch of an evaluation.
SIDES = ["--validation_fraction", 0.25, "--per_device_eval_batch_size", 64]
PACE = ["--max_steps", STEPS, "--save_steps", 5, "--eval_steps", 10]
OPTIONS = [*PACE, *SIDES, "--per_device_train_batch_size", 4]
CHAT_FOLDER = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("README.md", "llmkit.json", "metrics.json", "metrics.jsonl", "report.html", "wrong_answers.json"),
}


def chats(count: int, seed: int = 0) -> list[list[dict]]:
    """Conversations of one or two turns, with and without a system message; half of the answers are easy to learn."""
    draw = random.Random(seed)

    def turn() -> list[dict]:
        name, noun = "".join(draw.choices("abcdefghijklmnop", k=4)), draw.choice(NOUNS)
        pairs = [(f"Is {name} here?", "Yes."), (f"Who is {name}?", f"{name} sees the {noun}.")]
        question, answer = draw.choice(pairs)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    system = [{"role": "system", "content": "Be kind."}]
    return [
        [*(system if number % 4 == 0 else []), *turn(), *(turn() if number % 5 == 0 else [])] for number in range(count)
    ]


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_chats(file: Path, conversations: list[list[dict]]) -> Path:
    return write_rows(file, [{"messages": messages} for messages in conversations])


def answers_in(messages: list[dict]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


@contextlib.contextmanager
def one_core():
    """Matrices this small gain nothing from a second core, and their sums are in another order there."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def tokenizer(gpt):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gpt)


def tiny_model(tokenizer, depth: int = 1):
    """Fresh weights, those of attention too, so that what a token sees shows in its logits."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(shape_of_depth(depth, len(tokenizer), CONTEXT).config(tokenizer, 0.08))


@pytest.fixture(scope="module")
def place(tmp_path_factory, text_file) -> Path:
    """A folder with a tiny model that looks back far enough for a chat, and 40 conversations."""
    place = tmp_path_factory.mktemp("chats")
    words = ["--depth", 1, "--context_length", CONTEXT, "--vocab_size", 400, "--per_device_train_batch_size", 4]
    words += ["--max_steps", 8, "--eval_steps", 8]
    run_recipe("pretrain_gpt", "--data", text_file, *words, "--output_dir", "runs/gpt", cwd=place)
    write_chats(place / "chats.jsonl", chats(40))
    return place


def given_by(place: Path) -> list[object]:
    return ["--data", place / "chats.jsonl", "--model", place / "runs" / "gpt", "--output_dir", "runs/chat"]


def finetune(place: Path, cwd: Path, *words: object) -> Path:
    """The recipe into runs/chat below a folder, which is returned; what it said is in output.txt beside runs."""
    with one_core():
        done = run_recipe("finetune_instruct", *given_by(place), *words, cwd=cwd)
    (cwd / "output.txt").write_text(done.stdout)
    return cwd / "runs" / "chat"


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    return finetune(place, tmp_path_factory.mktemp("whole"), *OPTIONS)


def output_of(folder: Path) -> str:
    return (folder.parent.parent / "output.txt").read_text()


def record_of(folder: Path) -> dict:
    return json.loads((folder / "llmkit.json").read_text())


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def journal_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in journal_of(folder) if "loss" in line}


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def held_out_rows(place: Path) -> list:
    return open_rows(
        RowOptions(data=str(place / "chats.jsonl"), validation_fraction=0.25), conversation_from
    ).validation


# ---------------------------------------------------------------------------------------------- what fits

ROWS = [
    Encoded(list(range(4)), [False] * 2 + [True] * 2),
    Encoded(list(range(8)), [False] * 5 + [True] * 3),
    Encoded(list(range(9)), [False] * 7 + [True] * 2),
]
PLACES = ["chats.jsonl, line 1", "chats.jsonl, line 2", "chats.jsonl, line 3"]


def test_rows_that_are_too_long_are_dropped_and_counted():
    fitted = fit(ROWS, PLACES, 6, "drop", "--data")
    assert fitted == Fitted(ROWS[:1], too_long=2, dropped=2, cut_tokens=0)
    assert (fitted.tokens, fitted.trained_tokens) == (4, 2)


def test_rows_that_are_cut_say_what_they_lost_and_leave_when_nothing_is_left():
    fitted = fit(ROWS, PLACES, 6, "truncate", "--data")
    assert fitted == Fitted(
        [ROWS[0], Encoded(ROWS[1].ids[:6], ROWS[1].trained[:6])], too_long=2, dropped=1, cut_tokens=4
    )


def test_rows_that_are_too_long_are_refused_by_count_and_place():
    with pytest.raises(UserError) as refused:
        fit(ROWS, PLACES, 6, "error", "--data")
    expected = ["--too_long error: 2 of 3 rows are longer than 6 tokens", "line 2 (8 tokens)", "line 3 (9 tokens)"]
    assert all(part in str(refused.value) for part in [*expected, "--max_length"])
    assert "…" not in str(refused.value)
    with pytest.raises(UserError, match=r"7 of 7 rows .*line 5 \(8 tokens\) …"):
        fit([ROWS[1]] * 7, [f"line {n}" for n in range(1, 8)], 6, "error", "--data")


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_that_nothing_fits_is_refused(too_long):
    with pytest.raises(UserError) as refused:
        fit(ROWS[1:], PLACES[1:], 5, too_long, "--validation_data")
    expected = ["--validation_data: none of 2 rows fits into 5 tokens", "8 tokens", "--max_length"]
    assert all(part in str(refused.value) for part in expected)


def test_a_first_token_alone_is_nothing_to_learn():
    """No token stands before it that it could follow from."""
    fitted = fit([Encoded([1, 2], [True, False]), ROWS[0]], PLACES[:2], 6, "drop", "--data")
    assert fitted == Fitted(ROWS[:1], too_long=0, dropped=1)


# ---------------------------------------------------------------------------------------------- the order of a run

LENGTHS = np.random.default_rng(0).permutation(np.arange(1, 401))


def test_every_sample_is_trained_once_in_each_epoch():
    order = training_order(LENGTHS, 8, 3, seed=0).reshape(3, 400)
    assert all(sorted(epoch) == list(range(400)) for epoch in order.tolist())
    assert not np.array_equal(order[0], order[1])


def test_what_fills_no_batch_goes_to_the_next_epoch():
    order = training_order(LENGTHS[:37], 5, 3, seed=0)
    counts = np.bincount(order, minlength=37)
    assert len(order) == 110  # 22 batches, and 111 samples in three epochs
    assert sorted(set(counts.tolist())) == [2, 3]
    assert (counts == 2).sum() == 1


def test_fewer_samples_than_a_batch_still_fill_it():
    order = training_order(LENGTHS[:3], 8, 1, seed=0)
    assert len(order) == 8
    assert sorted(np.bincount(order).tolist()) == [2, 3, 3]


def test_a_batch_holds_samples_of_about_one_length_and_batches_come_mixed():
    """400 samples of 400 lengths are sorted together: eight neighbours make a batch."""
    lengths = LENGTHS[training_order(LENGTHS, 8, 1, seed=0)].reshape(-1, 8)
    assert (lengths.max(axis=1) - lengths.min(axis=1)).tolist() == [7] * 50
    assert sorted(lengths[:, 0].tolist()) != lengths[:, 0].tolist()


@pytest.mark.parametrize("epochs", [0.1, 0.5, 1, 1.3, 2])
def test_a_shorter_run_is_the_beginning_of_a_longer_one(epochs):
    short, long = training_order(LENGTHS, 8, epochs, seed=3), training_order(LENGTHS, 8, 3, seed=3)
    assert len(short) == round(epochs * 400 / 8) * 8
    assert np.array_equal(short, long[: len(short)])


def test_the_order_follows_from_the_seed():
    order = training_order(LENGTHS, 8, 2, seed=1)
    assert np.array_equal(order, training_order(LENGTHS, 8, 2, seed=1))
    assert not np.array_equal(order, training_order(LENGTHS, 8, 2, seed=2))


# ---------------------------------------------------------------------------------------------- what reaches the model


@pytest.fixture
def trainer_of(tokenizer, tmp_path, monkeypatch):
    """Makes the recipe's trainer for a tiny model of fresh weights."""
    monkeypatch.chdir(tmp_path)

    def make(train: list[list[dict]], held_out: list[list[dict]], *words: str) -> InstructTrainer:
        given = ["--max_steps", "4", "--max_length", str(CONTEXT), "--use_cpu", *words]
        rates = ["--learning_rate", "0.01", "--muon_learning_rate", "0.01"]
        _, _, settings = parse_options(FullOptions, InstructArguments, argv=[*given, *rates])
        samples = lay_out(Fitted(encode_conversations(tokenizer, train)), settings)
        finetuning.plan_steps(settings, len(samples), 1)
        validation = Fitted(encode_conversations(tokenizer, held_out))
        run = Run.start("finetune_instruct", settings, {})
        return InstructTrainer(tiny_model(tokenizer), samples, validation, tokenizer, run)

    return make


def conversations_of(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """The ids and labels of each conversation of a batch, whether it is padded or packed."""
    if "position_ids" in batch:
        starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        spans = itertools.pairwise([*starts, len(ids)])
        return [(ids[a:b], labels[a:b]) for a, b in spans if b - a > 1]  # each token of the padding stands by itself
    found = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        assert mask[:length].all()
        assert (labels[length:] == -100).all()
        found.append((ids[:length].tolist(), labels[:length].tolist()))
    return found


@pytest.mark.parametrize("words", [[], ["--packing"]], ids=["padded", "packed"])
def test_labels_that_reach_the_model_are_the_answers_and_their_end_tokens(trainer_of, tokenizer, words):
    conversations = chats(20)
    trainer = trainer_of(conversations, conversations[:2], *words, "--per_device_train_batch_size", "4")
    by_ids = {tuple(tokenizer.apply_chat_template(chat, return_dict=False)): chat for chat in conversations}
    seen = [conversation for batch in trainer.get_train_dataloader() for conversation in conversations_of(batch)]
    assert len(seen) >= 16
    for ids, labels in seen:
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
        stretches = itertools.groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != -100)
        trained = [tokenizer.decode([token for token, _ in pairs]) for is_trained, pairs in stretches if is_trained]
        assert trained == [f"{answer}<|im_end|>" for answer in answers_in(by_ids[tuple(ids)])]


def test_the_held_out_loss_is_the_mean_over_all_trained_tokens(trainer_of, tokenizer):
    """Also where it takes several batches, some of short answers and some of long ones."""

    def asked(number: int) -> list[dict]:
        answer = "No." if number < 8 else " ".join(sentences(1, number)[0].split()[:8])
        return [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": answer}]

    held_out = [asked(number) for number in range(11)]
    trainer = trainer_of(chats(8), held_out, "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4")
    losses, tokens = 0.0, 0
    model = tiny_model(tokenizer).eval()
    for encoded in encode_conversations(tokenizer, held_out):
        trained = sum(encoded.trained)
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([encoded.ids]), labels=torch.tensor([encoded.labels])).loss
        losses, tokens = losses + trained * float(loss), tokens + trained
    assert trainer.validation_loss() == pytest.approx(losses / tokens, rel=1e-5)


# ---------------------------------------------------------------------------------------------- the loss on a CPU

SCORES = ("log_probs", "entropy", "mean_logits", "is_top1")


def batch_of(tokenizer, conversations: list[list[dict]]) -> dict[str, torch.Tensor]:
    samples = as_dataset(encode_conversations(tokenizer, conversations))
    return DataCollatorForLanguageModeling(tokenizer.pad_token_id, pad_to_multiple_of=16)(list(samples))


@pytest.mark.parametrize("has_labels", [True, False], ids=["answers", "nothing to learn"])
def test_scoring_answers_alone_gives_trls_loss_and_gradients(tokenizer, has_labels):
    batch = batch_of(tokenizer, chats(6))
    if not has_labels:
        batch["labels"] = torch.full_like(batch["labels"], -100)
    theirs, ours = tiny_model(tokenizer), tiny_model(tokenizer)
    for model in (theirs, ours):
        add_fused_lm_head(model, outputs=SCORES)
    before = ours.forward
    score_answers_only(ours)
    assert ours.forward != before
    expected, found = (model(**batch, fused_lm_head=True) for model in (theirs, ours))
    assert torch.equal(found.label_mask, expected.label_mask)
    for name in ("loss", *SCORES):
        ours_of, theirs_of = (getattr(output, name).float() for output in (found, expected))
        torch.testing.assert_close(ours_of, theirs_of, atol=1e-5, rtol=1e-5)
    expected.loss.backward()
    found.loss.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4)
    assert (float(found.loss) > 1) == has_labels


def test_logits_that_a_model_bends_stay_with_trl(tokenizer):
    model = tiny_model(tokenizer)
    model.config.final_logit_softcapping = 30.0
    add_fused_lm_head(model)
    before = model.forward
    score_answers_only(model)
    assert model.forward == before


def test_a_model_that_scores_answers_alone_still_generates(tokenizer):
    """Prompts of several lengths are padded on their left, and each answer is that of its prompt by itself."""
    prompts = [prompt_ids(tokenizer, chat[:-1]) for chat in chats(5)]
    assert len({len(prompt) for prompt in prompts}) > 1
    plain, patched = tiny_model(tokenizer), tiny_model(tokenizer)
    add_fused_lm_head(patched, outputs=SCORES)
    score_answers_only(patched)
    answers = generate_answers(patched, tokenizer, prompts, 12)
    assert any(answers)
    assert answers == generate_answers(plain, tokenizer, prompts, 12)
    assert answers == [generate_answers(plain, tokenizer, [prompt], 12)[0] for prompt in prompts]


# ---------------------------------------------------------------------------------------------- packing


def packing(strategy: str) -> Settings:
    values = {"packing": True, "packing_strategy": strategy, "max_length": CONTEXT, "seed": 0}
    return Settings({name: Setting(value, "command line") for name, value in values.items()})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_packed_conversations_do_not_see_each_other(tokenizer, attention):
    """The trainer's own batch gives every conversation the logits that it has by itself."""
    model = tiny_model(tokenizer, depth=2).eval()
    model.set_attn_implementation(attention)
    packed = lay_out(Fitted(encode_conversations(tokenizer, chats(12))), packing("bfd"))
    assert len(packed) < 12
    assert max(map(len, packed["input_ids"])) <= CONTEXT
    collate = DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=True, pad_to_multiple_of=16)
    batch = collate(list(packed))
    assert "attention_mask" not in batch  # one of ones would let them see each other
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[0]
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    spans = [(a, b) for a, b in itertools.pairwise([*starts, len(logits)]) if b - a > 1]
    assert len(spans) == 12
    for a, b in spans:
        alone = model(input_ids=batch["input_ids"][:, a:b], use_cache=False).logits[0]
        torch.testing.assert_close(logits[a:b], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_wrapped_conversations_see_those_before_them(tokenizer):
    """What --packing_strategy wrapped costs: the second conversation of a row has other logits than by itself."""
    model = tiny_model(tokenizer, depth=2).eval()
    samples = encode_conversations(tokenizer, chats(12))
    first, second = (row["input_ids"] for row in as_dataset(samples).shuffle(seed=0).select(range(2)))
    row = lay_out(Fitted(samples), packing("wrapped"))[0]["input_ids"]
    second = second[: CONTEXT - len(first)]
    assert row[: len(first) + len(second)] == first + second
    together = model(input_ids=torch.tensor([row])).logits[0, len(first) : len(first) + len(second)]
    alone = model(input_ids=torch.tensor([second])).logits[0]
    assert float((together - alone).abs().max()) > 0.01


@pytest.mark.slow
def test_a_packed_run_begins_with_the_same_loss_and_learns(whole, place, tmp_path):
    """Held-out rows are not packed; flattened into one row they have the loss of padded ones."""
    words = [*PACE, *SIDES, "--per_device_train_batch_size", 2, "--packing"]
    packed = metrics_of(finetune(place, tmp_path, *words))
    assert packed["baseline_validation_loss"] == pytest.approx(metrics_of(whole)["baseline_validation_loss"], rel=1e-4)
    assert packed["validation_loss"] < packed["baseline_validation_loss"] - 1


# ---------------------------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_the_folder_is_a_stock_model_folder_that_knows_where_an_answer_ends(whole):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert {path.name for path in whole.iterdir()} == CHAT_FOLDER
    config = json.loads((whole / "config.json").read_text())
    assert (config["architectures"], config["use_cache"]) == (["Qwen3ForCausalLM"], True)
    assert not [file.name for file in whole.glob("*.json") if "auto_map" in file.read_text()]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole), AutoTokenizer.from_pretrained(whole)
    assert model.generation_config.eos_token_id == end_tokens(tokenizer)
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id[0]) == "<|im_end|>"
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.slow
def test_the_figures_are_those_of_the_model_in_the_folder(whole, place):
    """Measured again by plain transformers, one row at a time, over the held-out side as the recipe splits it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole).eval(), AutoTokenizer.from_pretrained(whole)
    rows, metrics = held_out_rows(place), metrics_of(whole)
    losses, tokens, right = 0.0, 0, 0
    for row, encoded in zip(rows, encode_conversations(tokenizer, [row.messages for row in rows]), strict=True):
        prompt = tokenizer.apply_chat_template(list(row.prompt), add_generation_prompt=True, return_tensors="pt")
        length = prompt["input_ids"].shape[1]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([encoded.ids]), labels=torch.tensor([encoded.labels])).loss
            answer = model.generate(**prompt, do_sample=False, max_new_tokens=CONTEXT - length)[0, length:]
        losses, tokens = losses + sum(encoded.trained) * float(loss), tokens + sum(encoded.trained)
        right += tokenizer.decode(answer, skip_special_tokens=True).strip() == row.answer
    assert metrics["validation_loss"] == pytest.approx(losses / tokens, rel=1e-4)
    assert metrics["exact_match"] == right / len(rows)
    assert metrics["exact_match_n"] == metrics["validation_loss_n"] == len(rows)
    low, high = metrics["exact_match_ci"]
    assert 0 <= low <= metrics["exact_match"] <= high <= 1
    assert metrics["trained_parameters"] == metrics["parameters"] == model.num_parameters()
    wrong = json.loads((whole / "wrong_answers.json").read_text())["held out"]
    assert len(wrong) == len(rows) - right


@pytest.mark.slow
def test_the_held_out_loss_falls_and_the_journal_has_its_curve(whole):
    metrics = metrics_of(whole)
    assert metrics["validation_loss"] < metrics["baseline_validation_loss"] - 1
    assert list(losses_of(whole)) == list(range(1, STEPS + 1))
    curve = {line["step"]: line["validation_loss"] for line in journal_of(whole) if "validation_loss" in line}
    assert list(curve) == [10, 20, 30]
    assert curve[30] == pytest.approx(metrics["validation_loss"], rel=1e-5)
    assert curve[30] < curve[10] < metrics["baseline_validation_loss"]


@pytest.mark.slow
def test_the_record_says_where_every_value_came_from(whole, place):
    model = place / "runs" / "gpt"
    parent, record = record_of(model)["options"], record_of(whole)
    options = record["options"]
    assert record["status"] == "finished"
    for name, value in (("max_length", CONTEXT), ("bf16", parent["bf16"]["value"])):
        assert options[name] == {"value": value, "source": f"inherited from {model}"}
    for name in ("muon_learning_rate", "learning_rate"):
        assert options[name]["source"] == "derived"
        assert options[name]["value"] == round(parent[name]["value"] * finetuning.SHARE_OF_PRETRAINING, 6)
        assert str(model) in options[name]["reason"]
    assert {options[name]["source"] for name in ("weight_decay", "warmup_steps", "lr_scheduler_type")} == {"derived"}
    assert {options[name]["source"] for name in ("data", "model", "max_steps", "validation_fraction")} == {
        "command line"
    }
    assert {options[name]["source"] for name in ("too_long", "optimizer", "seed", "system_prompt")} == {"default"}
    assert record["parent"] == {"folder": str(model), "fingerprint": fingerprint(model)}
    assert record["inputs"]["model"] == fingerprint(model)
    rows = record["data"]
    assert rows["train_rows"] + rows["validation_rows"] + rows["copies"] + rows["near_copies"] == 40
    assert rows["validation_rows"] == len(held_out_rows(place))


@pytest.mark.slow
def test_the_run_says_its_template_its_plan_and_the_next_command(whole, place):
    output = output_of(whole)
    assert "chat template: the tokenizer's own" in output
    assert re.search(rf"max_length +{CONTEXT} +inherited from {re.escape(str(place))}", output)
    assert "llmkit chat runs/chat" in output.splitlines()[-1]


@pytest.mark.slow
def test_a_finished_run_started_again_changes_nothing(whole, place):
    before = state_of(whole)
    with one_core():
        done = run_recipe("finetune_instruct", *given_by(place), *OPTIONS, cwd=whole.parent.parent)
    assert "runs/chat is finished" in done.stdout
    assert state_of(whole) == before


# ---------------------------------------------------------------------------------------------- what happens to runs


def interrupt(place: Path, cwd: Path, step: int, number: signal.Signals) -> int:
    """Send a signal to a run as soon as a checkpoint is sealed, and return its exit code."""
    command = [sys.executable, ROOT / "recipes" / "finetune_instruct.py", *given_by(place), *OPTIONS]
    sealed = cwd / "runs" / "chat" / f"checkpoint-{step}" / "manifest.json"
    with one_core(), open(cwd / "interrupted.txt", "w") as output:
        process = subprocess.Popen(list(map(str, command)), cwd=cwd, stdout=output, stderr=output)
    try:
        while process.poll() is None:
            if sealed.exists():
                process.send_signal(number)
                return process.wait(60)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
    finally:
        process.kill()
        process.wait()
    raise AssertionError(f"checkpoint-{step} was not seen:\n{(cwd / 'interrupted.txt').read_text()}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "number", "code"),
    [(5, signal.SIGKILL, -signal.SIGKILL), (30, signal.SIGKILL, -signal.SIGKILL), (5, signal.SIGTERM, 143)],
    ids=["killed", "killed after the last step", "asked to end"],
)
def test_an_interrupted_run_started_again_ends_with_the_same_weights(whole, place, tmp_path, step, number, code):
    folder = tmp_path / "runs" / "chat"
    assert interrupt(place, tmp_path, step, number) == code
    assert record_of(folder)["status"] == "running"
    if number == signal.SIGTERM:
        said = (tmp_path / "interrupted.txt").read_text()
        assert all(part in said for part in (f"of {STEPS}", "the same command"))
        assert "Traceback" not in said
        newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
        assert problem_of(newest) is None

    finetune(place, tmp_path, *OPTIONS)
    assert "goes on from runs/chat/checkpoint-" in output_of(folder)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == CHAT_FOLDER
    assert losses_of(folder) == losses_of(whole)
    for name in ("validation_loss", "baseline_validation_loss", "exact_match", "train_tokens"):
        assert metrics_of(folder)[name] == metrics_of(whole)[name]


@pytest.fixture(scope="module")
def of_two(place, tmp_path_factory) -> Path:
    """The run of `whole` by two processes, with half of the batch in each."""
    cwd = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port]
    words = [*given_by(place), *PACE, *SIDES, "--per_device_train_batch_size", 2]
    command = [sys.executable, *launch, ROOT / "recipes" / "finetune_instruct.py", *words]
    with one_core():
        done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (cwd / "output.txt").write_text(done.stdout)
    return cwd / "runs" / "chat"


@pytest.mark.slow
def test_two_processes_learn_what_one_does(whole, of_two):
    """The same samples at each step, and the same losses but for the order of sums."""
    assert {path.name for path in of_two.iterdir()} == CHAT_FOLDER
    losses = losses_of(of_two)
    assert losses[1] == pytest.approx(losses_of(whole)[1], rel=1e-6)
    assert losses == pytest.approx(losses_of(whole), rel=1e-3)
    assert len([line for line in journal_of(of_two) if "loss" in line]) == STEPS  # one process writes
    assert output_of(of_two).count("llmkit chat") == 1


@pytest.mark.slow
def test_two_processes_report_what_one_does(whole, of_two):
    for name in ("validation_loss", "baseline_validation_loss"):
        assert metrics_of(of_two)[name] == pytest.approx(metrics_of(whole)[name], rel=1e-4)
    for name in ("exact_match", "exact_match_n", "validation_loss_n", "trained_parameters", "train_tokens"):
        assert metrics_of(of_two)[name] == metrics_of(whole)[name]


# ---------------------------------------------------------------------------------------------- the system prompt


def test_the_system_prompt_is_put_first_where_there_is_none(tmp_path, tokenizer):
    conversations = chats(40)
    file = write_chats(tmp_path / "chats.jsonl", conversations)
    problems: list[str] = []
    options = FinetuneOptions(data=str(file), validation_fraction=0.25, system_prompt="Be short.")
    rows = finetuning.open_conversations(options, problems)
    assert problems == []
    assert rows.train
    assert rows.validation
    for row in [*rows.train, *rows.validation]:
        original = conversations[int(row.place.rpartition(" ")[2]) - 1]
        has_one = original[0]["role"] == "system"
        expected = original if has_one else [{"role": "system", "content": "Be short."}, *original]
        assert list(row.messages) == expected
    encoded = encode_conversations(tokenizer, [row.messages for row in rows.train])
    trained = [
        tokenizer.decode([t for t, is_trained in zip(e.ids, e.trained, strict=True) if is_trained]) for e in encoded
    ]
    assert not any("Be" in text for text in trained)


# ---------------------------------------------------------------------------------------------- what is refused

USER, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}
# The second row of a file whose first is good; then what is said of it.
BAD_ROWS = {
    "no_assistant": ({"messages": [USER]}, ["no message is the assistant's", "add the answer"]),
    "no_answer": ({"messages": [USER, ANSWER, USER]}, ["ends with the user"]),
    "empty": ({"messages": [USER, ANSWER | {"content": " \n"}]}, ["message 1", "the content is empty"]),
    "role": ({"messages": [USER | {"role": "robot"}, ANSWER]}, ["message 0", "'robot'", "system, user, assistant"]),
    "null_role": ({"messages": [USER | {"role": None}, ANSWER]}, ["message 0", "the role is None"]),
    "null_content": ({"messages": [USER, ANSWER | {"content": None}]}, ["message 1", "the content is null"]),
    "null_messages": ({"messages": None}, ["messages is null"]),
    "mixed": ({"prompt": "Who?", "completion": "I."}, ["completion+prompt", "line 1 has messages", "one form"]),
    "turns": ({"messages": [ANSWER, USER]}, ["message 0", "assistant's where the user's is expected"]),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer) -> Path:
    """A folder with every bad input by name; `chats.jsonl` and `untrained` are good."""
    from transformers import BertConfig, BertForMaskedLM, Qwen2Tokenizer

    folder = tmp_path_factory.mktemp("inputs")
    write_chats(folder / "chats.jsonl", chats(40))
    good = {"messages": [USER, ANSWER]}
    for name, (row, _) in BAD_ROWS.items():
        write_rows(folder / f"{name}.jsonl", [good, row, good])
    write_rows(folder / "all.jsonl", [good, *(row for row, _ in BAD_ROWS.values())])
    for column in ("prompt", "completion"):
        rows = [{"prompt": f"{n}?", "completion": "Yes."} for n in range(3)]
        write_rows(folder / f"null_{column}.jsonl", [rows[0], rows[1] | {column: None}, rows[2]])

    tiny_model(tokenizer).save_pretrained(folder / "untrained")
    tokenizer.save_pretrained(folder / "untrained")
    bert = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(bert).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    shutil.copytree(folder / "encoder", folder / "nameless")
    config = json.loads((folder / "encoder" / "config.json").read_text())
    del config["architectures"]
    (folder / "nameless" / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder / "adapter")
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").touch()
    shutil.copytree(
        folder / "untrained", folder / "plain", ignore=shutil.ignore_patterns("tokenizer*", "chat_template.jinja")
    )
    plain = Qwen2Tokenizer().train_new_from_iterator([sentences(100)], vocab_size=280, show_progress=False)
    assert "<|im_start|>" not in plain.get_vocab()
    assert plain.chat_template is None
    plain.save_pretrained(folder / "plain")
    return folder


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_finetune_instruct", ROOT / "recipes" / "finetune_instruct.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def refuse(recipe, inputs, tmp_path, monkeypatch):
    """Runs the recipe, which must refuse before it loads a model and write nothing, and returns its problems."""

    def too_early(*args, **kwargs):
        raise AssertionError("a model was loaded before everything else was looked at")

    monkeypatch.setattr("llmkit.modeling.models.load_model", too_early)
    monkeypatch.chdir(inputs)

    def call(words: str) -> list[str]:
        given = words.split()
        good = {
            "--data": "chats.jsonl",
            "--model": "untrained",
            "--output_dir": str(tmp_path / "out"),
            "--max_steps": 2,
        }
        rest = [str(word) for option, value in good.items() if option not in given for word in (option, value)]
        monkeypatch.setattr(sys, "argv", ["recipes/finetune_instruct.py", *given, *rest])
        before = everything_below(inputs)
        with pytest.raises(UserError) as refused:
            recipe.main()
        assert everything_below(inputs) == before
        assert list(tmp_path.iterdir()) == []
        return refused.value.problems

    return call


REFUSED = [
    *((f"--data {name}.jsonl", [f"{name}.jsonl, line 2", *said]) for name, (_, said) in BAD_ROWS.items()),
    ("--data null_prompt.jsonl", ["null_prompt.jsonl, line 2", "prompt is null"]),
    ("--data null_completion.jsonl", ["null_completion.jsonl, line 2", "completion is null"]),
    ("--data missing.jsonl", ["--data missing.jsonl", "no such file"]),
    ("--model nowhere", ["--model nowhere", "no such folder"]),
    ("--model encoder", ["--model encoder", "BertForMaskedLM", "does not continue text"]),
    ("--model nameless", ["--model nameless", "does not continue text"]),
    ("--model adapter", ["--model adapter", "is an adapter", "--merge"]),
    ("--model plain", ["no chat template", "<|im_start|> and <|im_end|>", "--chat_template_path"]),
    ("--tutor_rows 5", ["--tutor_rows 5", "--data is given", "leave one of the two out"]),
    ("--too_long perhaps", ["--too_long", "'perhaps'", "truncate"]),
    ("--max_length 1", ["--max_length 1", "2 or more"]),
    ("--max_length 129", ["--max_length 129", "untrained", "128 tokens"]),
    ("--max_length 20", ["--data", "none of", "20 tokens", "--max_length"]),
    ("--max_length 40 --too_long error", ["--too_long error", "longer than 40 tokens", "chats.jsonl, line "]),
    ("--assistant_only_loss", ["--assistant_only_loss", "changes nothing", "assistant's answers"]),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[words for words, _ in REFUSED])
def test_bad_input_is_refused_before_a_model_loads_and_leaves_no_trace(refuse, words, said):
    (problem,) = refuse(words)
    for part in said:
        assert part in problem


def test_all_that_is_wrong_is_said_at_once(refuse):
    problems = refuse("--data all.jsonl --model encoder --tutor_rows 5 --max_length 1 --decay_share 2")
    expected = ["--model encoder", "--tutor_rows 5", "--max_length 1:", "--decay_share 2.0"]
    expected += [f"all.jsonl, line {number}" for number in range(2, len(BAD_ROWS) + 2)]
    assert len(problems) == len(expected)
    for part in expected:
        assert sum(re.search(rf"{re.escape(part)}(?!\d)", problem) is not None for problem in problems) == 1, part


@pytest.mark.slow
def test_a_refused_command_leaves_with_code_2(inputs):
    before = everything_below(inputs)
    words = ["--data", "empty.jsonl", "--model", "adapter", "--tutor_rows", 5]
    done = run_recipe("finetune_instruct", *words, cwd=inputs, check=False)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 3
    assert "Traceback" not in done.stderr
    assert everything_below(inputs) == before
