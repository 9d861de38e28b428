"""From a conversation to token ids and back: the one place where training, evaluation and serving agree.

`prompt_ids` is what a model is asked with, `encode_conversations` what it is trained on, and the first is always the
beginning of the second: a served prompt is a trained prompt. Control tokens that somebody types are text in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.data.conversations import Message
from llmkit.errors import UserError

OWN_TEMPLATE = Path(__file__).parent / "chat_template.jinja"


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        ids: token ids.
        trained: for each token, whether it is trained: the assistant's words and the token that ends them.
    """

    ids: list[int]
    trained: list[bool]

    @property
    def labels(self) -> list[int]:
        """The ids, with -100 where a token is not trained."""
        return [token if trained else -100 for token, trained in zip(self.ids, self.trained, strict=True)]


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The ids with which the assistant's next message is asked for."""
    return tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
    )


def encode_conversations(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
    """Conversations as tokens, with what is trained; see `_encoded`.

    Raises:
        UserError: the template refuses a conversation (some allow no system message), or writes an answer's prompt differently
            once the answer is there.
    """
    from jinja2 import TemplateError

    try:
        return _encoded(tokenizer, conversations)
    except TemplateError as error:
        raise UserError(
            f"the chat template cannot write these conversations ({error}); give another with --chat_template_path, or rows that it allows"
        ) from None


def _encoded(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
    """A template with generation marks says itself what is trained. Without them, or where a message holds the text of a control
    token (which transformers cannot escape and mark at once), each answer is found as what follows its prompt."""
    from trl.chat_template_utils import has_generation_markers

    control = [token.content for token in tokenizer.added_tokens_decoder.values()]
    marked = has_generation_markers(tokenizer.chat_template)
    plain = [
        marked and not any(token in message["content"] for message in messages for token in control)
        for messages in conversations
    ]
    quick = [list(messages) for messages, is_plain in zip(conversations, plain, strict=True) if is_plain]
    batch: Any = {"input_ids": [], "assistant_masks": []}
    if quick:
        batch = tokenizer.apply_chat_template(quick, return_dict=True, return_assistant_tokens_mask=True)
    encoded = (
        Encoded(ids, list(map(bool, mask)))
        for ids, mask in zip(batch["input_ids"], batch["assistant_masks"], strict=True)
    )
    return [
        next(encoded) if is_plain else _by_prompts(tokenizer, messages)
        for messages, is_plain in zip(conversations, plain, strict=True)
    ]


def _by_prompts(tokenizer: Any, messages: Sequence[Message]) -> Encoded:
    ids: list[int] = []
    trained: list[bool] = []
    ends = end_tokens(tokenizer)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = prompt_ids(tokenizer, messages[:number])
        until = tokenizer.apply_chat_template(
            list(messages[: number + 1]), sanitize_control_tokens=True, return_dict=False
        )
        if until[: len(prompt)] != prompt or prompt[: len(ids)] != ids:
            raise UserError(
                "the chat template writes what stands before an answer differently once the answer is there, so a model trained "
                "on it would be asked with other tokens; give another with --chat_template_path"
            )
        trained += [False] * (len(prompt) - len(ids))
        answer = until[len(prompt) :]
        # What a template puts behind the end token (a line break, as a rule) belongs to the next turn.
        last = max((place for place, token in enumerate(answer) if token in ends), default=len(answer) - 1)
        trained += [place <= last for place in range(len(answer))]
        ids = until
    return Encoded(ids, trained)


def end_tokens(tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the template's own, if it has one, and the end of text."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    prompt = prompt_ids(tokenizer, messages[:1])
    answer = tokenizer.apply_chat_template(messages, return_dict=False)[len(prompt) :]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ends = [token for token in answer if token in special][-1:]  # a template may open and close a thought before
    return list(dict.fromkeys([*ends, tokenizer.eos_token_id]))


def require_template(tokenizer: Any, given: str | None) -> str:
    """Make sure that a tokenizer has a chat template, and say which one it is.

    Args:
        given: a .jinja file that replaces the tokenizer's own.

    Raises:
        UserError: the file cannot be read; there is no template, and llmkit's needs tokens that this vocabulary lacks.
    """
    if given is not None:
        try:
            tokenizer.chat_template = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--chat_template_path {given}: cannot be read ({error})") from None
        return given
    if tokenizer.chat_template:
        return "the tokenizer's own"
    missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.get_vocab()]
    if missing:
        raise UserError(
            f"the tokenizer has no chat template, and no {' and '.join(missing)} for llmkit's (ChatML); give a template of its "
            "tokens with --chat_template_path FILE.jinja"
        )
    tokenizer.chat_template = OWN_TEMPLATE.read_text(encoding="utf-8")
    return "llmkit's ChatML, since the tokenizer has none"
