"""Bits per byte: cases that can be computed by hand, and the same figure however the work is cut."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from llmkit.evaluation.bits_per_byte import bits_per_byte

# A vocabulary with characters of one, two and four bytes; the end-of-text token stands for none.
END, A, E_ACUTE, SMILE = range(4)
BYTES = np.array([0, len(b"a"), len("é".encode()), len("🙂".encode())])
IDS = np.array([A, E_ACUTE, SMILE, END, A, END], dtype=np.uint16)


class Table(nn.Module):
    """A model whose prediction follows from the input token alone: row i of `logits` after token i.

    It keeps the rows of tokens that it was given.
    """

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not self.training
        self.seen += input_ids.tolist()
        return SimpleNamespace(logits=self.logits[input_ids])


def constant(probabilities: list[float]) -> Table:
    """A model that always predicts the same."""
    return Table(torch.tensor(probabilities).log().repeat(len(probabilities), 1))


def random_table(size: int = 12) -> Table:
    return Table(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))


def random_ids(count: int, size: int = 12) -> np.ndarray:
    """Tokens with an end of text here and there, and at the end."""
    ids = np.random.default_rng(0).integers(size, size=count)
    ids[-1] = END
    return ids.astype(np.uint16)


def by_hand(table: Table, ids: np.ndarray, byte_lengths: np.ndarray) -> tuple[float, int]:
    """(bits, bytes) of a row of tokens, one token after the other."""
    logs = torch.log_softmax(table.logits.detach().double(), -1) / math.log(2)
    bits, size = 0.0, 0
    for before, token in zip([END, *ids[:-1].tolist()], ids.tolist(), strict=True):
        if byte_lengths[token]:
            bits -= logs[before, token].item()
            size += int(byte_lengths[token])
    return bits, size


@pytest.mark.parametrize(
    ("probabilities", "bits"),
    [
        ([1 / 4, 1 / 4, 1 / 4, 1 / 4], 4 * 2),
        # a, é, smile, a: one, two, three and one bits. The two ends of text, three bits each, do not count.
        ([1 / 8, 1 / 2, 1 / 4, 1 / 8], 1 + 2 + 3 + 1),
    ],
)
def test_a_known_distribution_costs_the_bits_computed_by_hand(probabilities, bits):
    result = bits_per_byte(constant(probabilities), IDS, BYTES, context_length=4)
    assert result.text_bytes == 1 + 2 + 4 + 1 == len("aé🙂a".encode())
    assert result.value == pytest.approx(bits / 8, rel=1e-6)
    assert result.nats_per_token == pytest.approx(bits * math.log(2) / 4, rel=1e-6)


def test_metrics_name_value_interval_and_bytes():
    result = bits_per_byte(constant([1 / 4] * 4), IDS, BYTES, context_length=4)
    assert result.metrics() == {
        "bits_per_byte": result.value,
        "bits_per_byte_ci": list(result.interval),
        "bits_per_byte_n": 8,
    }


def test_special_tokens_cost_nothing_however_badly_they_are_predicted():
    sure_of_text = constant([1e-30, 1 / 2, 1 / 4, 1 / 4])
    assert bits_per_byte(sure_of_text, IDS, BYTES, 4).value == pytest.approx((1 + 2 + 2 + 1) / 8, rel=1e-6)


def test_the_first_token_is_predicted_from_the_end_of_text():
    logits = torch.zeros(4, 4)
    logits[END, A] = 100.0  # after an end of text, surely an "a"
    result = bits_per_byte(Table(logits), np.array([A, END]), BYTES, context_length=8)
    assert result.text_bytes == 1
    assert result.value == pytest.approx(0.0, abs=1e-6)


def test_windows_follow_each_other_and_each_sees_the_token_before():
    """Three windows of four tokens and one of two: the input of each begins one token before its targets."""
    ids = np.array([5, 6, 7, 8, 9, 10, 11, 1, 2, 3, 4, 5, 6, END], dtype=np.uint16)
    table = random_table()
    bits_per_byte(table, ids, np.ones(12, int), context_length=4, batch_size=1)
    assert table.seen == [[END, 5, 6, 7], [8, 9, 10, 11], [1, 2, 3, 4], [5, 6]]


def test_a_short_last_window_is_filled_up_behind_what_counts():
    ids = np.array([5, 6, 7, 8, 9, END], dtype=np.uint16)
    table = random_table()
    lengths = np.arange(12)
    result = bits_per_byte(table, ids, lengths, context_length=4, batch_size=2)
    assert table.seen == [[END, 5, 6, 7], [8, 9, END, END]]
    bits, size = by_hand(table, ids, lengths)
    assert (result.value, result.text_bytes) == (pytest.approx(bits / size, rel=1e-6), size)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("context_length", [1, 2, 7, 100, 101, 1000])
def test_every_token_is_predicted_once_however_the_row_is_cut(context_length, batch_size):
    """A prediction that follows from the token before is the same in any window, so a token left out or taken twice shows."""
    ids, lengths = random_ids(101), np.arange(12)
    result = bits_per_byte(random_table(), ids, lengths, context_length, batch_size)
    bits, size = by_hand(random_table(), ids, lengths)
    assert result.text_bytes == size
    assert result.value == pytest.approx(bits / size, rel=1e-6)


@pytest.mark.parametrize(("tokens", "context_length", "batch_size"), [(101, 7, 2), (101, 7, 5), (40, 5, 3), (20, 8, 2)])
def test_two_processes_that_share_the_work_return_what_one_does(monkeypatch, tokens, context_length, batch_size):
    """Each process is run by itself; what a real `gather_object` would bring it from the other is handed in."""
    ids, lengths = random_ids(tokens), np.arange(12)
    alone = bits_per_byte(random_table(), ids, lengths, context_length, batch_size)
    own: dict[int, list] = {}
    tables = {rank: random_table() for rank in (0, 1)}

    def work(rank: int):
        return bits_per_byte(tables[rank], ids, lengths, context_length, batch_size, process=(rank, 2))

    def gather_for(rank: int):
        def gather(part: list) -> list:
            own.setdefault(rank, part)
            return own[0] + own.get(1, [])

        return gather

    for rank in (0, 1):
        monkeypatch.setattr("accelerate.utils.gather_object", gather_for(rank))
        last = work(rank)
    assert last == alone
    monkeypatch.setattr("accelerate.utils.gather_object", gather_for(0))
    assert work(0) == alone
    # Shared indeed: each has computed windows, and none of them twice.
    sizes = [own[rank][0][1] for rank in (0, 1)]
    assert not (sizes[0] * sizes[1]).any()
    windows = math.ceil(tokens / context_length)
    first_of = [len(range(rank * batch_size, windows, 2 * batch_size)) for rank in (0, 1)]
    assert all((size > 0).any() == (batches > 0) for size, batches in zip(sizes, first_of, strict=True))


def test_a_process_without_windows_of_its_own_joins_in_and_counts_nothing(monkeypatch):
    """A model that is cut over processes needs them all at every forward pass."""
    ids, lengths = random_ids(6), np.arange(12)
    alone = bits_per_byte(random_table(), ids, lengths, 8, 4)
    parts: list = []
    monkeypatch.setattr("accelerate.utils.gather_object", lambda part: parts.extend(part) or parts)
    assert bits_per_byte(random_table(), ids, lengths, 8, 4, process=(0, 2)) == alone
    idle = random_table()
    assert bits_per_byte(idle, ids, lengths, 8, 4, process=(1, 2)) == alone
    assert len(idle.seen) == 1
    assert not parts[1][1].any()


def test_the_interval_holds_the_value_and_narrows_with_more_text():
    few, many = (bits_per_byte(random_table(), random_ids(n), np.arange(12), 8) for n in (200, 5000))
    for result in (few, many):
        assert result.interval[0] < result.value < result.interval[1]
    assert many.interval[1] - many.interval[0] < (few.interval[1] - few.interval[0]) / 2


def test_windows_that_are_all_alike_leave_no_doubt():
    ids = np.array([A, E_ACUTE, SMILE, END] * 9)
    result = bits_per_byte(constant([1 / 4] * 4), ids, BYTES, context_length=4)
    assert result.interval == pytest.approx((result.value, result.value), rel=1e-12)


def test_a_text_of_special_tokens_alone_has_no_figure():
    with pytest.raises(ValueError, match="no token"):
        bits_per_byte(constant([1 / 4] * 4), np.array([END, END]), BYTES, 4)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_the_mode_it_was_in(training):
    model = constant([1 / 4] * 4).train(training)
    bits_per_byte(model, IDS, BYTES, 4)
    assert model.training == training


def test_a_real_model_gets_the_loss_that_transformers_computes(gpt):
    """The recipe's own model on text with characters of several bytes, in one window."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmkit.tokenization.byte_lengths import token_byte_lengths

    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt), AutoTokenizer.from_pretrained(gpt)
    text = "naïve café 🙂"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) < 32
    end = tokenizer.eos_token_id
    result = bits_per_byte(model, np.array([*ids, end]), token_byte_lengths(tokenizer), context_length=32)
    assert result.text_bytes == len(text.encode()) == 17
    row = torch.tensor([[end, *ids]])
    nats = model(input_ids=row, labels=row).loss.item() * len(ids)
    assert result.value == pytest.approx(nats / math.log(2) / 17, rel=1e-5)
