"""The chat engine: a conversation in, an answer out, piece by piece. The terminal, the apps and the server share it."""

from bisect import bisect_left
from collections.abc import Generator, Sequence
from threading import Event, Lock
from typing import Any

from llmkit.data.conversations import Message, conversation_from
from llmkit.errors import UserError
from llmkit.inference.generate import Sampling, load_weights, pieces, require_model
from llmkit.tokenization.chat import end_tokens, prompt_ids

MOST_NEW_TOKENS = 512  # of an answer, where nobody said how many


class ChatModel:
    """A model that answers conversations, as many at a time as there are threads that ask.

    What it is asked with is what training saw: texts trimmed and composed, the folder's chat template, and control tokens
    that somebody types as text.

    Attributes:
        name: folder or Hub id.
        model, tokenizer: as transformers has them.
        ends: the tokens that end an answer.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any):
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.ends = end_tokens(tokenizer)
        # Encoding with sanitized control tokens switches a setting of the tokenizer, which its threads share.
        self._encoding = Lock()

    @classmethod
    def load(cls, name: str, option: str = "the model") -> "ChatModel":
        """From a model folder, an adapter folder or a Hub id, on the best device at hand.

        Raises:
            UserError: it is not there, is no causal language model, or has no chat template.
        """
        tokenizer = load_chat_tokenizer(name, option)
        return cls(name, load_weights(name, tokenizer, option), tokenizer)

    @property
    def context_length(self) -> int:
        """Tokens that the model looks back over, the answer included."""
        return self.model.config.max_position_embeddings

    @property
    def default_max_new_tokens(self) -> int:
        """Tokens of an answer, where nobody said how many: half of the context, and no more than is usual."""
        return min(MOST_NEW_TOKENS, max(self.context_length // 2, 1))

    def reply(
        self,
        messages: Sequence[Message],
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Event | None = None,
    ) -> Generator[str, None, None]:
        """The answer to the last message, in pieces that end at whole characters.

        It ends with the template's end token, after `max_new_tokens`, or where the context is full. Closing the generator, or
        setting `stop`, ends the work within one token. A seed gives the same answer whatever else is asked meanwhile.

        Args:
            messages: a system message or none, then user and assistant in turn; the user has the last word.
            max_new_tokens: None: `default_max_new_tokens`.
            temperature: 0 takes the likeliest token, and the seed does not matter.
            stop: to be set from anywhere.

        Raises:
            UserError: messages that are no conversation, or fill the context; at the call, before there is a first piece.
        """
        ids = self._prompt(_as_trained(messages))
        room = self.context_length - len(ids)
        if room < 1:
            raise UserError(
                f"the conversation is {len(ids)} tokens and {self.name} looks back over {self.context_length}; leave out its "
                "oldest turns, or shorten the question"
            )
        wanted = self.default_max_new_tokens if max_new_tokens is None else max_new_tokens
        sampling = Sampling(min(wanted, room), temperature, top_k, top_p, repetition_penalty, seed)
        return pieces(self.model, self.tokenizer, ids, self.ends, sampling, stop)

    def fit(self, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[Message], int]:
        """As much of a conversation as leaves room for an answer of `max_new_tokens`.

        The oldest turns go first, a question with its answer; the system message and the last question always stay.

        Returns:
            The messages that are left, and how many turns are not.

        Raises:
            UserError: messages that are no conversation, or a last question that does not fit by itself.
        """
        checked = _as_trained(messages)
        system = checked[:1] if checked[0]["role"] == "system" else []
        turns = checked[len(system) :]
        pairs = len(turns) // 2  # before the last question
        longest = self.context_length - max_new_tokens

        def left(dropped: int) -> list[Message]:
            return [*system, *turns[2 * dropped :]]

        def fits(dropped: int) -> bool:
            return len(self._prompt(left(dropped))) <= longest

        dropped = bisect_left(range(pairs + 1), True, key=fits)
        if dropped > pairs:
            raise UserError(
                f"the question is {len(self._prompt(left(pairs)))} tokens, with {'the system message and ' if system else ''}what "
                f"the template adds, and {self.name} looks back over {self.context_length}, of which {max_new_tokens} are kept "
                "for the answer; shorten it, or ask for fewer tokens (max_new_tokens)"
            )
        return left(dropped), dropped

    def _prompt(self, messages: list[Message]) -> list[int]:
        from jinja2 import TemplateError

        try:
            with self._encoding:
                return prompt_ids(self.tokenizer, messages)
        except TemplateError as error:  # some templates know no system message
            raise UserError(f"the chat template of {self.name} refuses this conversation: {error}") from None


def load_chat_tokenizer(name: str, option: str = "the model") -> Any:
    """The tokenizer of a model that was trained to answer.

    Raises:
        UserError: there is no such model, or its tokenizer has no chat template.
    """
    from llmkit.modeling.models import load_tokenizer

    require_model(name, option)
    tokenizer = load_tokenizer(name, option)
    if not tokenizer.chat_template:
        raise UserError(
            f"{option} {name}: has no chat template, so nobody taught it to answer; teach it with recipes/finetune_instruct.py "
            f"--model {name}, or continue a text with llmkit generate {name}"
        )
    return tokenizer


def _as_trained(messages: Sequence[Message]) -> list[Message]:
    """A conversation that waits for an answer, its texts trimmed and composed as those of training were.

    Raises:
        UserError: what is wrong with it, with the index of the message, counted from 0.
    """
    if not messages:
        raise UserError("the conversation is empty; it must end with a message of the user")
    if isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        raise UserError("the conversation ends with the assistant's message; the last one must be the user's")
    # The rules are those of training rows, which end with an answer; here one stands in for it.
    answered = [*messages, {"role": "assistant", "content": "?"}]
    checked = list(conversation_from({"messages": answered}, "the conversation").prompt)
    for index, message in enumerate(checked):
        try:
            message["content"].encode("utf-8")
        except UnicodeEncodeError as error:  # JSON and other encodings bring what UTF-8 cannot spell
            raise UserError(
                f"the conversation, message {index}: is not UTF-8 at character {error.start}; leave it out"
            ) from None
    return checked
