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


def listed(text: str) -> list[str]:
    """The words of a comma-separated list."""
    return [word.strip() for word in text.split(",")]


def integers(parser: argparse.ArgumentParser, name: str, text: str, low: int, high: int) -> list[int]:
    """The whole numbers of a comma-separated list, each as `integer` checks it."""
    return [integer(parser, name, word, low, high) for word in listed(text)]


def numbers(parser: argparse.ArgumentParser, name: str, text: str) -> list[float]:
    """The finite numbers above 0 of a comma-separated list; ends the program if one is none."""
    found = []
    for word in listed(text):
        try:
            number = float(word)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            parser.error(f"--{name}: got {shown(word)}, expected a finite number above 0")
        found.append(number)
    return found
