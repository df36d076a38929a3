"""Comparing a folder of logs with the published ones: what counts, what is only named, bands and floors."""

import math
from pathlib import Path

import numpy as np
import pytest

from fwm_py.experiments.jobs import WorkerKilled
from fwm_py.experiments.retrieval.compare import compare, print_comparison
from fwm_py.experiments.retrieval.logs import HEADER, LogWriter, format_loss, log_name
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.paper import COMMANDS, CUT_OFF, published_losses
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.train import train
from fwm_py.experiments.retrieval.twins import COLUMNS as TWINS_COLUMNS
from fwm_py.experiments.retrieval.twins import Band, make_twins, read_twins, twin_runs, twins

TINY = Settings(n_keys=20, attn_name="dpfp", attn_arg=1)  # ends at step 100
TINY_NAME = "d64_dpfp1_sum_AssocSeq20N20R0.csv"
LINEAR_NAME = "d64_linear_sum_AssocSeq20N20R0.csv"
NAN_NAMES = [name for name, rows in published_losses().items() if math.isnan(rows[-1][1])]
SUM = next(command for command in COMMANDS if command.label == "DPFP-1")
NAN_COMMAND = next(command for command in COMMANDS if command.label == "FAVOR+ (64) delta")
CUT_OFF_COMMAND = next(command for command in COMMANDS if command.label == "DPFP-2 delta")


def write(folder, name, rows):
    with LogWriter(folder / name) as log:
        for step, loss in rows:
            log.write(step, loss)


@pytest.fixture
def folder(tmp_path):
    """The published logs; the one that was cut off has come to an end."""
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, rows in published_losses().items():
        write(logs, name, [*rows, (400, 0.0005)] if name == CUT_OFF else rows)
    return logs


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def twins_of(folder):
    return folder.parent / "logs.twins.csv"


def change(folder, name, row, loss):
    """Change the loss of one row."""
    rows = list(published_losses()[name])
    rows[row] = (rows[row][0], loss)
    write(folder, name, rows)


def write_twins(folder, bands):
    """name -> [losses], written by hand as documented."""
    lines = [",".join(TWINS_COLUMNS)]
    for name, losses in bands.items():
        n_keys = name.split("N")[1].split("R")[0]
        numbers = [loss for loss in losses if loss != "nan"]
        low, high = (min(numbers, key=float), max(numbers, key=float)) if numbers else ("nan", "nan")
        lines.append(f"{name},{n_keys},{len(losses)},{low},{high},{losses.count('nan')},{' '.join(losses)}")
    twins_of(folder).write_text("\n".join(lines) + "\n")


def printed(folder, capsys):
    print_comparison(compare(folder))
    return capsys.readouterr().out


