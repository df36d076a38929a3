"""The settings of a recall study, and the study itself."""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwm_py.checks import shown
from fwm_py.experiments.recall.rows import LEARNED, Row, row_of
from fwm_py.experiments.recall.settings import Settings
from fwm_py.experiments.study import Results, run_study

if TYPE_CHECKING:
    from distributed import Client


def grid(**settings: Any) -> list[Settings]:
    """All combinations, the costliest first.

    Parameters
    ----------
    **settings
        The fields of `Settings`, each a value or a list of values.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".

    Examples
    --------
    >>> from fwm_py.experiments.recall import grid
    >>> [(run.rule, run.lr) for run in grid(rule=["sum", "delta"], lr=[1e-2, 2e-2])]
    [('sum', 0.01), ('sum', 0.02), ('delta', 0.01), ('delta', 0.02)]
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in settings:
        if name not in known:
            raise TypeError(f"{name}: an unknown setting, expected {', '.join(sorted(known))}")
    lists = [value if isinstance(value, (list, tuple)) else [value] for value in settings.values()]
    for name, values in zip(settings, lists):
        if not values:
            raise ValueError(f"{name}: got {shown(values)}, expected values")
    found = [Settings(**dict(zip(settings, values))) for values in itertools.product(*lists)]
    return sorted(dict.fromkeys(found), key=cost, reverse=True)


def cost(settings: Settings) -> float:
    """What a run takes, but for a factor."""
    return float(settings.max_steps * settings.batch_size * settings.seq_len * settings.d_model**0.5)


def but_for_rate_and_seed(settings: Settings | Row) -> tuple[Any, ...]:
    """What runs share whose rates are compared."""
    return tuple(getattr(settings, name) for name in Row.KEYS if name not in ("lr", "seed"))


def best_rates(rows: Iterable[Row]) -> dict[tuple[Any, ...], float]:
    """The best lr among rows that share everything but lr and seed: the highest median accuracy, then fewest steps.

    Accuracies at which a run ends are alike, and rows without one count as none right. Where rates have some seeds in
    common, these alone count, so that more seeds of the best rate do not change which it is.

    Returns
    -------
    dict
        By `but_for_rate_and_seed`.
    """
    groups: dict[tuple[Any, ...], dict[float, list[Row]]] = {}
    for row in rows:
        groups.setdefault(but_for_rate_and_seed(row), {}).setdefault(row.lr, []).append(row)

    def merit(runs: list[Row]) -> tuple[float, float]:
        accuracy = statistics.median(min(row.accuracy or 0.0, LEARNED) for row in runs)
        return accuracy, -statistics.median(row.steps or 0 for row in runs)

    def best(rates: dict[float, list[Row]]) -> float:
        common = set.intersection(*({row.seed for row in runs} for runs in rates.values()))
        return max(rates, key=lambda lr: merit([row for row in rates[lr] if row.seed in common or not common]))

    return {same: best(rates) for same, rates in groups.items()}


def at_best_rates(grid: Sequence[Settings], path: str | os.PathLike[str]) -> list[Settings]:
    """The settings, each with the best of the rates that the study in `path` has tried with them.

    Raises
    ------
    ValueError
        If it has tried none with some of them.
    """
    best = best_rates(Results(Path(path), Row).rows.values())
    found = []
    for settings in grid:
        lr = best.get(but_for_rate_and_seed(settings))
        if lr is None:
            raise ValueError(f"lr: got best, expected rows of {settings} in {os.fsdecode(path)}")
        found.append(dataclasses.replace(settings, lr=lr))
    return list(dict.fromkeys(found))


def study(
    grid: Sequence[Settings],
    path: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    client: Client | None = None,
    on_row: Callable[[Row], object] | None = None,
) -> list[Row]:
    """Measure every one of the settings that has no row in the file yet.

    Parameters
    ----------
    grid : sequence of recall.Settings
    path : path
        A CSV file, made if missing, whose columns are the fields of `Row`. Rows are appended whole as they are made.
    jobs, client, on_row
        As of `capacity.study`.

    Returns
    -------
    list of Row
        One for each of the settings, made now or before.

    Raises
    ------
    Refused, OSError, ValueError
        As of `capacity.study`.
    """
    from fwm_py.experiments.recall.train import measure  # which needs PyTorch

    return run_study(measure, list(grid), row_of, path, Row, jobs=jobs, client=client, on_row=on_row)
