"""The two ways in which a run ends that a user is meant to read about."""


class UserError(Exception):
    """A mistake that the user can mend: the message is one line, names the key or file, and says what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class Stopped(Exception):
    """A run that was asked to stop, or has to be started again, with all that it computed on the disk: the message says where.

    The command line prints it without a traceback and exits with code 75 (`EX_TEMPFAIL`), on which launchers start it again.
    """


class Lost(Stopped):
    """Another process of the run is gone, so that there is nobody to agree with on the way out."""
