"""Bands of twins: what loss they hold, what they span."""

import math

import pytest

from fwm_py.experiments.retrieval.twins import Band


@pytest.mark.parametrize(
    "loss, holds",
    [
        (0.4, True),
        (0.8, True),
        (0.6, True),
        (0.2997, False),
        (0.2998, True),  # 0.4 - 0.4 / 4 - 1e-3 loss
        (0.9009, True),
        (0.9010, False),  # 0.8 + 0.4 / 4 + 1e-3 loss
        (math.nan, False),
    ],
)
def test_a_band_is_widened_by_a_quarter_and_a_thousandth(loss, holds):
    assert Band((0.5, 0.8, 0.4)).holds(loss) == holds


@pytest.mark.parametrize("loss, holds", [(0.5, True), (0.5004, True), (0.4996, True), (0.5006, False), (0.4994, False)])
def test_a_band_without_width(loss, holds):
    assert Band((0.5, 0.5)).holds(loss) == holds


def test_bands_as_they_are():
    band = Band((0.5, 0.8, 0.4))
    assert (
        band.spans(0.4) and band.spans(0.8) and not band.spans(0.39) and not band.spans(0.81) and band.spans(0.81, 0.02)
    )
    assert not band.spans(math.nan) and Band((0.5, math.nan)).spans(math.nan)
    assert Band((0.5,) * 10).chance == pytest.approx(9 / 11) and Band((0.5,)).chance == 0


def test_bands_with_nan():
    some, all_nan = Band((math.nan, 0.4, math.nan, 0.8)), Band((math.nan, math.nan))
    assert (some.low, some.high, some.nan) == (0.4, 0.8, 2)
    assert some.holds(math.nan) and some.holds(0.6) and not some.holds(1.0)
    assert math.isnan(all_nan.low) and math.isnan(all_nan.high) and all_nan.nan == 2
    assert all_nan.holds(math.nan) and not all_nan.holds(0.6)
