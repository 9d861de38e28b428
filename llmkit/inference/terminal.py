"""A chat in the terminal, or over a pipe: questions from stdin, a line each; answers to stdout; what is said about it to stderr."""

import contextlib
import math
import sys
from dataclasses import dataclass, field
from typing import Any

from llmkit.data.conversations import Message
from llmkit.errors import UserError, nearest
from llmkit.inference.chat import ChatModel

COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation; the system message stays",
    "/system TEXT": "say who the assistant is; without a text, nothing",
    "/temperature X": "0 takes the likeliest answer, more makes it vary",
    "/quit": "leave, as Ctrl-D does",
}


def chat_in_terminal(name: str, system: str | None, max_new_tokens: int | None, **sampling: Any) -> int:
    """Load a model and chat until the user leaves.

    Args:
        name: model folder, adapter folder or Hub id.
        system: the system message.
        max_new_tokens: of an answer; None: by the context.
        sampling: what `ChatModel.reply` takes besides.

    Returns:
        The exit code.

    Raises:
        UserError: no model that can chat, or a system message or answers that leave no room for a question.
    """
    model = ChatModel.load(name)
    if max_new_tokens is None:
        max_new_tokens = model.default_max_new_tokens
    model.fit(_conversation(system, [], "?"), max_new_tokens)
    return Terminal(model, {"max_new_tokens": max_new_tokens, **sampling}, system).run()


@dataclass
class Terminal:
    """One conversation with the person, or the program, on the other side.

    Attributes:
        options: of `ChatModel.reply`.
        system: the system message, if there is one.
        turns: questions and answers that the model still sees.
        failed: whether a line was refused; it is the exit code of a pipe, where nobody reads along.
    """

    model: ChatModel
    options: dict[str, Any]
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    failed: bool = False

    def __post_init__(self) -> None:
        self.with_person = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self) -> int:
        """Answer until the input ends or somebody leaves, and return the exit code."""
        sys.stdin.reconfigure(errors="surrogateescape")  # what is not UTF-8 is refused by its line, not by a traceback
        if self.with_person:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() editing and history
            self._say(f"{self.model.name} answers; /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        while (line := self._next_line()) is not None:
            if line.startswith("/"):
                if not self._obey(line.strip()):
                    break
            elif line.strip():
                self._answer(line.strip())
        return 2 if self.failed and not self.with_person else 0

    def _next_line(self) -> str | None:
        if not self.with_person:
            return sys.stdin.readline() or None
        while True:
            try:
                return input("> ")
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()
                self._say("Ctrl-C stops an answer; /quit or Ctrl-D leaves")

    def _answer(self, question: str) -> None:
        try:
            messages, dropped = self.model.fit(
                _conversation(self.system, self.turns, question), self.options["max_new_tokens"]
            )
        except UserError as error:
            self._refuse(str(error))
            return
        if dropped:
            del self.turns[: 2 * dropped]
            which = "turn is" if dropped == 1 else f"{dropped} turns are"
            self._say(f"the context is full: the oldest {which} left out from here on")
        answer = ""
        try:
            with contextlib.closing(self.model.reply(messages, **self.options)) as pieces:
                for piece in pieces:
                    answer += piece
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            if not self.with_person:  # who stops a pipe means all of it
                raise
            print(flush=True)
            self._say("stopped")
        else:
            print(flush=True)
        if answer.strip():
            self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        else:  # a turn without an answer is nothing that the model has been taught to read
            self._say("no answer; the question is not kept")

    def _obey(self, line: str) -> bool:
        """Do what a command says, and return whether the chat goes on."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/quit":
            return False
        if command == "/help":
            width = max(map(len, COMMANDS))
            for name, meaning in COMMANDS.items():
                self._say(f"{name:<{width}}  {meaning}")
            self._say("a question that begins with / has a space in front")
        elif command == "/reset":
            self.turns.clear()
            self._say("the conversation is forgotten")
        elif command == "/system":
            self.system = rest or None
            self._say("the system message is set" if rest else "there is no system message now")
        elif command == "/temperature":
            self._set_temperature(rest)
        else:
            known = [name.partition(" ")[0] for name in COMMANDS]
            self._refuse(f"unknown command {command}{nearest(command, known) or '; /help lists them'}")
        return True

    def _set_temperature(self, text: str) -> None:
        if text:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0 <= value < math.inf:
                self._refuse(f"/temperature {text}: must be a number from 0 on, like 0.7")
                return
            self.options["temperature"] = value
        self._say(f"the temperature is {self.options['temperature']:g}")

    def _refuse(self, problem: str) -> None:
        self.failed = True
        self._say(f"error: {problem}")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _conversation(system: str | None, turns: list[Message], question: str) -> list[Message]:
    first = [{"role": "system", "content": system}] if system and system.strip() else []
    return [*first, *turns, {"role": "user", "content": question}]
