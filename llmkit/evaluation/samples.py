"""Text from a model, and how much of it stands word for word in the training text."""

from collections.abc import Iterable
from typing import Any

import torch

MOST_BYTES = 16_000_000  # of training text that is searched


class TrainingText:
    """The training text, to be asked what stands in it.

    Args:
        texts: the training documents; at most the first 16 MB are kept, and `complete` says whether that was all.
    """

    def __init__(self, texts: Iterable[str]):
        parts, size, self.complete = [], 0, True
        for text in texts:
            if size > MOST_BYTES:
                self.complete = False
                break
            parts.append(" ".join(text.split()))
            size += len(parts[-1])
        self._text = " " + " \n ".join(parts) + " "

    def longest_run(self, sample: str) -> int:
        """How many words in a row of the sample stand in the training text, at most."""
        words = sample.split()
        longest = 0
        for start in range(len(words)):
            # Only a run longer than the longest so far is of interest.
            while start + longest < len(words) and self._holds(words[start : start + longest + 1]):
                longest += 1
        return longest

    def _holds(self, words: list[str]) -> bool:
        return f" {' '.join(words)} " in self._text


def generate_samples(
    model: Any, tokenizer: Any, prompts: list[str], new_tokens: int, seed: int, temperature: float = 0.8
) -> list[str]:
    """Continue each prompt; an empty one starts a document, and one that takes more than half of the context is cut.

    The random state of the caller is left as it was, so that looking at samples does not change a training run.
    """
    device = next(model.parameters()).device
    training, generator = model.training, torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    model.eval()
    texts = []
    try:
        torch.manual_seed(seed)
        for prompt in prompts:
            room = model.config.max_position_embeddings
            ids = [tokenizer.eos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)][: max(room // 2, 1)]
            output = model.generate(
                torch.tensor([ids], device=device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
                max_new_tokens=max(min(new_tokens, room - len(ids)), 1),
                do_sample=temperature > 0,
                temperature=temperature if temperature > 0 else None,
                top_k=0,
                use_cache=True,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts.append(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
    finally:
        torch.set_rng_state(generator)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        model.train(training)
    return texts
