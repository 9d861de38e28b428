"""How many bytes of text each token stands for."""

import re
from typing import Any

import numpy as np

from llmkit.errors import UserError


def token_byte_lengths(tokenizer: Any) -> np.ndarray:
    """The UTF-8 bytes that each token adds to a text, read from the vocabulary itself.

    Decoding tokens one by one would be wrong: a token may be a part of a character, which decodes to a replacement
    character of another length. A byte-level vocabulary spells each byte as one character, so that the length of the
    spelling is the number of bytes. A sentencepiece vocabulary spells a space as one mark and a byte as <0x0A>.

    Returns:
        int64 [len(tokenizer)]; 0 for special tokens, which stand for no text.

    Raises:
        UserError: a tokenizer of another kind, whose tokens do not give the text back (WordPiece).
    """
    backend = tokenizer.backend_tokenizer
    decoder = str(backend.decoder)
    special = set(tokenizer.all_special_ids)
    lengths = np.zeros(len(tokenizer), dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        if number in special or number in tokenizer.added_tokens_decoder:
            plain = number not in special and not tokenizer.added_tokens_decoder[number].special
            lengths[number] = len(token.encode()) if plain else 0
        elif "ByteLevel" in decoder:
            lengths[number] = len(token)
        elif "ByteFallback" in decoder or "Metaspace" in decoder:
            lengths[number] = 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token.replace("▁", " ").encode())
        else:
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} does not keep every byte of a text, so bits per byte are not "
                "defined for it; use a model with a byte-level or byte-fallback tokenizer"
            )
    return lengths
