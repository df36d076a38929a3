"""A sweep of trained models: variants and seeds, from a file, into one table of results and a log of each run.

data = "DATA"            # as `prepare` makes it; paths are relative to this file
preset = "study"
seeds = [1, 2, 3]
lr = 8e-3                # any setting, for all variants

[variants."delta, elu + 1"]
rule = "delta"
feature_map = "elu1"
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fwm_py import __version__
from fwm_py.checks import shown
from fwm_py.experiments.files import naming, write_file
from fwm_py.experiments.prepared import META, Prepared
from fwm_py.experiments.run_folder import CONFIG, LOG, read_config
from fwm_py.experiments.settings import TrainingSettings
from fwm_py.experiments.study import Results, rows_with, run_study, variant

if TYPE_CHECKING:
    from distributed import Client

RESULTS, LOGS, RUNS, TEXT = "results.csv", "logs", "runs", "data.json"
OWN = ("data", "preset", "seeds", "variants")
NO_KEYS = ("log_every", "evaluate_every", "checkpoint_every")
"""Settings that do not change what a run comes to."""


class Kind(NamedTuple):
    """What a sweep is of.

    Attributes
    ----------
    settings : type
        A dataclass of settings.
    presets : dict
        Settings by name.
    data : type
        Of the folder of data.
    row : type
        A dataclass of `name`, the settings, and what a run comes to; `row.KEYS` are the first two, and `row.failed`
        says whether there are no numbers.
    """

    settings: type[TrainingSettings]
    presets: Mapping[str, dict[str, Any]]
    data: type[Prepared]
    row: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """A run of a sweep."""

    name: str
    settings: Any
    data: str
    folder: str

    @property
    def slug(self) -> str:
        return slug(self.name, self.settings.seed)


def slug(name: str, seed: int) -> str:
    """The name of a run's files."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + f"_seed{seed}"


def keys_of(settings: type[TrainingSettings]) -> tuple[str, ...]:
    """The columns by which a row is known."""
    return "name", *(field.name for field in dataclasses.fields(settings) if field.name not in NO_KEYS)


def row_of(task: Task, row: Any) -> Any:
    """The row, of the type `row`, of a run that has not been made."""
    settings = dataclasses.asdict(task.settings)
    return row(
        name=task.name.replace(",", ";"),
        **{name: settings[name] for name in row.KEYS if name != "name"},
        version=__version__,
        variant=variant(),
    )


def read_sweep(path: str | os.PathLike[str], out: str | os.PathLike[str], kind: Kind) -> list[Task]:
    """The runs of a file, variants in its order, a seed after the other.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        "<path>: <name>: got <value>, expected <what>".
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    path = Path(path)
    try:
        given: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got no TOML ({error}), expected a sweep") from None
    try:
        return _tasks(given, path.parent, Path(out), kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _tasks(given: dict[str, Any], here: Path, out: Path, of: Kind) -> list[Task]:
    preset = given.get("preset", "study")
    if not isinstance(preset, str) or preset not in of.presets:
        raise ValueError(f"preset: got {shown(preset)}, expected {', '.join(of.presets)}")
    for name, kind, expected in (("data", str, "a folder"), ("seeds", list, "a list"), ("variants", dict, "tables")):
        if not isinstance(given.get(name), kind) or not given[name]:
            raise ValueError(f"{name}: got {shown(given.get(name))}, expected {expected}")
    seeds = given["seeds"]
    if len(set(map(repr, seeds))) < len(seeds):
        raise ValueError(f"seeds: got {shown(seeds)}, expected each once")
    shared = of.presets[preset] | {name: value for name, value in given.items() if name not in OWN}
    tasks = []
    for name, options in given["variants"].items():
        if not (name.isascii() and name.isprintable() and name.strip()):
            raise ValueError(f"variants: got {shown(name)}, expected names of ASCII letters")
        if not isinstance(options, dict):
            raise ValueError(f"variants: got {shown(options)} for {shown(name)}, expected a table")
        known = [field.name for field in dataclasses.fields(of.settings) if field.name != "seed"]
        unknown = [key for key in shared | options if key not in known]
        if unknown:
            raise ValueError(f"{unknown[0]}: an unknown setting, expected {', '.join(known)}")
        for seed in seeds:
            settings = of.settings(**shared | options | {"seed": seed})
            task = Task(name, settings, os.path.abspath(here / given["data"]), "")
            tasks.append(dataclasses.replace(task, folder=os.path.abspath(out / RUNS / task.slug)))
    slugs = [task.slug for task in tasks]
    for slug in slugs:
        if slugs.count(slug) > 1:
            raise ValueError(f"variants: got two that are called {slug}, expected names that differ in letters")
    return tasks


def trained(task: Task, data: type[Prepared], train: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Train a run of a sweep, or go on with it, on one thread, and keep its log; what result.json holds."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(task.settings, data.open(task.data, verify=True), task.folder, resume=True)
    finally:
        torch.set_num_threads(threads)
    logs = Path(task.folder).parents[1] / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    write_file(logs / f"{task.slug}.csv", (Path(task.folder) / LOG).read_bytes())
    return result


def keep_text(data: Prepared, out: Path) -> None:
    """Leave the data's meta.json as data.json, which all runs of the folder have in common."""
    path = out / TEXT
    if not path.exists():
        write_file(path, (data.folder / META).read_bytes())
    elif data.read_meta(path)["files"] != data.facts["files"]:
        raise ValueError(f"{path}: got runs on another text than {data.folder}, expected the same; begin elsewhere")


