"""Errors that the user can correct."""

from pathlib import Path


class UserError(ValueError):
    """A user's mistake: the message names the file or key, what was found, what was expected and what to do.

    The command line prints it without a traceback and exits with 2.
    """


class FileError(UserError):
    """A user's file that cannot be used. Only this error keeps the reason and the fix separately.

    Args:
        path: the file.
        reason: "found ...; expected ...".
        fix: what to do, understandable without the rest of the message.
    """

    def __init__(self, path: str | Path, reason: str, fix: str):
        super().__init__(f"{path}: {reason}: {fix}")
        self.path, self.reason, self.fix = Path(path), reason, fix

    def __reduce__(self):
        # By its parts, not by the message, so that it can be pickled to another process.
        return FileError, (self.path, self.reason, self.fix)


def to_install(extra: str) -> str:
    """The command that adds an extra. Never by the bare name, which on a public index may be a stranger's."""
    return f"pip install 'PATH[{extra}]' (PATH: the wheel or a clone of unetpp)"


def said(error: Exception) -> str:
    """An exception of a library, in one line for our messages."""
    if type(error).__name__ == "UnpicklingError":  # torch's own message explains how to run the file's code
        return "it has more than tensors, or is not a file of torch; nothing is unpickled"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
