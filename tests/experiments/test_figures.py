"""The figures: what they show, which logs they are drawn from, and the files and notebooks that come of them."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fwm_py.experiments.retrieval.logs import LogWriter, format_log
from fwm_py.experiments.retrieval.paper import CUT_OFF, published_losses
from fwm_py.experiments.retrieval.sweep import reproduce, select
from fwm_py.experiments.retrieval.train import has_ended

pd = pytest.importorskip("pandas")
matplotlib = pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex  # noqa: E402

from fwm_py.experiments.retrieval import figures  # noqa: E402

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LOGS = Path(__file__).parents[2] / "logs"

SETTING_1 = ["Softmax", "Linear", "FAVOR+ (64)", "FAVOR+ (128)", "FAVOR+ (512)", "DPFP-1", "DPFP-2", "DPFP-3"]
SETTING_2 = ["Schlag (2021)", "Schlag (2021) with DPFP-1", "DPFP-1 delta", "DPFP-2 delta", "Linear delta", "DPFP-1 sum"]
CURVES_2 = ["Schlag (2021) with DPFP-1", "DPFP-1 delta", "DPFP-1 sum", "Schlag (2021)"]

# name: (labels, x label, title, y scale, y limits or None)
EXPECTED = {
    "setting1_scatter": (SETTING_1, "number of unique keys / sequence length", "", "linear", None),
    "setting1_lines": (SETTING_1, "number of unique keys / sequence length", "", "linear", None),
    "setting1_curves": (SETTING_1, "step", "Setting 1 with 600 unique keys", "linear", None),
    "setting2_scatter": (SETTING_2, "number of unique keys", "", "log", (1e-4, 1e3)),
    "setting2_lines": (SETTING_2, "number of unique keys", "", "log", None),
    "setting2_curves": (CURVES_2, "step", "Setting 2 with 20 unique keys", "log", (5e-4, 1e2)),
}


def write_published(folder):
    for name, rows in published_losses().items():
        with LogWriter(folder / name) as log:
            for step, loss in rows:
                log.write(step, loss)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published losses as a folder of logs."""
    folder = tmp_path_factory.mktemp("logs")
    write_published(folder)
    return folder


@pytest.fixture(scope="module")
def losses(folder):
    return figures.load(folder)


@pytest.fixture(scope="module")
def published():
    return figures.published()


def axes_of(name, losses, published=None):
    (axes,) = figures.FIGURES[name](losses, published).axes
    return axes


@pytest.fixture(scope="module")
def drawn(losses, published):
    """The axes of (name, whether the published are drawn as well)."""
    return {
        (name, theirs is not None): axes_of(name, losses, theirs) for name in EXPECTED for theirs in (None, published)
    }


def ours_of(axes):
    """{label: line} of what is filled."""
    return {line.get_label(): line for line in axes.lines if line.get_markerfacecolor() != "none"}


def hollow_of(axes):
    """{marker: line} of what is hollow, without the legend's own."""
    return {
        line.get_marker(): line
        for line in axes.lines
        if line.get_markerfacecolor() == "none" and line.get_label() != "published"
    }


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def without(losses, *labels):
    return figures.Losses(losses.table[~losses.table["label"].isin(labels)])


# ---- the end of a run ----


@pytest.mark.parametrize(
    "values, ended",
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.001], True),
        ([0.5, float(np.float32(0.001))], True),  # the float32 above 0.001, where the program stops
        ([0.5, 0.0010001], False),
        ([0.0005, 0.5], False),  # the last row is not where it ended
        ([0.5] * 11, False),  # the first is a best, ten do not beat it
        ([0.5] * 12, True),
        ([0.5] + [0.6] * 10 + [0.4], False),
        ([0.5] + [0.6] * 10 + [0.4] + [0.4] * 10, False),
        ([0.5] + [0.6] * 10 + [0.4] + [0.4] * 11, True),
        ([math.nan] * 10, False),
        ([math.nan] * 11, True),
        ([math.inf] * 11, True),  # the best loss begins at infinity
        ([0.5] + [math.nan, 0.6] * 5, False),
        ([0.5] + [math.nan, 0.6] * 5 + [math.nan], True),
    ],
)
def test_has_ended(values, ended):
    assert has_ended([(100 * (i + 1), value) for i, value in enumerate(values)]) is ended


def test_has_ended_after_the_last_step():
    falling = [(100 * (i + 1), 2.0 - i / 1000) for i in range(1000)]
    assert not has_ended(falling[:-1]) and has_ended(falling)


def test_of_the_published_logs_one_was_cut_off():
    assert [name for name, rows in published_losses().items() if not has_ended(rows)] == [CUT_OFF]


