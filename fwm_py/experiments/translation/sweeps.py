"""A sweep of translation models: `fwm_py.experiments.sweeps` with BLEU."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from fwm_py.experiments.sweeps import Kind, Task, keys_of, load_rows, row_of, run_sweep, trained
from fwm_py.experiments.translation.data import Data
from fwm_py.experiments.translation.settings import PRESETS, Settings

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
    bleu, chrf, exact : float or None
        Of the translations of test, by a beam search; the share of sentences that are the reference.
    valid_perplexity : float or None
        Of a token.
    parameters, steps, skipped : int or None
    seconds : float or None
        Of training, with its evaluations.
    version, variant : str
        Of fwm_py, and of its compiled code.
    error : str
        Why there are no numbers.
    """

    name: str
    rule: str
    feature_map: str | None
    encoder_rule: str | None
    encoder_map: str | None
    decoder_rule: str | None
    decoder_map: str | None
    cross_rule: str | None
    cross_map: str | None
    redraw: bool
    encoder_layers: int
    decoder_layers: int
    d_model: int
    heads: int
    d_ff: int
    norm: str
    init: str
    dropout: float
    attention_dropout: float
    label_smoothing: float
    batch_tokens: int
    max_steps: int
    average: int
    accumulate: int
    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    clip: float
    schedule: str
    warmup_steps: int | None
    bf16: bool
    seed: int
    bleu: float | None = None
    chrf: float | None = None
    exact: float | None = None
    valid_perplexity: float | None = None
    parameters: int | None = None
    steps: int | None = None
    skipped: int | None = None
    seconds: float | None = None
    version: str = ""
    variant: str = ""
    error: str = ""

    KEYS: ClassVar[tuple[str, ...]] = keys_of(Settings)

    @property
    def failed(self) -> bool:
        """Whether there are no numbers; `error` says why."""
        return self.bleu is None


TRANSLATION = Kind(Settings, PRESETS, Data, Row)


def measure(task: Task) -> Row:
    """Train a run of a sweep, or go on with it, on one thread."""
    from fwm_py.experiments.translation.run import train

    result = trained(task, Data, train)
    row: Row = row_of(task, Row)
    return dataclasses.replace(
        row,
        **{name: result["test"][name] for name in ("bleu", "chrf", "exact")},
        valid_perplexity=result["valid"]["perplexity"],
        **{name: result[name] for name in ("parameters", "steps", "skipped", "seconds")},
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
    return run_sweep(measure, TRANSLATION, path, out, jobs=jobs, client=client, keep_runs=keep_runs, on_row=on_row)


def load(out: str | os.PathLike[str]) -> list[Row]:
    """The rows of a sweep that have numbers; raises as `study.rows_with` does."""
    return load_rows(out, Row, "bleu")
