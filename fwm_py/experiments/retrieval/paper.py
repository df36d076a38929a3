"""The paper's experiments: sixteen commands, 320 runs, and the losses that were published for them.

Setting 1 asks how many associations a memory holds, with as many unique keys as the sequence is long; Setting 2 how
well a rule rewrites them, with keys that come back (Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, section 6.1).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import importlib.resources
import io

import numpy as np

from fwm_py.experiments.retrieval.logs import log_name
from fwm_py.experiments.retrieval.settings import Settings

Rows = list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Command:
    """One of the sixteen commands of the paper: the runs of a map and a rule over a range of N.

    Attributes
    ----------
    setting : int
        1 (capacity) or 2 (update rule, with replacement).
    label : str
        The name in the paper's figures.
    attn_name, attn_arg, update_rule :
        As in `Settings`.
    end : int
        The largest number of keys; the smallest is 20, and they are 20 apart.
    """

    setting: int
    label: str
    attn_name: str
    attn_arg: int = 0
    update_rule: str = "sum"

    @property
    def replace(self) -> bool:
        return self.setting == 2

    @property
    def end(self) -> int:
        return 600 if self.setting == 1 else 200

    @property
    def name(self) -> str:
        """A short name, the same in every log of the command: `dpfp1_ours R1`."""
        return log_name(self.runs[0]).removeprefix("d64_").split("_AssocSeq")[0] + f" R{int(self.replace)}"

    @functools.cached_property
    def runs(self) -> tuple[Settings, ...]:
        """The settings of its runs, smallest first."""
        return tuple(
            Settings(
                n_keys=n_keys,
                attn_name=self.attn_name,
                attn_arg=self.attn_arg,
                update_rule=self.update_rule,
                replace=self.replace,
            )
            for n_keys in range(20, self.end + 1, 20)
        )


COMMANDS: tuple[Command, ...] = (
    Command(1, "Softmax", "softmax"),
    Command(1, "Linear", "linear"),
    Command(1, "DPFP-1", "dpfp", 1),
    Command(1, "DPFP-2", "dpfp", 2),
    Command(1, "DPFP-3", "dpfp", 3),
    Command(1, "FAVOR+ (64)", "favor", 64),
    Command(1, "FAVOR+ (128)", "favor", 128),
    Command(1, "FAVOR+ (512)", "favor", 512),
    Command(2, "DPFP-1 sum", "dpfp", 1),
    Command(2, "DPFP-1 delta", "dpfp", 1, "ours"),
    Command(2, "Schlag (2021)", "tanh", 0, "fwm"),
    Command(2, "Schlag (2021) with DPFP-1", "dpfp", 1, "fwm"),
    Command(2, "DPFP-2 delta", "dpfp", 2, "ours"),
    Command(2, "Linear delta", "linear", 0, "ours"),
    Command(2, "FAVOR+ (64) delta", "favor", 64, "ours"),
    Command(2, "FAVOR+ (128) delta", "favor", 128, "ours"),
)
"""The sixteen commands, in the order of the paper's program."""

RUNS: dict[str, Settings] = {log_name(settings): settings for command in COMMANDS for settings in command.runs}
"""The 320 runs by the names of their logs."""

CUT_OFF = "d64_dpfp2_ours_AssocSeq200N100R1.csv"
"""The published log that ends, after three rows, although no rule ends its run."""


@functools.cache
def published_losses() -> dict[str, Rows]:
    """The published evaluations of all 320 runs: name of the log -> [(step, loss), ...].

    The losses are the float32 numbers that the published logs write, `nan` among them. See THIRD_PARTY.md for their
    source.
    """
    packed = importlib.resources.files("fwm_py.experiments.retrieval").joinpath("data/published.csv.gz").read_bytes()
    logs: dict[str, Rows] = {name: [] for name in RUNS}
    for row in csv.DictReader(io.StringIO(gzip.decompress(packed).decode("ascii"))):
        settings = Settings(
            n_keys=int(row["n_keys"]),
            attn_name=row["attn_name"],
            attn_arg=int(row["attn_arg"]),
            update_rule=row["update_rule"],
            replace=row["replace"] == "1",
        )
        logs[log_name(settings)].append((int(row["step"]), float(np.float32(row["eval_loss"]))))
    return logs
