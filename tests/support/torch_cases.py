"""What the tests of fwm_py.torch share: tensors of the cases of the rules, and of the other operations."""

import pytest
import torch

import fwm_py
import fwm_py.torch as fwm
from fwm_py import _core, feature_maps
from support.rule_cases import RULE_CASES, SIZES

OMEGA = torch.from_numpy(feature_maps.draw_omega(5, 7, fwm_py.random.Philox(1)))
MAPS = {row["function"]: row for row in _core.MAPS}


@pytest.fixture(autouse=True)
def torch_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors(x, dtype=None, requires_grad=False):
    return {name: torch.from_numpy(array.copy()).to(dtype).requires_grad_(requires_grad) for name, array in x.items()}


def options_of(case, x, sizes):
    options = dict(case.options) | {"output_final_state": True}
    if "initial_state" in x:
        options["initial_state"] = (
            (x["initial_state"], x["initial_sum"]) if case.option("normalize") else x["initial_state"]
        )
    if sizes.cu_seqlens is not None:
        options["cu_seqlens"] = torch.tensor(sizes.cu_seqlens)
    return options


def forward(case, x, sizes, **other):
    """Results by name, as RuleCase.forward has them."""
    o, state = getattr(fwm, case.function)(*(x[name] for name in case.arguments), **options_of(case, x, sizes) | other)
    return dict(zip(("o", "final_state", "final_sum"), (o, *(state if isinstance(state, tuple) else (state,)))))


def gradients(case, x, sizes):
    results = forward(case, x, sizes)
    sum((x["d" + name] * result).sum() for name, result in results.items()).backward()
    return {name: x[name].grad for name in case.differentiable(x)}


def random_tensors(shapes, dtype, requires_grad=True):
    random = torch.Generator().manual_seed(0)
    made = (torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes)
    return [tensor.requires_grad_(requires_grad) for tensor in made]


def softmax_inputs(dtype=torch.float64, requires_grad=True):
    return random_tensors(((2, 7, 4, 5), (2, 9, 2, 5), (2, 9, 2, 3)), dtype, requires_grad)


def conv_inputs(dtype=torch.float64, requires_grad=True):
    return random_tensors(((2, 7, 5), (5, 4), (5,), (2, 3, 5)), dtype, requires_grad)


def norm_inputs(dtype=torch.float64):
    return random_tensors(((2, 3, 5), (5,), (2, 3, 5)), dtype)


def convolve(x, weight, bias, state, **options):
    return fwm.causal_conv1d(
        x, weight, bias, activation="silu", initial_state=state, output_final_state=True, **options
    )


def gated_inputs():
    case = next(case for case in RULE_CASES if case.function == "gated_delta_rule")
    return [
        torch.from_numpy(array).float() for name, array in case.inputs(SIZES[5], states=False).items() if name != "do"
    ]


def map_arguments(row):
    """nu and omega of the operator: for tokens of 5 numbers."""
    return 2 if row["argument"] == "nu" else None, OMEGA if row["takes_omega"] else None
