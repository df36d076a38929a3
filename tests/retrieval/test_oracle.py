"""The oracle's gradients by hand are the slopes of its equations by the complex step, which needs no derivation."""

import numpy as np
import pytest
from support import cases, oracle
from support.contract import without
from support.operations import MapOperation, ReadoutOperation

from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.stream import Stream


@pytest.mark.parametrize("size", [*ReadoutOperation.small, (2, 35, 9, 6, True)], ids=str)
@pytest.mark.parametrize("case", cases.READOUT_CASES, ids=str)
def test_gradients_of_the_readouts(case, size):
    x = ReadoutOperation(case).inputs(size)
    equation = oracle.READOUTS[case.row["name"]]
    arrays = {name: x[name] for name in case.differentiable()}
    slopes = oracle.gradient(lambda moved: (x["dy"] * equation(**without(x | moved, "dy"))).sum(), arrays)
    gradients = oracle.GRADIENTS[case.row["name"]](**x)
    assert gradients.keys() == slopes.keys()
    for name, slope in slopes.items():
        cases.assert_gradient(gradients[name], slope, 1e-12, name)


@pytest.mark.parametrize("case", cases.MAP_CASES, ids=str)
def test_gradients_of_the_maps(case):
    x = MapOperation(case).inputs((2, 3, 7))
    slopes = oracle.gradient(lambda moved: (x["dphi"] * case.oracle(moved["x"])).sum(), {"x": x["x"]})
    cases.assert_gradient(MapOperation(case).expected_gradients(x)["x"], slopes["x"], 1e-13)


def loss_slopes(parameters, map_name, argument, rule, batch):
    """The mean of the slopes of each sequence; where its loss is NaN, NaN in what its inputs depend on."""
    trained = {name: parameters[name] for name in oracle.trained_names(rule)}

    def of_sequence(sequence):
        def its_loss(moved):
            return oracle.loss({**parameters, **moved}, map_name, argument, rule, sequence)

        def its_inputs(moved):
            parts = oracle.project({**parameters, **moved}, None, None, *sequence[:3])
            return sum((np.cos(np.arange(a.size)) * a.ravel()).sum() for a in parts if a is not None)

        if not np.isnan(its_loss({})):
            return oracle.gradient(its_loss, trained)
        return {name: np.where(slope == 0, 0, np.nan) for name, slope in oracle.gradient(its_inputs, trained).items()}

    slopes = [of_sequence([a[i : i + 1] for a in batch]) for i in range(len(batch[0]))]
    return {name: np.mean([slope[name] for slope in slopes], axis=0) for name in trained}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_gradients_of_the_loss(case, d):
    """With DPFP-1, which makes no features of some keys, so that some losses are NaN."""
    first = {"attn_arg": 1} if "dpfp" in str(case) else {}
    settings = case.settings(n_keys=3, hidden_size=d, replace=True, batch_size=6, **first)
    parameters = dict(Model(settings, np.float64).parameters)
    arguments = (*case.oracle_arguments(settings), cases.zero_based(Stream(settings).batch(), 3))
    gradients, slopes = oracle.loss_gradient(parameters, *arguments), loss_slopes(parameters, *arguments)
    assert list(gradients) == list(slopes)
    scale = max(np.abs(slope).max(initial=0, where=~np.isnan(slope)) for slope in slopes.values())
    for name, slope in slopes.items():
        cases.assert_near(gradients[name], slope, 1e-11, 1e-13 * scale, name)
