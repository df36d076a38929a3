"""Logs: the published names and bytes, and what is refused when reading."""

import errno
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwm_py.experiments.retrieval.logs import LogWriter, format_loss, log_name, read_log
from fwm_py.experiments.retrieval.settings import Settings

FORMATS = [
    (0.5, "0.5"),
    (1.0, "1.0"),
    (0.0, "0.0"),
    (0.0007829439, "0.0007829439"),
    (0.100000024, "0.100000024"),
    (8.620099e-05, "8.620099e-05"),
    (1e-05, "1e-05"),
    (1e-4, "1e-04"),  # the float32 next to 1e-4 lies below it
    (0.000100000005, "0.000100000005"),
    (123456790.0, "123456790.0"),
    (9.999999e15, "9999999000000000.0"),
    (1e16, "1e+16"),
    (3.4028235e38, "3.4028235e+38"),
    (1e-45, "1e-45"),
    (-0.25, "-0.25"),
    (float("nan"), "nan"),
    (float("inf"), "inf"),
]

NAMES = [
    (Settings(n_keys=40, attn_name="dpfp", attn_arg=1, replace=True), "d64_dpfp1_sum_AssocSeq80N40R1.csv"),
    (Settings(n_keys=600), "d64_softmax_cat_AssocSeq600N600R0.csv"),
    (Settings(update_rule="ours", attn_arg=7), "d64_softmax_cat_AssocSeq20N20R0.csv"),
    (Settings(attn_name="linear", attn_arg=7), "d64_linear_sum_AssocSeq20N20R0.csv"),
    (Settings(attn_name="tanh", update_rule="fwm", replace=True), "d64_tanh_fwm_AssocSeq40N20R1.csv"),
    (
        Settings(attn_name="favor", attn_arg=128, update_rule="ours", hidden_size=8),
        "d8_favor128_ours_AssocSeq20N20R0.csv",
    ),
    (
        Settings(seed=2, lr=0.0003, batch_size=64, favor_generator="mt19937", attn_name="favor", attn_arg=64),
        "d64_favor64_sum_AssocSeq20N20R0_seed2_lr0.0003_B64_mt19937.csv",
    ),
    (Settings(seed=0), "d64_softmax_cat_AssocSeq20N20R0_seed0.csv"),
    (Settings(lr=1e-5), "d64_softmax_cat_AssocSeq20N20R0_lr1e-05.csv"),
    (Settings(batch_size=1), "d64_softmax_cat_AssocSeq20N20R0_B1.csv"),
    (Settings(favor_generator="mt19937"), "d64_softmax_cat_AssocSeq20N20R0_mt19937.csv"),
    (Settings(seed=1, lr=1e-3, batch_size=32, max_steps=300), "d64_softmax_cat_AssocSeq20N20R0.csv"),
    (Settings(attn_name="tanh", update_rule="fwm", lr=1e-4, batch_size=128), "d64_tanh_fwm_AssocSeq20N20R0.csv"),
    (
        Settings(attn_name="tanh", update_rule="fwm", lr=1e-3, batch_size=32),
        "d64_tanh_fwm_AssocSeq20N20R0_lr0.001_B32.csv",
    ),
]


@pytest.mark.parametrize("loss, text", FORMATS)
def test_format(loss, text):
    assert format_loss(loss) == text
    assert format_loss(np.float32(loss)) == text


@given(st.floats(width=32))
def test_format_is_the_shortest_that_gives_the_float32_back(loss):
    text = format_loss(loss)
    np.testing.assert_array_equal(np.float32(text), np.float32(loss))
    digits = text.lstrip("-").split("e")[0].replace(".", "").strip("0")
    if np.isfinite(loss) and len(digits) > 1:
        shorter = np.format_float_scientific(np.float64(np.float32(loss)), precision=len(digits) - 2, unique=False)
        assert np.float32(float(shorter)) != np.float32(loss)
    magnitude = abs(float(np.float32(loss)))
    assert ("e" in text) == (np.isfinite(loss) and magnitude != 0 and not 1e-4 <= magnitude < 1e16)


@pytest.mark.parametrize("settings, name", NAMES)
def test_name(settings, name):
    assert log_name(settings) == name


def test_bytes(tmp_path):
    path = tmp_path / "new" / "folder" / "log.csv"
    with LogWriter(path) as log:
        assert path.read_bytes() == b"step,eval-loss\r\n"
        log.write(100, 0.5)
        assert path.read_bytes() == b"step,eval-loss\r\n100,0.5\r\n"
        log.write(200, float("nan"))
        log.write(300, float(np.float32(8.620099e-05)))
        assert log.rows == 3
    assert path.read_bytes() == b"step,eval-loss\r\n100,0.5\r\n200,nan\r\n300,8.620099e-05\r\n"


def test_overwrites(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"anything, and longer than a header\n")
    LogWriter(path).close()
    assert path.read_bytes() == b"step,eval-loss\r\n"


@given(st.lists(st.floats(width=32)))
def test_reading_gives_back_what_was_written(tmp_path_factory, losses):
    path = tmp_path_factory.mktemp("logs") / "log.csv"
    rows = [(100 * (i + 1), loss) for i, loss in enumerate(losses)]
    with LogWriter(path) as log:
        for step, loss in rows:
            log.write(step, loss)
    np.testing.assert_equal(read_log(path), rows)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "line 1: got '', expected 'step,eval-loss' and CR LF"),
        (b"step,eval-loss", "line 1: got 'step,eval-loss', expected 'step,eval-loss' and CR LF"),
        (b"step,eval-loss\n100,0.5\n", "line 1: got"),
        (b"step,loss\r\n100,0.5\r\n", "line 1: got 'step,loss'"),
        (b"\x89PNG\r\n\x1a\n", "line 1: got"),
        (b"step,eval-loss\r\n100,0.5", "line 2: got '100,0.5', expected a row that ends in CR LF"),
        (b"step,eval-loss\r\n100,0.5\r", "line 2: got"),
        (b"step,eval-loss\r\n100;0.5\r\n", "line 2: got '100;0.5', expected '<step>,<loss>'"),
        (b"step,eval-loss\r\n100,0.5,1\r\n", "line 2: got"),
        (b"step,eval-loss\r\n\r\n", "line 2: got ''"),
        (b"step,eval-loss\r\n100,0.5\r\n100,0.4\r\n", "line 3: got '100,0.4', expected a step above 100"),
    ],
)
def test_reading_refuses(tmp_path, data, message):
    path = tmp_path / "log.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="^" + str(path)) as error:
        read_log(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_reading_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "log.csv")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_device():
    with pytest.raises(OSError) as error:
        LogWriter("/dev/full")
    assert error.value.errno == errno.ENOSPC


def test_a_row_that_does_not_fit_is_taken_away(tmp_path):
    """A limit on the file's size cuts the second row's write short, as a full disk would."""
    program = (
        "import resource, sys; from fwm_py.experiments.retrieval.logs import LogWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))\n"
        "log = LogWriter(sys.argv[1]); log.write(100, 0.5)\n"
        "try: log.write(200, 0.25)\n"
        "except OSError: print('refused')\n"
    )
    path = tmp_path / "log.csv"
    result = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert result.stdout == "refused\n"
    assert path.read_bytes() == b"step,eval-loss\r\n100,0.5\r\n"
