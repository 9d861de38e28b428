"""What a person can mend is said in one place, all at once, and ends with exit code 2."""

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator


class UserError(Exception):
    """Something that the user can mend.

    Every problem says the value, the place and the fix. Raised before work starts wherever that is possible.

    Args:
        problems: one message, or all the messages that were found.
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class StoppedEarly(Exception):
    """A run that ended before its time and kept what it had: the message says where it stands and how to go on.

    Args:
        message: what happened, what was kept, and the command that goes on.
        exit_code: 1 for a failure, 128 + signal number for a signal.
    """

    def __init__(self, message: str, exit_code: int = 1):
        self.exit_code = exit_code
        super().__init__(message)


def refuse(problems: list[str]) -> None:
    """Raise a `UserError` that lists all the problems, if there is one."""
    if problems:
        raise UserError(problems)


@contextlib.contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Add what a `UserError` says to a list and go on, so that one problem does not hide the next."""
    try:
        yield
    except UserError as error:
        problems += error.problems


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint to put behind a problem: the known name that a wrong one may stand for, or nothing."""
    known = sorted(known)
    found = [name for name in known if name.startswith(word)] or difflib.get_close_matches(word, known, 1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def run(main: Callable[[], int | None]) -> None:
    """Run a program's `main` and leave the process with its exit code.

    0 is success; 2 a `UserError`; 1 a full disk; 130 Ctrl-C; what `StoppedEarly` carries; anything else is our own bug
    and keeps its traceback (exit code 1).
    """
    try:
        sys.exit(main() or 0)
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":  # of several processes, which all found the same, the first one speaks
            sys.exit(2)
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except StoppedEarly as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except BrokenPipeError:  # the reader of a pipe (`| head`) left: nothing to say, and nobody to say it to
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"stopped: there is no room on the disk ({error}); what is whole stays; make room and start again",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
