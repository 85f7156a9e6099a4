"""The parser of commands that take other arguments than `--config.KEY=VALUE`."""

import argparse
from typing import NoReturn

from jaxdrl.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """Makes mistakes one line and exit code 2, as everywhere; flags are written out, and the command prints its own help."""

    def __init__(self, command: str) -> None:
        """Starts without arguments.

        Args:
            command: Its name behind `jaxdrl`.
        """
        super().__init__(prog=f"jaxdrl {command}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Refuses the command line.

        Args:
            message: What is wrong.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message}; see `{self.prog} --help`")