# ---- loading ----


def test_table(losses, published):
    assert list(published.table.columns) == ["setting", "label", "n_keys", "step", "loss"]
    assert len(published.table) == 8902 and len(published.last) == 320 and published.skipped == ()
    expected = [loss for rows in published_losses().values() for _, loss in rows]
    np.testing.assert_array_equal(published.table["loss"], np.float32(expected))
    cut_off = (published.table["label"] == "DPFP-2 delta") & (published.table["n_keys"] == 100)
    pd.testing.assert_frame_equal(losses.table, published.table[~cut_off].reset_index(drop=True))
    assert losses.skipped == ((CUT_OFF, "ends at step 300, before its run does"),)


def test_the_value_of_a_run_is_its_last_row():
    rows = [(step, label, loss) for label in ("Linear", "DPFP-1") for step, loss in ((100, 0.3), (200, math.nan))]
    table = pd.DataFrame(
        [(1, label, 20, step, loss) for step, label, loss in rows],
        columns=["setting", "label", "n_keys", "step", "loss"],
    )
    last = figures.Losses(table).last
    assert (
        list(last["label"]) == ["Linear", "DPFP-1"] and list(last["step"]) == [200, 200] and last["loss"].isna().all()
    )


ENDED = [(100, 0.5), (200, 0.0005)]
NAME = "d64_linear_sum_AssocSeq40N40R0.csv"


@pytest.mark.parametrize(
    "name, data, reason",
    [
        (NAME, b"", "line 1: got '', expected 'step,eval-loss' and CR LF"),
        (NAME, b"step,eval-loss\r\n", "no rows"),
        (NAME, format_log(ENDED)[:-2], "line 3: got '200,0.0005', expected a row that ends in CR LF"),
        (NAME, format_log(ENDED[:1]), "ends at step 100, before its run does"),
        (NAME, format_log([(100, 0.5), (300, 0.0005)]), "its steps are not 100, 200, ..."),
        (NAME, b"\x89PNG\r\n\x1a\n", "line 1: got '\\x89PNG', expected 'step,eval-loss' and CR LF"),
        (NAME, None, "Is a directory"),
        (NAME + ".partial", format_log(ENDED), "half-written"),
        ("d32_linear_sum_AssocSeq40N40R0.csv", format_log(ENDED), "not a log of one of the 320 runs"),
        ("d64_linear_sum_AssocSeq30N30R0.csv", format_log(ENDED), "not a log of one of the 320 runs"),
        ("d64_linear_sum_AssocSeq40N40R0_seed2.csv", format_log(ENDED), "not a log of one of the 320 runs"),
        ("notes.txt", b"anything", "not a log of one of the 320 runs"),
    ],
)
def test_bad_logs_are_named_and_not_drawn(tmp_path, name, data, reason):
    (tmp_path / "d64_linear_sum_AssocSeq20N20R0.csv").write_bytes(format_log(ENDED))
    if data is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(data)
    losses = figures.load(tmp_path)
    assert losses.skipped == ((name, reason),)
    (line,) = ours_of(axes_of("setting1_scatter", losses)).values()
    assert list(line.get_xdata()) == [20]


def test_a_folder_of_logs_holds_logs_only():
    """The published notebooks read every file of their folder as a log, and take its name apart."""
    parts = re.compile(r"d(\d+)_([a-z]+)(\d*)_([a-z]+)_AssocSeq(\d+)N(\d+)R([01])\.csv")
    names = os.listdir(LOGS)
    assert len(names) == 320
    for name in names:
        table = pd.read_csv(LOGS / name)
        assert list(table.columns) == ["step", "eval-loss"] and len(table) and parts.fullmatch(name)


def test_a_sweep_leaves_logs_only(tmp_path):
    reproduce(tmp_path / "logs", select(only=["d64_dpfp1_sum_AssocSeq20N20R0.csv"]), jobs=1)
    assert figures.load(tmp_path / "logs").skipped == ()
    assert sorted(os.listdir(tmp_path)) == ["logs", "logs.manifest.csv"]
    assert os.listdir(tmp_path / "logs") == ["d64_dpfp1_sum_AssocSeq20N20R0.csv"]


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        figures.load(tmp_path / "none")


# ---- figures ----


