"""What ends a command, and the checks of flags that commands share."""

from __future__ import annotations

import argparse

from fwm_py.checks import shown


class Failure(Exception):
    """Ends the program with a status and a one-line message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def integer(parser: argparse.ArgumentParser, name: str, text: str | int, low: int, high: int) -> int:
    """The whole number that the flag `name` was given; ends the program if it is none in low..high."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        parser.error(f"--{name}: got {shown(text)}, expected an integer in {low}..{high}")
    return value
