"""The figures of the studies: what they show, the files that `fwm-py figures` makes of them, and the notebooks."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

from fwm_py.experiments.capacity import figures as capacity_figures
from fwm_py.experiments.capacity import grid
from fwm_py.experiments.capacity import measure as measure_capacity
from fwm_py.experiments.capacity.measure import Row as CapacityRow
from fwm_py.experiments.capacity.measure import row_of as capacity_row
from fwm_py.experiments.recall import Settings
from fwm_py.experiments.recall import figures as recall_figures
from fwm_py.experiments.recall.rows import Row as RecallRow
from fwm_py.experiments.recall.rows import row_of as recall_row
from fwm_py.experiments.study import Results

TREE = Path(__file__).parents[2]


def written(path, kind, rows):
    path.touch()
    results = Results(path, kind)
    results.begin()
    for row in rows:
        results.append(row)
    return path


def held(settings, **numbers):
    """A row of a memory that stores 0.9 p."""
    row = capacity_row(settings)
    stored = 0.9 * min(row.p or row.n_keys, row.n_keys)
    found = dict(steps=100, best_step=100, stored=stored, lost=row.n_keys - stored, right=0.5, worst=0.6, seconds=1.0)
    return dataclasses.replace(row, loss=(1 - stored / row.n_keys) / 2, **found | numbers)


@pytest.fixture
def capacity_rows():
    runs = [
        *grid(feature_map=["elu1", "dpfp1"], load=[1, 2], seed=[1, 2]),
        *grid(feature_map=["dpfp1"], rule=["delta"], load=[2], seed=[1], replace=True),
        *grid(feature_map=["favor16"], rule=["sum"], hidden_size=[16], load=[2], seed=[1]),
        *grid(feature_map=["favor16"], rule=["sum"], hidden_size=[16], load=[2], seed=[1], redraw="never"),
        *grid(rule=["softmax"], hidden_size=[4], n_keys=[32, 64], seed=[1]),
        *grid(feature_map=["dpfp1"], rule=["fwm"], hidden_size=[16], load=[1, 2], seed=[1]),
    ]
    failed = dataclasses.replace(capacity_row(grid(seed=[9])[0]), error="no room")
    return [*map(held, runs), failed]


def points_of(axes, label):
    line = next(line for line in axes.get_lines() if line.get_label() == label)
    return list(zip(*map(list, line.get_data())))


def test_the_law(tmp_path, capacity_rows):
    rows = capacity_figures.load(written(tmp_path / "c.csv", CapacityRow, capacity_rows))
    assert len(rows) == len(capacity_rows) - 1  # what failed has no numbers
    left, right = capacity_figures.law(rows).axes
    assert points_of(right, "DPFP-1, sum") == [(16, pytest.approx(14.4)), (32, pytest.approx(28.8))]
    assert points_of(right, "elu + 1, delta") == [(8, pytest.approx(7.2)), (16, pytest.approx(14.4))]
    published = points_of(left, "DPFP-1, p = 128")
    assert len(published) == 30 and all(abs(lost - max(0, 1 - load)) < 0.1 for load, lost in published)


def test_the_other_figures_of_capacity(capacity_rows):
    rows = [row for row in capacity_rows if row.loss is not None]
    figure = capacity_figures.against_load(rows)
    assert [axes.get_title() for axes in figure.axes] == ["sum", "delta", "delta, with replacement"]
    favor, softmax, fwm = capacity_figures.others(rows).axes
    assert points_of(favor, "p = 32, drawn once") == points_of(favor, "p = 32, drawn for each pass") == [(2, 0.9)]
    assert points_of(softmax, "d = 4") == [(32, pytest.approx(28.8)), (64, pytest.approx(57.6))]
    assert points_of(fwm, "DPFP-1, p = 32") == [(1, 0.5), (2, 0.5)]


@pytest.fixture
def recall_rows():
    def row(accuracy, **settings):
        found = dict(steps=100, accuracy=accuracy, loss=1.0, state=settings["d_model"] ** 2, parameters=9, seconds=1.0)
        return dataclasses.replace(recall_row(Settings(**settings)), **found)

    rows = [
        row(0.1 + d / 64 * 0.8 - (lr > 1e-2) * 0.05, rule=rule, d_model=d, num_kv_pairs=D, seq_len=4 * D, lr=lr)
        for rule in ("delta", "sum", "softmax")
        for d in (16, 64)
        for D in (4, 8)
        for lr in (1e-2, 2e-2)
    ]
    rows += [row(0.5, rule="delta", d_model=16, num_kv_pairs=4, seq_len=16, lr=2e-2, seed=seed) for seed in (2, 3)]
    return [*rows, row(1.0, rule="delta", d_model=16, num_kv_pairs=4, seq_len=16, max_steps=4800)]


def test_recall(tmp_path, recall_rows):
    rows = recall_figures.load(written(tmp_path / "r.csv", RecallRow, recall_rows))
    few, many = recall_figures.accuracy(rows).axes
    assert points_of(many, "sum") == [(16, pytest.approx(0.3)), (64, pytest.approx(0.9))]
    assert points_of(few, "delta") == [(16, 0.5), (64, pytest.approx(0.9))]  # the rate that has three seeds
    assert (256, pytest.approx(0.3)) in points_of(recall_figures.state(rows).axes[0], "sum")
    texts = [text.get_text() for text in recall_figures.rates(rows).axes[0].texts]
    assert texts == ["1 of 4", "1 of 4"] * 3  # softmax, delta, sum with 4 and 8 pairs


def figures_command(*arguments):
    command = [sys.executable, "-m", "fwm_py", "figures", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_draws_studies(tmp_path, capacity_rows, recall_rows):
    out = tmp_path / "figures"
    for path in (
        written(tmp_path / "c.csv", CapacityRow, capacity_rows),
        written(tmp_path / "r.csv", RecallRow, recall_rows),
    ):
        done = figures_command(path, "--out", out)
        assert done.returncode == 0 and not done.stderr
    names = {*capacity_figures.FIGURES, *recall_figures.FIGURES}
    assert {file.name for file in out.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}


def test_what_is_no_study(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    done = figures_command(path)
    assert done.returncode == 2 and "x.csv: got 'a,b', expected the first line of a study (capacity" in done.stderr
    empty = written(tmp_path / "c.csv", CapacityRow, [])
    done = figures_command(empty)
    assert done.returncode == 2 and "c.csv: got no rows with loss, expected a study that has some" in done.stderr
    done = figures_command(empty, "--no-overlay")
    assert done.returncode == 2 and "--no-overlay: got it with a study, expected it with logs" in done.stderr


# ---- what is committed ----


@pytest.mark.parametrize("name, cells", [("capacity", 3), ("recall", 3), ("language_models", 2), ("translation", 2)])
def test_notebook(name, cells):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(TREE / "notebooks" / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    where = {"metadata": {"path": str(TREE / "notebooks")}}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120, resources=where).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == cells
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_rows_of_the_capacity_study():
    """One of the committed rows, made again; on the machine of the study it is the same to the bit."""
    rows = list(Results(TREE / "studies" / "capacity.csv", CapacityRow).rows.values())
    row = next(row for row in rows if (row.rule, row.feature_map, row.p, row.load) == ("sum", "elu1", 16, 2.0))
    settings = next(
        run for run in grid(feature_map=["elu1"], rule=["sum"], hidden_size=[16], load=[2], seed=[row.seed])
    )
    again = measure_capacity(settings)
    assert again.stored == pytest.approx(row.stored, rel=0.02)
