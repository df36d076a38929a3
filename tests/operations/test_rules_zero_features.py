"""qk_norm="sum" of tokens to which a map has given no features: such a key writes nothing, such a query reads 0."""

import numpy as np
import pytest
from support.rule_cases import METHODS, RULE_CASES, Sizes, assert_close

CASES = [case for case in RULE_CASES if case.option("qk_norm") == "sum"]
SIZES = [Sizes(1, 1, 1, 1, 1, 3, 2), Sizes(2, 40, 1, 2, 4, 5, 33), Sizes(1, 35, 2, 2, 2, 17, 3, (0, 1, 18, 35))]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_method = pytest.mark.parametrize("method", METHODS)
every_size = pytest.mark.parametrize("sizes", SIZES, ids=str)
zero_or_less_than_counts = pytest.mark.parametrize("nothing", [0, "subnormal"])


def test_every_rule_with_a_norm_is_here():
    assert {case.function for case in RULE_CASES if case.option("qk_norm")} == {case.function for case in CASES}


def without_features(case, sizes, name, tokens, nothing, dtype):
    x = case.inputs(sizes, dtype=dtype)
    x[name][:, tokens] = 0 if nothing == 0 else np.finfo(dtype).tiny / 4
    return x


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@zero_or_less_than_counts
@pytest.mark.parametrize("which", ["k", "q"])
@every_method
@every_size
@every_case
def test_tokens_without_features(case, sizes, method, which, nothing, dtype):
    for tokens in (slice(0, None), slice(0, 1), slice(sizes.T // 2, sizes.T // 2 + 2), slice(sizes.T - 1, None)):
        x = without_features(case, sizes, which, tokens, nothing, dtype)
        exact = {name: array.copy() for name, array in x.items()}
        exact[which][:, tokens] = 0
        results, gradients = case.forward(x, sizes, method=method), case.backward(x, sizes, method=method)
        close = (1e-10, 1e-9) if dtype is np.float64 else (1e-4, 2e-4)
        assert_close(results, case.expected(exact, sizes), close[0])
        assert_close(gradients, case.expected_gradients(exact, sizes), close[1])
        assert not gradients[which][:, tokens].any()
        if which == "q":
            assert not results["o"][:, tokens].any()


@every_method
@every_case
def test_both_signs_that_cancel_are_no_zeros(case, method):
    """x / 0 is reported, not hidden."""
    sizes = Sizes(1, 20, 1, 1, 1, 2, 3)
    x = case.inputs(sizes)
    x["k"][:, 5] = [1, -1]
    o = case.forward(x, sizes, method=method)["o"]
    assert np.isfinite(o[:, :5]).all() and not np.isfinite(o[:, 5:]).any()
