"""A language model on a text of one's own."""

import tempfile
from pathlib import Path
from typing import Any

from llmkit.errors import UserError


def evaluate_language_model(
    name: str, data: str, text_column: str | None = None, context_length: int | None = None
) -> dict[str, Any]:
    """Bits per byte of a model over all the documents of `data`.

    Args:
        name: model folder or Hub id.
        data: what `--data` takes; all of it is the test.
        context_length: tokens of a window; the model's own if None.

    Raises:
        UserError: model or data cannot be used, or the tokenizer does not keep every byte.
    """
    from llmkit.data.packing import open_tokens, write_tokens
    from llmkit.data.sources import open_source
    from llmkit.evaluation.bits_per_byte import bits_per_byte
    from llmkit.inference.generate import load
    from llmkit.tokenization.byte_lengths import token_byte_lengths

    source = open_source(data, text_column)
    model, tokenizer = load(name)
    longest = model.config.max_position_embeddings
    context = min(longest, 2048) if context_length is None else context_length
    if not 1 <= context <= longest:
        raise UserError(f"--context_length {context}: the model looks back over {longest} tokens")
    byte_lengths = token_byte_lengths(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokens.bin")
        tokens = open_tokens(file, write_tokens(source.documents(), tokenizer, file))
        if not tokens.documents:
            raise UserError(f"--data {data}: holds no text")
        if int(byte_lengths[tokens.ids].sum()) != tokens.text_bytes:
            raise UserError(
                f"the tokenizer of {name} does not keep every byte of {data}: bits per byte are not defined"
            )
        result = bits_per_byte(model, tokens.ids, byte_lengths, context, batch_size=max(8192 // context, 1))
    return {
        **result.metrics(),
        "documents": tokens.documents,
        "tokens": len(tokens.ids),
        "nats_per_token": result.nats_per_token,
        "context_length": context,
        "data_fingerprint": source.fingerprint,
    }
