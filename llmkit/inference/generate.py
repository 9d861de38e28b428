"""Continuing a text."""

from collections.abc import Iterator
from typing import Any

import torch

from llmkit.errors import UserError


def load(name: str) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, from a folder or the Hub, ready to generate on the best device at hand.

    Raises:
        UserError: it is not there, or is no causal language model.
    """
    from llmkit.folder import require_model_folder
    from llmkit.modeling.models import load_model, load_tokenizer

    require_model_folder(name, "the model")
    tokenizer = load_tokenizer(name, "the model")
    model = load_model(name, tokenizer, "the model").eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def stream(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """Continue a prompt, piece by piece; pieces end at whole characters.

    An answer ends with the end-of-text token, after `max_new_tokens`, or where the model's context is full.

    Raises:
        UserError: the prompt fills the context; at the call, before there is a first piece.
    """
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True  # control tokens in a prompt are text
    try:
        ids = tokenizer.encode(prompt, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = before
    ids = [tokenizer.eos_token_id, *ids]
    room = model.config.max_position_embeddings - len(ids)
    if room < 1:
        raise UserError(
            f"the prompt is {len(ids) - 1} tokens and the model looks back over {model.config.max_position_embeddings}; shorten it"
        )
    if seed is not None:
        torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": min(max_new_tokens, room)}
    if temperature > 0:
        sampling |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return _pieces(model, tokenizer, torch.tensor([ids], device=model.device), sampling)


def _pieces(model: Any, tokenizer: Any, inputs: torch.Tensor, sampling: dict[str, Any]) -> Iterator[str]:
    from threading import Thread

    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                streamer=streamer,
                **sampling,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        except BaseException as error:  # the thread must end the stream whatever happens; it is raised again below
            failure.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    yield from (piece for piece in streamer if piece)
    thread.join()
    if failure:
        raise failure[0]
