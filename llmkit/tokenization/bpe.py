"""Training a byte-level BPE tokenizer that every Hugging Face tool, vLLM, llama.cpp and MLX know how to run."""

import math
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from llmkit.data.packing import sample_of
from llmkit.data.splits import Split
from llmkit.errors import UserError
from llmkit.options import Setting, Settings

END_OF_TEXT = "<|endoftext|>"  # after every document
PAD = "<|pad|>"  # not the end of text, which is a target and must not be masked with the padding
SPECIAL_TOKENS = (END_OF_TEXT, PAD, "<|im_start|>", "<|im_end|>")  # the last two are ChatML's
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
SAMPLE_BYTES = 20_000_000  # of text is as good as all of it: merges are frequent pairs


def vocabulary_for(text_bytes: int) -> int:
    """A vocabulary that a text of this size can fill: the power of two below the root of its bytes, 512 to 65,536.

    By Heaps' law the distinct words of a text grow about as the root of its length; a token that the text shows only a
    few times is a row of the embedding that is never learned.
    """
    power = 2 ** int(math.log2(max(math.sqrt(text_bytes), 1)))
    return min(max(power, 512), 65_536)


def tokenizer_for(split: Split, settings: Settings, conversations: Iterable[str] = ()) -> Any:
    """Train a tokenizer on the training side of a corpus, of the size that `vocab_size` says or the text asks for.

    Args:
        conversations: what the model will talk like; learned from as well, so that its words become tokens of their own.

    Raises:
        UserError: a size that is too small for bytes, or too large for the text.
    """
    wanted = settings["vocab_size"].value
    if wanted is not None and wanted < SMALLEST_VOCABULARY:
        raise UserError(
            f"--vocab_size {wanted}: the least is {SMALLEST_VOCABULARY}, 256 bytes and {len(SPECIAL_TOKENS)} special tokens"
        )
    reason = "the power of two below the root of the bytes of the training text"
    size = settings.derive("vocab_size", vocabulary_for(split.train_bytes), reason)
    texts = sample_of(split.train(), split.train_bytes, SAMPLE_BYTES)
    tokenizer = train_bpe(chain(texts, conversations), size)
    if len(tokenizer) < size and wanted is not None:
        raise UserError(
            f"--vocab_size {wanted}: this text supports {len(tokenizer)} tokens; ask for that many, or give more text"
        )
    if len(tokenizer) < size:
        settings["vocab_size"] = Setting(len(tokenizer), "derived", "all that the training text supports")
    return tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a tokenizer of Qwen2's class: byte-level BPE, words split GPT-4's way, every digit by itself.

    The same texts give the same tokenizer. A pair is merged if it occurs twice at least, so that a small text can end
    with fewer tokens than asked for: compare `len(tokenizer)`.

    Args:
        texts: the training side only.
        vocab_size: tokens in all; `SMALLEST_VOCABULARY` is bytes and special tokens.

    Returns:
        A `transformers.Qwen2Tokenizer` with llmkit's chat template.

    Raises:
        ValueError: `vocab_size` is below `SMALLEST_VOCABULARY`.
    """
    from transformers import Qwen2Tokenizer

    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size {vocab_size} is below {SMALLEST_VOCABULARY}: 256 bytes and the special tokens")
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        _batched(texts),
        vocab_size=vocab_size,
        new_special_tokens=list(SPECIAL_TOKENS[1:]),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.pad_token = PAD
    tokenizer.chat_template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def _batched(texts: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, size)):
        yield batch
