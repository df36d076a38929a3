"""The command line: `fwm-py <command>`, or `python -m fwm_py <command>`; a file for each command.

Exit status: 0 when every run has come to its end, 2 for a wrong argument or a log folder that cannot be written
(nothing is written then), 130 after Ctrl-C, 1 for any other failure. Progress goes to stderr, live on a terminal, else
as a line now and then; what a command has done goes to stdout.
"""

from fwm_py.cli.main import main

__all__ = ["main"]
