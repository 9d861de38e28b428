"""Text from a model in training, and how much of it stands in the training text."""

import random

import numpy as np
import pytest
import torch

from llmkit.evaluation import samples
from llmkit.evaluation.samples import TrainingText, generate_samples

TALES = ["The cat sat on the mat.", "A dog,\nand  a bird.\n\nThe end", "naïve café 🙂 again"]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ("", 0),
        ("nothing of it", 0),
        ("cat", 1),
        ("The cat sat on the mat.", 6),
        ("so The cat sat down", 3),
        ("sat on sat on the", 3),
        ("on the sat on the mat. A", 4),  # the longest run starts inside a shorter one
        ("cat The dog, on", 1),
        ("cat the", 1),  # both words are there, but not in this order
        ("the end", 1),  # case counts: "The end" is not "the end"
        ("ca", 0),  # a part of a word is not a word
        ("mat", 0),  # "mat." has its mark
        ("A dog, and a bird. The end", 7),  # white space of any kind is one space
        ("A   dog,\n\tand", 3),
        ("mat. A dog,", 2),  # a run does not go on from one document to the next
        ("naïve café 🙂 again", 4),
    ],
)
def test_the_longest_run_is_counted_in_words(sample, words):
    assert TrainingText(TALES).longest_run(sample) == words


def test_the_longest_run_is_that_of_a_plain_search():
    draw = random.Random(0)

    def words(count: int) -> list[str]:
        return draw.choices("abc", k=count)

    def stands_in(run: list[str], document: list[str]) -> bool:
        return any(document[i : i + len(run)] == run for i in range(len(document)))

    for _ in range(50):
        documents, sample = [words(12) for _ in range(3)], words(10)
        expected = max(
            (j - i for i in range(10) for j in range(i + 1, 11) if any(stands_in(sample[i:j], d) for d in documents)),
            default=0,
        )
        assert TrainingText(map(" ".join, documents)).longest_run(" ".join(sample)) == expected


def test_a_text_that_is_too_long_is_kept_in_part_and_says_so(monkeypatch):
    assert TrainingText(TALES).complete
    monkeypatch.setattr(samples, "MOST_BYTES", 30)
    text = TrainingText(TALES)
    assert not text.complete
    assert text.longest_run("The end") == 2
    assert text.longest_run("naïve café") == 0


@pytest.fixture(scope="module")
def model_and_tokenizer(gpt):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(gpt), AutoTokenizer.from_pretrained(gpt)


def test_samples_are_the_same_for_the_same_seed(model_and_tokenizer):
    first, again, other = (generate_samples(*model_and_tokenizer, ["", "The"], 12, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first) == 2
    assert all(isinstance(text, str) for text in first)


@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_looking_at_samples_leaves_the_random_state_as_it_was(model_and_tokenizer, temperature):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(4), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    generate_samples(*model_and_tokenizer, ["The"], 8, seed=0, temperature=temperature)
    assert torch.equal(torch.rand(4), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


def test_a_temperature_of_zero_takes_the_likeliest_token(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    texts = {generate_samples(model, tokenizer, ["The"], 6, seed, temperature=0.0)[0] for seed in (1, 2)}
    ids = [tokenizer.eos_token_id, *tokenizer.encode("The", add_special_tokens=False)]
    start = len(ids)
    for _ in range(6):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == tokenizer.eos_token_id:
            break
    assert texts == {tokenizer.decode(ids[start:], skip_special_tokens=True)}


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_the_mode_it_was_in(model_and_tokenizer, training):
    model, tokenizer = model_and_tokenizer
    before = model.training
    try:
        generate_samples(model.train(training), tokenizer, [""], 2, seed=0)
        assert model.training == training
    finally:
        model.train(before)


def test_a_sample_ends_where_the_context_is_full(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    prompt = "The river sees the"
    prompt_tokens = 1 + len(tokenizer.encode(prompt, add_special_tokens=False))
    (text,) = generate_samples(model, tokenizer, [prompt], 1000, seed=3)
    longest = model.config.max_position_embeddings - prompt_tokens
    assert longest > 0
    assert len(tokenizer.encode(text, add_special_tokens=False)) <= longest


def test_a_prompt_that_fills_the_context_does_not_fail(model_and_tokenizer):
    """Samples are looked at in the middle of training: a short context must not end the run at its first evaluation."""
    model, tokenizer = model_and_tokenizer
    prompt = "The house remembers the engine by the sea, and number 1 2 3 4"
    assert len(tokenizer.encode(prompt, add_special_tokens=False)) >= model.config.max_position_embeddings
    assert len(generate_samples(model, tokenizer, [prompt], 8, seed=0)) == 1
