"""The one error for what a user can put right."""


class UserError(ValueError):
    """A user's mistake: the message names the file or key, what was found, what was expected and what to do.

    The command line prints it without a traceback and exits with 2.
    """