def test_names():
    assert list(figures.FIGURES) == list(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_axes(name, drawn):
    labels, x_label, title, scale, limits = EXPECTED[name]
    for overlay in (False, True):
        axes = drawn[name, overlay]
        assert list(axes.figure.get_size_inches()) == [13, 8]
        assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == (x_label, "loss", title)
        assert axes.get_yscale() == scale and axes.get_xscale() == "linear"
        assert limits is None or axes.get_ylim() == limits
        assert axes.get_legend().get_title().get_text() == "label"
        assert legend_of(axes) == labels + (["published"] if overlay else [])


@pytest.mark.parametrize(
    "name, major, minor",
    [
        ("setting1_scatter", 40, 20),
        ("setting1_lines", 40, 20),
        ("setting2_scatter", 20, None),
        ("setting2_lines", 20, None),
    ],
)
def test_ticks(name, major, minor, drawn):
    axes = drawn[name, False]
    assert set(np.diff(axes.get_xticks())) == {major}
    assert minor is None or {x % minor for x in axes.get_xticks(minor=True)} == {0}
    if minor is not None:
        np.testing.assert_allclose(np.diff(axes.get_yticks()), 0.1)
        assert len(axes.get_yticks(minor=True))  # those between two major ticks
        np.testing.assert_allclose(axes.get_yticks(minor=True) / 0.1 % 1, 0.5)
        ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
        assert all(tick.gridline.get_visible() for tick in ticks)


def test_a_run_that_diverged_has_no_more_ticks(losses):
    table = losses.table.copy()
    table.loc[table["n_keys"] == 600, "loss"] = 1e9
    for name in ("setting1_scatter", "setting1_lines"):
        assert len(axes_of(name, figures.Losses(table)).get_yticks()) < 20


@pytest.mark.parametrize("name", EXPECTED)
def test_points(name, drawn, losses, published):
    axes = drawn[name, True]
    ours, hollow = ours_of(axes), hollow_of(axes)
    assert list(ours) == EXPECTED[name][0] and len(hollow) == len(ours)
    for label, line in ours.items():
        for points, given in ((line, losses), (hollow[line.get_marker()], published)):
            rows = given.table[given.table["label"] == label]
            if name.endswith("curves"):
                rows, x = rows[rows["n_keys"] == (600 if "1" in name else 20)], "step"
            else:
                rows, x = rows.drop_duplicates("n_keys", keep="last"), "n_keys"
            assert len(rows)
            np.testing.assert_array_equal(points.get_xdata(), rows[x])
            np.testing.assert_array_equal(points.get_ydata(), rows["loss"])
            assert points.get_color() == line.get_color()


@pytest.mark.parametrize("name", EXPECTED)
def test_looks(name, drawn):
    """Ours filled, as markers or lines, the published hollow and around them; each series can be told from the rest."""
    axes = drawn[name, True]
    ours, hollow = ours_of(axes), hollow_of(axes)
    for line in ours.values():
        assert to_hex(line.get_markerfacecolor()) == to_hex(line.get_color())
        assert (line.get_linestyle() == "None") == name.endswith("scatter")
        around = hollow[line.get_marker()]
        assert around.get_linestyle() == "None" and around.get_markersize() > line.get_markersize()
        assert around.get_zorder() > line.get_zorder()
    looks = [(line.get_color(), line.get_marker(), line._unscaled_dash_pattern) for line in ours.values()]
    for i in range(2 if name.endswith("scatter") else 3):
        assert len({look[i] for look in looks}) == len(looks)


@pytest.mark.parametrize("name", ["setting1_lines", "setting2_lines"])
def test_lines_of_width_3(name, drawn):
    assert {line.get_linewidth() for line in drawn[name, False].lines} == {3}


def test_the_four_curves_have_the_lines_of_the_paper(drawn):
    lines = ours_of(drawn["setting2_curves", False])
    assert [line.get_linestyle() for line in lines.values()] == ["-", "--", ":", "-."]


def test_a_loss_outside_the_limits_is_written(drawn, losses):
    """DPFP-1 delta with 100 keys, 8.6e-5."""
    texts = [text.get_text() for text in drawn["setting2_scatter", True].texts]
    assert texts == ["DPFP-1 delta 8.6e-05", "DPFP-1 delta 8.6e-05 (published)"]
    table = losses.table.copy()
    table.loc[(table["label"] == "Linear delta") & (table["n_keys"] == 20), "loss"] = math.nan
    table.loc[(table["label"] == "Linear delta") & (table["n_keys"] == 40), "loss"] = 2e3
    texts = [text.get_text() for text in axes_of("setting2_scatter", figures.Losses(table)).texts]
    assert texts == ["DPFP-1 delta 8.6e-05", "Linear delta nan", "Linear delta 2e+03"]


@pytest.mark.parametrize("name", EXPECTED)
def test_missing_runs(name, losses, published):
    labels = EXPECTED[name][0]
    some = without(losses, *labels[1:])
    assert legend_of(axes_of(name, some)) == labels[:1]
    axes = axes_of(name, some, published)
    assert legend_of(axes) == [*labels, "published"] and len(hollow_of(axes)) == len(labels)
    assert legend_of(axes_of(name, some, without(published, *labels))) == [labels[0], "published"]
    for theirs in (None, published):
        with pytest.raises(ValueError, match=f"got no whole log of {re.escape(labels[0])}, "):
            axes_of(name, without(losses, *labels), theirs)


# ---- deviations ----


def test_deviations(losses, published):
    same = figures.deviations(losses, published)
    assert list(same.columns) == ["label", "n_keys", "ours", "published", "difference"]
    assert len(same) == 319 and (same["difference"] == 0).all() and same["ours"].isna().any()

    table = losses.table.copy()
    for label, n_keys, loss in (
        ("Linear", 100, 0.25),
        ("DPFP-1 sum", 40, 7.0),
        ("Softmax", 40, math.nan),
        ("FAVOR+ (64) delta", 200, math.nan),
    ):
        table.loc[(table["label"] == label) & (table["n_keys"] == n_keys), "loss"] = loss
    moved = figures.deviations(figures.Losses(table), published)
    assert list(zip(moved["label"], moved["n_keys"]))[:3] == [("Softmax", 40), ("DPFP-1 sum", 40), ("Linear", 100)]
    assert moved["difference"][0] == math.inf
    assert moved["difference"][1] == pytest.approx(7 - moved["published"][1])
    assert (moved["difference"][3:] == 0).all()
    assert set(figures.deviations(losses, published, setting=2)["label"]).isdisjoint(SETTING_1)
    assert len(figures.deviations(losses, published, setting=2)) == 79

    lower = figures.deviations(published, figures.Losses(table))
    assert lower["difference"][2] == -moved["difference"][2]


# ---- files ----


def test_files(folder, tmp_path):
    out = tmp_path / "new" / "figures"
    paths = figures.save(figures.load(folder), out)
    assert sorted(path.name for path in paths) == sorted(
        f"{name}.{kind}" for name in EXPECTED for kind in ("png", "svg")
    )
    assert sorted(out.iterdir()) == sorted(paths)
    first = {path: path.read_bytes() for path in paths}
    for path, data in first.items():
        assert data.startswith(b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else b"<?xml")
        if path.suffix == ".png":
            assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (1300, 800)
    imports = "from fwm_py.experiments.retrieval.figures import load, save"
    program = f"import sys\n{imports}\nsave(load(sys.argv[1]), sys.argv[2])"
    subprocess.run([sys.executable, "-c", program, folder, out], check=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == first


def test_a_figure_is_replaced_as_a_whole(folder, tmp_path, monkeypatch, losses):
    some = without(losses, *SETTING_1)
    paths = figures.save(some, tmp_path, overlay=False)
    assert [path.stem for path in paths[::2]] == ["setting2_scatter", "setting2_lines", "setting2_curves"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("cut off")))
    with pytest.raises(OSError, match="cut off"):
        figures.save(some, tmp_path)  # with the published, so that the bytes differ
    assert {path: path.read_bytes() for path in before} == before


def test_nothing_to_draw(tmp_path):
    (tmp_path / "logs").mkdir()
    with pytest.raises(ValueError, match="figures: got no whole log of a run that is drawn"):
        figures.save(figures.load(tmp_path / "logs"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["pandas", "matplotlib"])
def test_without_the_packages(module, folder, tmp_path):
    """The module can be imported, and the functions say what to install."""
    program = (
        f"import sys\nsys.modules[{module!r}] = None\nfrom fwm_py.experiments.retrieval import figures\n"
        "try:\n    figures.save(figures.load(sys.argv[1]), sys.argv[2])\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, folder, tmp_path], check=True, capture_output=True, text=True)
    assert done.stdout == f"figures need {module}: pip install 'fwm_py[figures]'\n"


# ---- notebooks ----


@pytest.mark.parametrize("setting", [1, 2])
def test_notebook(setting, folder, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    path = NOTEBOOKS / f"setting{setting}_generate_figure.ipynb"
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert "FWM_PY_LOGS" in next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    monkeypatch.setenv("FWM_PY_LOGS", str(folder))
    client = nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert "319 of the 320 runs" in outputs["load"][0].text and CUT_OFF in outputs["load"][0].text
    for name in ("scatter", "lines", "curves"):
        for cell in (name, f"{name}-overlay"):
            assert "image/png" in outputs[cell][0].data
    assert "difference" in outputs["table"][0].data["text/plain"]
    assert not [output for cell in outputs.values() for output in cell if output.get("name") == "stderr"]