def line_of(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


# ---- logs ----


def test_the_published_logs_agree_with_themselves(folder):
    comparison = compare(folder)
    assert comparison.failures == [] and comparison.problems == {} and comparison.others == []
    total = comparison.total
    assert (total.compared, total.first_1e5, total.first_1e3) == (320, 320, 320)
    assert (total.last_compared, total.same_rows, total.last_losses, total.bands) == (319, 319, 319, 0)
    for command in COMMANDS:
        tally = comparison.tally(command)
        assert tally.compared == tally.first_1e5 == len(command.runs)
        assert tally.last_compared == len(command.runs) - (command == CUT_OFF_COMMAND)
        assert tally.ours == pytest.approx(tally.published, nan_ok=True)


@pytest.mark.parametrize(
    "moved, to_1e5, to_1e3",
    [(1e-6, 30, 30), (1e-4, 29, 30), (-1e-4, 29, 30), (2e-3, 29, 29), (-2e-3, 29, 29), (math.nan, 29, 29)],
)
def test_a_first_row_is_compared_relative_to_the_published(folder, moved, to_1e5, to_1e3):
    name = log_name(SUM.runs[9])
    change(folder, name, 0, published_losses()[name][0][1] * (1 + moved))
    tally = compare(folder).tally(SUM)
    assert (tally.compared, tally.first_1e5, tally.first_1e3) == (30, to_1e5, to_1e3)
    assert (tally.same_rows, tally.last_losses) == (30, 30)


def test_a_first_row_of_another_step_does_not_agree(folder):
    name = log_name(SUM.runs[9])
    write(folder, name, [(50, published_losses()[name][0][1]), *published_losses()[name][1:]])
    assert compare(folder).tally(SUM).first_1e3 == 29


@pytest.mark.parametrize("moved, agree", [(0.9e-4, 30), (-0.9e-4, 30), (1.1e-4, 29), (-1.1e-4, 29), (math.nan, 29)])
def test_a_last_loss_is_compared_in_absolute_terms(folder, moved, agree):
    name = log_name(SUM.runs[9])
    change(folder, name, -1, published_losses()[name][-1][1] + moved)
    tally = compare(folder).tally(SUM)
    assert (tally.last_losses, tally.first_1e5, tally.same_rows) == (agree, 30, 30)


def test_a_run_with_more_rows(folder):
    name = log_name(SUM.runs[9])
    rows = published_losses()[name]
    write(folder, name, [*rows, (rows[-1][0] + 100, rows[-1][1])])
    tally = compare(folder).tally(SUM)
    assert (tally.compared, tally.same_rows, tally.last_losses) == (30, 29, 30)


def test_nan_agrees_with_nan_only(folder):
    name = NAN_NAMES[0]
    rows = published_losses()[name]
    assert compare(folder).tally(NAN_COMMAND).last_losses == 10
    write(folder, name, [*rows[:-1], (rows[-1][0], 0.0005)])
    comparison = compare(folder)
    assert comparison.tally(NAN_COMMAND).last_losses == 9
    assert "NaN: 17 of 18," in comparison.floors[1][0] and comparison.floors[1][1]


def test_medians(folder):
    """NaN is the largest: six numbers of ten losses make the median one."""
    last = sorted(published_losses()[log_name(run)][-1][1] for run in SUM.runs)
    assert compare(folder).tally(SUM).published == pytest.approx((last[14] + last[15]) / 2)
    for run in NAN_COMMAND.runs[5:]:
        write(folder, log_name(run), [(100, 0.0005)])
    tally = compare(folder).tally(NAN_COMMAND)
    smallest = published_losses()[log_name(NAN_COMMAND.runs[0])][-1][1]
    assert tally.ours == pytest.approx((0.0005 + smallest) / 2) and math.isnan(tally.published)


def test_both_medians_are_of_the_same_runs(folder):
    for run in SUM.runs[1:]:
        (folder / log_name(run)).unlink()
    tally = compare(folder).tally(SUM)
    assert tally.ours == pytest.approx(tally.published) == pytest.approx(published_losses()[TINY_NAME][-1][1])


def test_of_the_log_that_was_cut_off_the_first_row_counts(folder, capsys):
    tally = compare(folder).tally(CUT_OFF_COMMAND)
    assert (tally.compared, tally.first_1e5, tally.same_rows, tally.last_losses) == (10, 10, 9, 9)
    rows = published_losses()[CUT_OFF]
    write(folder, CUT_OFF, [(100, 2 * rows[0][1]), *rows[1:], (400, 0.0005)])
    assert compare(folder).tally(CUT_OFF_COMMAND).first_1e3 == 9
    assert CUT_OFF in line_of(printed(folder, capsys), "cut off")
    write_twins(folder, {CUT_OFF: ["0.5"]})
    assert compare(folder).total.bands == 0


PROBLEMS = {
    "missing": lambda path: path.unlink(),
    "partial": lambda path: path.rename(f"{path}.partial"),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "damaged, foreign": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\xff"),
    "damaged, folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "empty, header": lambda path: path.write_bytes(f"{HEADER}\r\n".encode()),
    "not ended": lambda path: path.write_bytes(b"\r\n".join(path.read_bytes().split(b"\r\n")[:4]) + b"\r\n"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_log_that_cannot_be_compared_is_named_and_not_counted(folder, problem, capsys):
    name = log_name(SUM.runs[9])
    PROBLEMS[problem](folder / name)
    kind = problem.split(",")[0]
    comparison = compare(folder)
    assert {kind: [name]} == {kind: [run.name for run in runs] for kind, runs in comparison.problems.items()}
    assert comparison.others == []
    tally = comparison.tally(SUM)
    assert (tally.compared, tally.first_1e5, tally.first_1e3, tally.same_rows, tally.last_losses) == (29,) * 5
    assert name in line_of(printed(folder, capsys), f"{kind} (1)")


def test_a_partial_log_beside_the_whole_one_does_not_matter(folder):
    (folder / (TINY_NAME + ".partial")).write_bytes(b"step")
    assert compare(folder).total.compared == 320 and compare(folder).others == []


def test_foreign_files_are_named_in_one_line(folder, capsys):
    for name in ("d64_dpfp9_sum_AssocSeq20N20R0.csv", "[bold]new\nline.txt"):
        (folder / name).write_text("x")
    (folder / "plots").mkdir()
    comparison = compare(folder)
    assert comparison.others == ["[bold]new\nline.txt", "d64_dpfp9_sum_AssocSeq20N20R0.csv", "plots"]
    assert comparison.total.compared == 320
    line = line_of(printed(folder, capsys), "other files (3)")
    assert r"[bold]new\nline.txt" in line and "d64_dpfp9_sum_AssocSeq20N20R0.csv" in line and "plots" in line


def test_an_empty_folder(empty, capsys):
    comparison = compare(empty)
    assert comparison.total.compared == 0 and len(comparison.failures) == 2
    text = printed(empty, capsys)
    assert ", and 300 more" in line_of(text, "missing (320)")
    assert text.count("FAILED: ") == 2


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        compare(tmp_path / "none")


def test_the_table_fits_80_columns(folder, capsys):
    write_twins(folder, {name: ["0.5"] for name in published_losses()})
    text = printed(folder, capsys)
    table = text[: text.index("320 of 320 runs")]
    assert "…" not in table and max(map(len, table.splitlines())) <= 80
    assert line_of(table, " dpfp2_ours R1").split()[2:7] == ["10", "10", "10", "9", "9"]
    assert line_of(table, " all").split()[1:6] == ["320", "320", "320", "319", "319"]


# ---- floors ----


@pytest.mark.parametrize("how", ["differ", "are missing"])
def test_the_floor_of_first_rows(folder, how):
    """Eight may part, or be missing, and not nine."""
    for run in SUM.runs[1:10]:
        assert compare(folder).failures == []
        if how == "differ":
            change(folder, log_name(run), 0, 1.0)
        else:
            (folder / log_name(run)).unlink()
    (failure,) = compare(folder).failures
    assert "first rows" in failure and "311 of 320" in failure and "312" in failure


@pytest.mark.parametrize("how", ["differ", "are missing"])
def test_the_floor_of_nan_runs(folder, how):
    for name in NAN_NAMES[:2]:
        assert compare(folder).failures == []
        if how == "differ":
            write(folder, name, [*published_losses()[name][:-1], (published_losses()[name][-1][0], 0.0005)])
        else:
            (folder / name).unlink()
    (failure,) = compare(folder).failures
    assert "NaN" in failure and "16 of 18" in failure and "17" in failure


def test_the_floor_of_bands(folder, capsys):
    """Of ten published last losses one may lie beyond its band, and not two."""
    assert "no bands of twins" in printed(folder, capsys) and len(compare(folder).floors) == 2
    names = [log_name(run) for run in SUM.runs[:10]]
    bands = {name: [format_loss(published_losses()[name][-1][1])] for name in names}
    for outside in range(2):
        write_twins(folder, {name: ["9.0"] if name in names[:outside] else band for name, band in bands.items()})
        comparison = compare(folder)
        assert (comparison.tally(SUM).bands, comparison.tally(SUM).in_band) == (10, 10 - outside)
        assert comparison.failures == []
    write_twins(folder, {name: ["9.0"] if name in names[:2] else band for name, band in bands.items()})
    (failure,) = compare(folder).failures
    assert "8 of 10" in failure and "90 %" in failure
    text = printed(folder, capsys)
    assert "no bands" not in text and f"FAILED: {failure}" in text and "8/10" in line_of(text, " dpfp1_sum R0")


def test_what_is_said_about_bands_beside_the_floor(folder, capsys):
    """One loss in its band, one in the widened band only; the neighbours' losses are looked for in the widened ones."""
    assert compare(folder).neighbours == (0, 0) and "not widened" not in printed(folder, capsys)
    names = [log_name(run) for run in SUM.runs[9:11]]
    last = [published_losses()[name][-1][1] for name in names]
    write_twins(
        folder,
        {
            names[0]: [format_loss(loss) for loss in (last[0] - 0.001, last[0] + 0.001)],
            names[1]: [format_loss(loss) for loss in (last[1] + 0.001, last[1] + 0.1)],
        },
    )
    comparison = compare(folder)
    assert (comparison.total.bands, comparison.total.in_band, comparison.total.unwidened) == (2, 2, 1)
    assert comparison.neighbours == (1, 4)  # the next larger one's, in the second band
    text = printed(folder, capsys)
    assert line_of(text, "published last losses within the bands as they are, not widened: 1 of 2 (50%; of equal draws")
    assert line_of(
        text, "published last losses of the next smaller and larger N within the widened bands: 1 of 4 (25%)"
    )
    assert line_of(text, "ok: published last losses within their twins' bands: 2 of 2")
    write_twins(
        folder, {NAN_NAMES[-1]: ["nan"], log_name(SUM.runs[0]): ["9.0"]}
    )  # neighbours that are NaN, or not there
    assert compare(folder).neighbours == (0, 1)


def test_the_claims_of_readme_and_of_the_page_on_logs():
    root = Path(__file__).parents[2]
    comparison = compare(root / "logs")
    total, (neighbours, of) = comparison.total, comparison.neighbours
    assert (total.bands, total.in_band, total.unwidened) == (133, 126, 107) and total.compared == 320
    claimed = [name for name, run in comparison.runs.items() if run.band is not None]
    default = [log_name(run) for run in twin_runs()]
    softmax = [name for name in claimed if name not in default]
    assert len(default) == 129 and set(default) < set(claimed) and len(softmax) == 4
    difference = {
        name: abs(run.ours[-1][1] - run.published[-1][1]) for name, run in comparison.runs.items() if "softmax" in name
    }
    assert sorted(softmax) == sorted(sorted(difference, key=difference.get)[-4:])
    for page in ("README.md", "docs/logs.md"):
        text = " ".join((root / page).read_text().split())
        assert all(
            number in text
            for number in (
                "133",
                "126",
                "107",
                f"{total.unwidened / total.bands:.0%}".replace("%", " %"),
                f"{neighbours / of:.0%}".replace("%", " %"),
            )
        )
    assert f"({neighbours} of {of})" in text


# ---- files of bands ----

ROW = f"{TINY_NAME},20,3,0.25,0.5,1,0.5 nan 0.25"


def test_reading_bands(empty):
    path = twins_of(empty)
    path.write_text(f"{','.join(TWINS_COLUMNS)}\n{ROW}\n")
    ((name, band),) = read_twins(empty).items()
    assert name == TINY_NAME and band.low == 0.25 and band.high == 0.5 and band.nan == 1
    path.write_text(path.read_text().replace("\n", "\r\n"))
    assert read_twins(empty).keys() == {TINY_NAME}


@pytest.mark.parametrize(
    "number, row",
    [
        (2, "nothing,20,1,0.5,0.5,0,0.5"),  # no published run
        (2, ROW.replace(",20,", ",40,")),
        (2, ROW.replace(",3,", ",2,")),
        (2, ROW.replace(",0.25,", ",0.125,")),
        (2, ROW.replace(",0.5,", ",0.75,")),
        (2, ROW.replace(",1,", ",0,")),
        (2, ROW[:-5]),  # a twin cut off
        (2, ROW[: ROW.rindex(",")]),
        (2, ROW[: ROW.rindex(",") + 1]),
        (2, ROW + " x"),
        (2, ROW + ",x"),
        (2, ROW.replace("0.25", "0.250")),
        (2, ROW + "\0"),
        (2, ""),
        (2, "é"),
        (3, f"{ROW}\n{ROW}"),
        (3, f"{ROW}\n"),
    ],
)
def test_a_malformed_file_of_bands_is_refused(folder, number, row):
    path = twins_of(folder)
    path.write_bytes(f"{','.join(TWINS_COLUMNS)}\n{row}\n".encode())
    with pytest.raises(ValueError) as error:
        compare(folder)
    assert str(error.value).startswith(f"{path}: line {number}: got ") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "x\n", f"{ROW}\n"])
def test_a_file_of_bands_without_its_header_is_refused(empty, content):
    path = twins_of(empty)
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        make_twins(empty, [TINY], 1)
    assert str(error.value).startswith(f"{path}: line 1: got ")
    assert path.read_text() == content


# ---- twins ----


def test_twins_of_a_tiny_run():
    """They differ, by little."""
    settings = Settings(n_keys=20, attn_name="linear")
    run = train(settings)[-1][1]
    losses = twins(settings, 3)
    assert losses == pytest.approx([run] * 3, rel=1e-3) and len(set(losses)) == 3
    assert twins(settings, 2, seed=1) == losses[1:]


def test_twins_move_every_key_weight_by_one_unit(monkeypatch):
    def see(settings, model):
        before, after = Model(settings).parameters, model.parameters
        for name in before:
            moved = before[name].view(np.int32) - after[name].view(np.int32)
            assert set(np.unique(moved)) == ({-1, 1} if name == "W_k.weight" else {0})
        return [(100, 0.5)]

    monkeypatch.setattr("fwm_py.experiments.retrieval.twins.train", see)
    assert twins(TINY, 2) == [0.5, 0.5]


def test_making_twins_and_going_on(empty):
    runs = twin_runs([TINY_NAME, LINEAR_NAME])
    done = []

    def on_done(name, band):
        assert read_twins(empty)[name] == band  # it is written by then
        done.append(name)

    bands = make_twins(empty, runs[:1], 2, jobs=2, on_done=on_done)
    assert done == [TINY_NAME] and bands[TINY_NAME].losses == tuple(twins(TINY, 2))
    assert read_twins(empty) == bands
    bands = make_twins(empty, runs, 2, jobs=2, on_done=on_done)
    assert done == [TINY_NAME, LINEAR_NAME] and read_twins(empty) == bands
    assert list(bands) == [TINY_NAME, LINEAR_NAME]
    lines = twins_of(empty).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["name", LINEAR_NAME, TINY_NAME]  # as the commands
    make_twins(empty, runs[:1], 3, jobs=2, on_done=on_done)
    assert done == [TINY_NAME, LINEAR_NAME, TINY_NAME]
    assert {name: len(band.losses) for name, band in read_twins(empty).items()} == {TINY_NAME: 3, LINEAR_NAME: 2}
    assert list(empty.iterdir()) == []


def test_the_longest_runs_are_made_first_twin_by_twin(empty, monkeypatch):
    seen = []

    def run_all(function, tasks, jobs):
        seen.extend(tasks)
        for index in reversed(range(len(tasks))):
            yield index, float(tasks[index][1])
            if index == 3:
                raise KeyboardInterrupt  # the last run is whole, the one before is not

    monkeypatch.setattr("fwm_py.experiments.retrieval.twins.run_all", run_all)
    small, large = twin_runs([TINY_NAME, "d64_dpfp3_sum_AssocSeq200N200R0.csv"])
    with pytest.raises(KeyboardInterrupt):
        make_twins(empty, [small, large], 4)
    assert seen == [(large, 0), (large, 1), (large, 2), (large, 3), (small, 0), (small, 1), (small, 2), (small, 3)]
    assert read_twins(empty) == {TINY_NAME: Band((0.0, 1.0, 2.0, 3.0))}


@pytest.mark.parametrize("count, runs", [(0, [TINY]), (1, [Settings(n_keys=30)]), (1, [Settings(n_keys=20, seed=2)])])
def test_what_is_no_twin_is_refused(tmp_path, count, runs):
    with pytest.raises(ValueError, match="expected"):
        make_twins(tmp_path, runs, count)
    assert not list(tmp_path.iterdir())


def test_twins_whose_processes_are_killed(empty, monkeypatch):
    monkeypatch.setattr(
        "fwm_py.experiments.retrieval.twins.run_all", lambda *_: (result for result in [(0, WorkerKilled("killed"))])
    )
    with pytest.raises(WorkerKilled):
        make_twins(empty, [TINY], 1)


def test_a_folder_that_is_not_there_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("fwm_py.experiments.retrieval.twins.run_all", lambda *_: pytest.fail("trains"))
    with pytest.raises(FileNotFoundError):
        make_twins(tmp_path / "none", [TINY], 1)


def test_the_runs_to_make_twins_of():
    """Thirteen commands of the rules sum and ours, ten sizes each, without the one that was cut off."""
    runs = twin_runs()
    assert len(runs) == 129 and {run.rule for run in runs} == {"sum", "ours"}
    assert max(run.n_keys for run in runs) == 200 and {run.replace for run in runs} == {False, True}
    assert CUT_OFF not in map(log_name, runs)
    assert [log_name(run) for run in twin_runs(["*tanh*N20R1.csv", "*tanh*"])][:2] == [
        "d64_tanh_fwm_AssocSeq40N20R1.csv",
        "d64_tanh_fwm_AssocSeq80N40R1.csv",
    ]
    assert len(twin_runs(["*tanh*N20R1.csv", "*tanh*"])) == 10
    with pytest.raises(ValueError, match="'nothing'"):
        twin_runs([TINY_NAME, "nothing"])
