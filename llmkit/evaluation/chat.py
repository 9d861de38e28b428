"""How often a chat model's answer is exactly the right one, by kind of question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmkit.data.conversations import Conversation
from llmkit.tokenization.chat import end_tokens, prompt_ids

BATCH_TOKENS = 8192  # of prompts and answers that are generated together


@dataclass
class Answers:
    """What a model answered to conversations, beside what is right.

    Attributes:
        rows: the conversations; the last message of each is the right answer.
        given: the model's answers, greedy.
    """

    rows: Sequence[Conversation]
    given: list[str]

    @property
    def right(self) -> list[bool]:
        """For each row whether the answer is the right one, up to white space."""
        return [
            " ".join(given.split()) == " ".join(row.answer.split())
            for row, given in zip(self.rows, self.given, strict=True)
        ]

    def metrics(self, name: str = "exact_match") -> dict[str, Any]:
        """The share of right answers with its count and 95 % interval, overall and by kind."""
        right = self.right
        kinds = list(dict.fromkeys(row.kind for row in self.rows if row.kind is not None))
        found = share_of_right(name, right)
        for kind in kinds if len(kinds) > 1 else ():
            found |= share_of_right(
                f"{name}_{kind}", [r for r, row in zip(right, self.rows, strict=True) if row.kind == kind]
            )
        return found

    def wrong(self) -> list[dict[str, str]]:
        """The wrong answers: kind, question, answer, and what is right."""
        return [
            {
                "kind": row.kind or "",
                "question": " / ".join(m["content"] for m in row.prompt if m["role"] == "user"),
                "answer": given,
                "right": row.answer,
            }
            for row, given, right in zip(self.rows, self.given, self.right, strict=True)
            if not right
        ]


def share_of_right(name: str, right: list[bool]) -> dict[str, Any]:
    """A share as a metric with its count and its 95 % interval (Wilson, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    return {name: sum(right) / len(right), f"{name}_ci": [interval.low, interval.high], f"{name}_n": len(right)}


def answer_rows(
    model: Any, tokenizer: Any, rows: Sequence[Conversation], progress: Callable[[int], None] | None = None
) -> Answers:
    """Let a model answer the last question of each row, greedily.

    An answer may be half as long again as the right one before it is cut, which makes it wrong; a prompt that fills the
    context has the empty answer.

    Args:
        progress: called with the number of answers after each batch.
    """
    lengths = [len(tokenizer(row.answer, add_special_tokens=False)["input_ids"]) for row in rows]
    prompts = [prompt_ids(tokenizer, row.prompt) for row in rows]
    room = [min(length + length // 2 + 8, model.config.max_position_embeddings - len(prompt))
            for length, prompt in zip(lengths, prompts, strict=True)]  # fmt: skip
    order = sorted((n for n in range(len(rows)) if room[n] > 0), key=lambda n: (len(prompts[n]), room[n]))
    given = [""] * len(rows)
    while order:
        widest, take = 0, 0
        while take < len(order):
            widest = max(widest, len(prompts[order[take]]) + room[order[take]])
            if take and widest * (take + 1) > BATCH_TOKENS:
                break
            take += 1
        batch, order = order[:take], order[take:]
        answers = generate_answers(model, tokenizer, [prompts[n] for n in batch], max(room[n] for n in batch))
        for number, ids in zip(batch, answers, strict=True):
            ids = ids[: room[number]]
            given[number] = tokenizer.decode(ids, skip_special_tokens=True).strip()
        if progress:
            progress(len(batch))
    return Answers(rows, given)


@torch.no_grad()
def generate_answers(model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """The ids of greedy answers to prompts of any lengths, without the token that ends them."""
    device = next(model.parameters()).device
    widest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (widest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (widest - len(p)) + [1] * len(p) for p in prompts], device=device)
    ends = end_tokens(tokenizer)
    was_training, used_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        made = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=pad,
            use_cache=True,
        )
    finally:
        model.train(was_training)
        model.config.use_cache = used_cache
    answers = []
    for row in made[:, widest:].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:end])
    return answers


def compare(ours: Answers, theirs: Answers) -> dict[str, Any]:
    """Two models on the same rows: McNemar's exact test on the rows that one of them alone has right.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.
    """
    from scipy.stats import binomtest

    pairs = list(zip(ours.right, theirs.right, strict=True))
    better, worse = pairs.count((True, False)), pairs.count((False, True))
    p_value = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return {"only_this_right": better, "only_other_right": worse, "p_value": p_value, "rows": len(pairs)}
