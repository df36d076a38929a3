"""Commands run in this process: one of its own would first import PyTorch, some seconds each time."""

import contextlib
import io
import os
import sys
from typing import NamedTuple

from fwm_py.cli import main


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments, cwd):
    """What `python -m fwm_py ARGUMENTS` does in the folder cwd."""
    torch = sys.modules.get("torch")
    before, threads = os.getcwd(), torch and torch.get_num_threads()
    os.chdir(cwd)
    try:
        written = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n", write_through=True)
        with contextlib.redirect_stdout(written) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                status = main(arguments)
            except SystemExit as ended:
                status = ended.code
    finally:
        os.chdir(before)
        if torch:
            torch.set_num_threads(threads)
    return Done(status, out.buffer.getvalue().decode(), err.getvalue())
