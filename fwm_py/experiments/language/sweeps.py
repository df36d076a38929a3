"""A sweep: variants of a model and seeds, from a file, into one table of results and a log of each run.

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
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fwm_py import __version__
from fwm_py.checks import shown
from fwm_py.experiments.files import naming, write_file
from fwm_py.experiments.language.data import Data
from fwm_py.experiments.language.settings import PRESETS, Settings
from fwm_py.experiments.prepared import META
from fwm_py.experiments.run_folder import LOG
from fwm_py.experiments.study import rows_with, run_study, variant

if TYPE_CHECKING:
    from distributed import Client

RESULTS, LOGS, RUNS, TEXT = "results.csv", "logs", "runs", "data.json"
OWN = ("data", "preset", "seeds", "variants")


@dataclasses.dataclass(frozen=True)
class Task:
    """A run of a sweep."""

    name: str
    settings: Settings
    data: str
    folder: str

    @property
    def slug(self) -> str:
        return slug(self.name, self.settings.seed)


def slug(name: str, seed: int) -> str:
    """The name of a run's files."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + f"_seed{seed}"


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

    KEYS: ClassVar[tuple[str, ...]] = (
        "name",
        *(
            field.name
            for field in dataclasses.fields(Settings)
            if field.name not in ("log_every", "evaluate_every", "checkpoint_every")
        ),
    )

    @property
    def failed(self) -> bool:
        """Whether there are no numbers; `error` says why."""
        return self.valid_perplexity is None


def row_of(task: Task) -> Row:
    """The row of a run that has not been made."""
    settings = dataclasses.asdict(task.settings)
    return Row(
        name=task.name.replace(",", ";"),
        **{name: settings[name] for name in Row.KEYS if name != "name"},
        version=__version__,
        variant=variant(),
    )


def read_sweep(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Task]:
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
        return _tasks(given, path.parent, Path(out))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _tasks(given: dict[str, Any], here: Path, out: Path) -> list[Task]:
    for name, kind, expected in (("data", str, "a folder"), ("seeds", list, "a list"), ("variants", dict, "tables")):
        if not isinstance(given.get(name), kind) or not given[name]:
            raise ValueError(f"{name}: got {shown(given.get(name))}, expected {expected}")
    preset = given.get("preset", "study")
    if preset not in PRESETS:
        raise ValueError(f"preset: got {shown(preset)}, expected {', '.join(PRESETS)}")
    shared = PRESETS[preset] | {name: value for name, value in given.items() if name not in OWN}
    tasks = []
    for name, options in given["variants"].items():
        if not isinstance(options, dict):
            raise ValueError(f"variants: got {shown(options)} for {shown(name)}, expected a table")
        unknown = [key for key in shared | options if key not in Settings.__dataclass_fields__ or key == "seed"]
        if unknown:
            raise ValueError(f"{unknown[0]}: an unknown setting, expected {', '.join(Settings.__dataclass_fields__)}")
        for seed in given["seeds"]:
            settings = Settings(**shared | options | {"seed": seed})
            task = Task(name, settings, str(here / given["data"]), "")
            tasks.append(dataclasses.replace(task, folder=str(out / RUNS / task.slug)))
    slugs = [task.slug for task in tasks]
    for slug in slugs:
        if slugs.count(slug) > 1:
            raise ValueError(f"variants: got two that are called {slug}, expected names that differ in letters")
    return tasks


def measure(task: Task) -> Row:
    """Train a run of a sweep, or go on with it, on one thread."""
    import torch

    from fwm_py.experiments.language.run import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(task.settings, Data.open(task.data), task.folder, resume=True)
    finally:
        torch.set_num_threads(threads)
    logs = Path(task.folder).parents[1] / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    copy = logs / f"{task.slug}.csv"
    write_file(copy, (Path(task.folder) / LOG).read_bytes())
    valid, test, seconds = result["valid"], result["test"], result["seconds"]
    return dataclasses.replace(
        row_of(task),
        valid_perplexity=valid["perplexity"],
        test_perplexity=test["perplexity"],
        valid_bits=valid["bits_per_byte"],
        test_bits=test["bits_per_byte"],
        **{name: result[name] for name in ("state", "parameters", "steps", "skipped")},
        seconds=seconds,
        tokens_per_second=round(task.settings.max_tokens / seconds, 1) if seconds else math.nan,
    )


def keep_text(data: Data, out: Path) -> None:
    """Leave the data's meta.json as data.json, which all runs of the folder have in common."""
    path = out / TEXT
    if not path.exists():
        write_file(path, (data.folder / META).read_bytes())
    elif Data.read_meta(path)["files"] != data.facts["files"]:
        raise ValueError(f"{path}: got runs on another text than {data.folder}, expected the same; begin elsewhere")


def sweep(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    client: Client | None = None,
    keep_runs: bool = False,
    on_row: Callable[[Row], object] | None = None,
) -> list[Row]:
    """Make the runs of a file that have no row yet, side by side.

    Parameters
    ----------
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
    list of Row

    Raises
    ------
    Refused, OSError, ValueError
        As of `capacity.study`; and ValueError for a file that is no sweep, and where `out` has runs on other data.
    """
    tasks = read_sweep(path, out)
    data = Data.open(tasks[0].data)
    with naming(out):
        Path(out).mkdir(parents=True, exist_ok=True)
    keep_text(data, Path(out))

    def ended(row: Row) -> None:
        if not keep_runs and not row.error:
            shutil.rmtree(Path(out) / RUNS / slug(row.name, row.seed), ignore_errors=True)
        if on_row is not None:
            on_row(row)

    return run_study(measure, tasks, row_of, Path(out) / RESULTS, Row, jobs=jobs, client=client, on_row=ended)


def load(out: str | os.PathLike[str]) -> list[Row]:
    """The rows of a sweep that have numbers; raises as `study.rows_with` does."""
    return rows_with(Path(out) / RESULTS, Row, "valid_perplexity")