def check_made(tasks: Sequence[Task], kind: Kind, out: Path, keep_runs: bool) -> None:
    """Refuse a folder with runs of the same names and seeds whose settings are others; clear runs that have a row."""
    rows = {slug(row.name, row.seed): row for row in Results(out / RESULTS, kind.row).rows.values()}
    for task in tasks:
        run, row = Path(task.folder), rows.get(task.slug)
        way_out = "begin elsewhere, or delete"
        if row is not None:
            wanted = row_of(task, kind.row)
            for name in kind.row.KEYS:
                found, expected = getattr(row, name), getattr(wanted, name)
                if found != expected:
                    raise ValueError(
                        f"{out / RESULTS}: got {task.slug} with {name} {shown(found)}, expected {shown(expected)}; "
                        f"{way_out} its line"
                    )
            if not row.error and not keep_runs:
                shutil.rmtree(run, ignore_errors=True)  # a kill came between the row and this
        elif (run / CONFIG).exists():
            known = read_config(run)["settings"]
            if known != dataclasses.asdict(task.settings):
                raise ValueError(f"{run}: got a run with other settings, expected those of the file; {way_out} it")


def run_sweep(
    measure: Callable[[Task], Any],
    kind: Kind,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    client: Client | None = None,
    keep_runs: bool = False,
    on_row: Callable[[Any], object] | None = None,
) -> list[Any]:
    """Make the runs of a file that have no row yet, side by side.

    Parameters
    ----------
    measure : callable
        measure(task) -> row.
    kind : Kind
    path : path
        The sweep, in TOML.
    out : path
        A folder, made if missing: results.csv, logs/, data.json (the data's meta.json), and runs/ for what a run that
        is interrupted goes on from.
    jobs, client
        As of `capacity.study`. Workers of a cluster need the data and `out` at the same paths.
    keep_runs : bool
        Leave the folders of runs that have ended, with their models.
    on_row : callable, optional
        Called with each row that has been made.

    Returns
    -------
    list of rows

    Raises
    ------
    Refused, OSError, ValueError
        As of `capacity.study`; and ValueError for a file that is no sweep, and where `out` has runs on other data.
    """
    tasks = read_sweep(path, out, kind)
    data = kind.data.open(tasks[0].data)
    with naming(out):
        Path(out).mkdir(parents=True, exist_ok=True)
    keep_text(data, Path(out))
    check_made(tasks, kind, Path(out), keep_runs)

    def ended(row: Any) -> None:
        if not keep_runs and not row.error:
            shutil.rmtree(Path(out) / RUNS / slug(row.name, row.seed), ignore_errors=True)
        if on_row is not None:
            on_row(row)

    def empty_row(task: Task) -> Any:
        return row_of(task, kind.row)

    return run_study(measure, tasks, empty_row, Path(out) / RESULTS, kind.row, jobs=jobs, client=client, on_row=ended)


def load_rows(out: str | os.PathLike[str], row: Any, column: str) -> list[Any]:
    """The rows of a sweep that have a number in a column; raises as `study.rows_with` does."""
    return rows_with(Path(out) / RESULTS, row, column)
