"""A sweep of language models: `fwm_py.experiments.sweeps` with perplexities."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from fwm_py.experiments.language.data import Data
from fwm_py.experiments.language.settings import PRESETS, Settings
from fwm_py.experiments.sweeps import Kind, Task, keys_of, load_rows, row_of, run_sweep, trained

if TYPE_CHECKING:
    from distributed import Client


@dataclasses.dataclass(frozen=True)
class Row:
    """What a run came to: a row of results.csv.

    Attributes
    ----------
    name : str
        Of the variant.
    rule, .., seed :
        As of `Settings`.
    valid_perplexity, test_perplexity, valid_bits, test_bits : float or None
        Perplexity of a token, and bits of a byte.
    state : int or None
        Numbers that all memories hold after a segment.
    parameters, steps, skipped : int or None
    seconds, tokens_per_second : float or None
        Of training, with its evaluations.
    version, variant : str
        Of fwm_py, and of its compiled code.
    error : str
        Why there are no numbers.
    """

    name: str
    rule: str
    feature_map: str
    normalize: bool
    redraw: bool
    conv_size: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int | None
    d_ff: int
    positions: str
    norm: str
    init: str
    dropout: float
    seq_len: int
    batch_size: int
    accumulate: int
    carry: bool
    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    clip: float
    schedule: str
    warmup_steps: int | None
    max_tokens: int
    bf16: bool
    seed: int
    valid_perplexity: float | None = None
    test_perplexity: float | None = None
    valid_bits: float | None = None
    test_bits: float | None = None
    state: int | None = None
    parameters: int | None = None
    steps: int | None = None
    skipped: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    version: str = ""
    variant: str = ""
    error: str = ""

    KEYS: ClassVar[tuple[str, ...]] = keys_of(Settings)

    @property
    def failed(self) -> bool:
        """Whether there are no numbers; `error` says why."""
        return self.valid_perplexity is None


LANGUAGE = Kind(Settings, PRESETS, Data, Row)


def measure(task: Task) -> Row:
    """Train a run of a sweep, or go on with it, on one thread."""
    from fwm_py.experiments.language.run import train

    result = trained(task, Data, train)
    valid, test, seconds = result["valid"], result["test"], result["seconds"]
    row: Row = row_of(task, Row)
    return dataclasses.replace(
        row,
        valid_perplexity=valid["perplexity"],
        test_perplexity=test["perplexity"],
        valid_bits=valid["bits_per_byte"],
        test_bits=test["bits_per_byte"],
        **{name: result[name] for name in ("state", "parameters", "steps", "skipped")},
        seconds=seconds,
        tokens_per_second=round(task.settings.max_tokens / seconds, 1) if seconds else math.nan,
    )


def sweep(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    client: Client | None = None,
    keep_runs: bool = False,
    on_row: Callable[[Row], object] | None = None,
) -> list[Row]:
    """Make the runs of a file that have no row yet, side by side, as `fwm_py.experiments.sweeps.run_sweep` says."""
    return run_sweep(measure, LANGUAGE, path, out, jobs=jobs, client=client, keep_runs=keep_runs, on_row=on_row)


def load(out: str | os.PathLike[str]) -> list[Row]:
    """The rows of a sweep that have numbers; raises as `study.rows_with` does."""
    return load_rows(out, Row, "valid_perplexity")
