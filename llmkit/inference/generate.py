"""Text from a causal language model, piece by piece: loading it, continuing a prompt, and the worker that chat shares."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llmkit.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: the most that are generated.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample among this many tokens; 0: all.
        top_p: sample among the likeliest tokens of this total probability.
        repetition_penalty: divides the logits of tokens that stand before; 1: none.
        seed: from 0 to 2**64 - 1; None: another one each time.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None


def require_model(name: str, option: str = "the model") -> None:
    """Refuse what is neither a model folder, an adapter folder nor a Hub id, before anything is loaded.

    Raises:
        UserError: what is missing, and the fix.
    """
    from llmkit.folder import require_model_folder
    from llmkit.modeling.adapters import is_adapter

    if not is_adapter(name):
        require_model_folder(name, option)


def load(name: str, option: str = "the model") -> tuple[Any, Any]:
    """A causal language model and its tokenizer, from a folder or the Hub, ready to generate on the best device at hand.

    Args:
        name: model folder, adapter folder or Hub id.
        option: what brought the name, for messages.

    Raises:
        UserError: it is not there, or is no causal language model.
    """
    from llmkit.modeling.models import load_tokenizer

    require_model(name, option)
    tokenizer = load_tokenizer(name, option)
    return load_weights(name, tokenizer, option), tokenizer


def load_weights(name: str, tokenizer: Any, option: str = "the model") -> Any:
    """The model of a tokenizer that is loaded already; an adapter is added into the weights of its base.

    Raises:
        UserError: it is no causal language model, or an adapter whose base is missing or another one.
    """
    from llmkit.modeling.adapters import is_adapter, load_adapted
    from llmkit.modeling.models import load_model

    if is_adapter(name):
        model = load_adapted(name, tokenizer).merge_and_unload()
    else:
        model = load_model(name, tokenizer, option)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


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
    sampling = Sampling(min(max_new_tokens, room), temperature, top_k, top_p, seed=seed)
    return pieces(model, tokenizer, ids, [tokenizer.eos_token_id], sampling)


def pieces(
    model: Any, tokenizer: Any, ids: list[int], ends: Sequence[int], sampling: Sampling, stop: Event | None = None
) -> Generator[str, None, None]:
    """What a model writes after `ids`, in pieces that end at whole characters, from a thread of its own.

    Closing the generator, or setting `stop`, ends the thread within one token; a closed generator returns when it has ended.

    Args:
        ids: the prompt; not empty.
        ends: tokens that end the text; they are no part of it.
        stop: to be set from anywhere.

    Raises:
        Exception: what went wrong in the thread, at the piece where it did.
    """
    streamer = WholeCharacters(tokenizer, ends)
    closed = Event()
    events = [closed] if stop is None else [closed, stop]
    inputs = torch.tensor([ids], device=model.device)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([_Stopped(events)]),
                logits_processor=LogitsProcessorList(
                    [_Draw(sampling, model.device)] if sampling.temperature > 0 else []
                ),
                do_sample=False,  # drawn by `_Draw`, with a generator of this request's own
                max_new_tokens=sampling.max_new_tokens,
                repetition_penalty=sampling.repetition_penalty,
                eos_token_id=list(ends),
                pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                use_cache=True,
            )
        except BaseException as error:  # the thread must end the stream whatever happens; it is raised again below
            failure.append(error)
            streamer.on_finalized_text("", stream_end=True)

    thread = Thread(target=work, daemon=True, name="llmkit-generate")
    thread.start()
    try:
        yield from filter(None, streamer)
    finally:
        closed.set()
        thread.join()
    if failure:
        raise failure[0]


class WholeCharacters(TextIteratorStreamer):
    """Text as soon as its characters are whole. The parent waits for the end of a word, which some languages do not have.

    The text of a token can depend on the one before it (sentencepiece drops a space in front of the first), so the tokens of
    the piece before are decoded with those of the next.

    Args:
        ends: tokens that are not shown, special ones or not.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._ends = frozenset(ends)
        self._sent = 0  # tokens of the cache that the piece before was made of

    def put(self, value: torch.Tensor) -> None:
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        self.token_cache += [token for token in value.reshape(-1).tolist() if token not in self._ends]
        text = self._rest()
        if text and not text.endswith("\ufffd"):  # U+FFFD stands for the first bytes of a character
            self.token_cache = self.token_cache[self._sent :]
            self._sent = len(self.token_cache)
            self.on_finalized_text(text)

    def end(self) -> None:
        text = self._rest()  # bytes that never became a character are U+FFFD, as in the decoded whole
        self.token_cache, self._sent, self.next_tokens_are_prompt = [], 0, True
        self.on_finalized_text(text, stream_end=True)

    def _rest(self) -> str:
        before = self.tokenizer.decode(self.token_cache[: self._sent], **self.decode_kwargs)
        return self.tokenizer.decode(self.token_cache, **self.decode_kwargs)[len(before) :]


class _Stopped(StoppingCriteria):
    """Ends the text when one of the events is set."""

    def __init__(self, events: list[Event]):
        self.events = events

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        is_set = any(event.is_set() for event in self.events)
        return torch.full((len(input_ids),), is_set, device=input_ids.device, dtype=torch.bool)


class _Draw(LogitsProcessor):
    """Draws the next token and leaves no other to be chosen.

    transformers' own sampling draws from the random state of the process, which all requests share: one of them would change
    what the seed of another gives. Here each has a generator.
    """

    def __init__(self, sampling: Sampling, device: torch.device):
        self.generator = torch.Generator(device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores - scores.max(dim=-1, keepdim=True).values  # a temperature near 0 would make infinities of them
        probabilities = self.warpers(input_ids, scores).softmax(dim=-1)
        drawn = torch.multinomial(probabilities, 1, generator=self.generator)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)
