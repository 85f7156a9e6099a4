"""The one error that a user is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend: the message is one line, names the key or file, and says what to do.

    The command line prints it without a traceback and exits with code 2.
    """
