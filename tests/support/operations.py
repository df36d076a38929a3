"""The table of operations: CASES, of maps, read-outs, rules, attention, convolution and norm, for the contract."""

import numpy as np

from support import attention_cases, convolution_cases, noncausal_cases, norm_cases, oracle, rule_cases
from support.cases import MAP_CASES, READOUT_CASES, ReadoutInputs, readout_inputs
from support.contract import Case, Near, normal, without
from support.rule_cases import METHODS, RULE_CASES, Sizes


def points(shape, seed=0, scale=1.0):
    """Normal numbers that keep 0.001 away from 0, where the maps have their kinks."""
    x = scale * np.random.default_rng(seed).standard_normal(shape)
    return x + np.copysign(0.001, x)


class MapOperation(Case):
    sizes = float32 = (
        *((1,), (2,), (3, 3), (5, 8), (2, 3, 16), (4, 17), (3, 1, 31), (2, 33), (7, 64), (1, 1, 1, 100), (130, 5)),
        *((1, 1), (4, 3), (2, 16), (2, 3, 17), (3, 33), (2, 64), (0, 4), (3, 0, 5), (0, 0, 2)),
    )
    small = ((1,), (2, 2), (3, 5), (2, 2, 8))
    shared = ((3, 333, 37),)
    busy = (70, 33)
    results, gradients = Near(1e-13, each=True), Near(1e-13, 0)
    results32, gradients32 = Near(1e-5, each=True), Near(1e-5, 0)

    def __init__(self, case):
        self.case, self.name = case, str(case)

    def inputs(self, size, dtype=np.float64, seed=0):
        dphi = normal({"dphi": (*size[:-1], self.case.width(size[-1]))}, dtype, seed + 1)
        return {"x": points(size, seed).astype(dtype), **dphi}

    def forward(self, x):
        return {"phi": self.case.forward(x["x"])}

    def backward(self, x):
        return {"x": self.case.backward(x["dphi"], x["x"])}

    def expected(self, x):
        return {"phi": self.case.oracle(x["x"])}

    def expected_gradients(self, x):
        phi, arguments = oracle.MAPS[self.case.row["name"]], self.case.argument(x["x"].shape[-1])
        return {"x": oracle.map_gradient(phi, x["dphi"], x["x"], *arguments)}


class ReadoutOperation(Case):
    """Sizes are (B, L, p, N, whether keys repeat)."""

    # One token, widths around the vectors', lengths around the chunks', few values, many values.
    float32 = tuple(
        (*size, False)
        for size in (
            *((0, 4, 5, 3), (1, 1, 1, 2), (2, 1, 16, 3), (3, 2, 3, 2), (2, 5, 15, 4), (1, 15, 17, 6), (2, 16, 16, 5)),
            *((3, 17, 31, 5), (2, 33, 8, 40), (1, 40, 33, 3), (2, 50, 40, 50), (5, 20, 128, 20), (1, 100, 65, 30)),
            (2, 64, 64, 1),
        )
    )
    sizes = (*float32, *((*size[:4], True) for size in float32), (2, 35, 9, 6, True))
    small = tuple((*size, False) for size in ((1, 2, 4, 3), (2, 3, 5, 3), (2, 6, 8, 4), (1, 20, 3, 6), (2, 40, 8, 5)))
    shared = ((2, 50, 40, 21, False), (37, 50, 40, 21, False))
    busy = (4, 50, 40, 21, False)
    results, gradients = Near(1e-11, each=True, slack=1e-12), Near(1e-11, 0, slack=1e-14)
    results32, gradients32 = Near(1e-5), Near(1e-4, 0, slack=1e-6)

    def __init__(self, case):
        self.case, self.name = case, f"read-out-{case}"

    def inputs(self, size, dtype=np.float64, seed=0):
        x = readout_inputs(*size[:4], seed=seed, repeat_keys=size[4]).astype(dtype)._asdict()
        return x | normal({"dy": (size[0], size[3])}, dtype, seed + 1)

    def forward(self, x):
        return {"y": self.case.forward(ReadoutInputs(**without(x, "dy")))}

    def backward(self, x):
        return self.case.backward(x["dy"], ReadoutInputs(**without(x, "dy")))

    def expected(self, x):
        return {"y": self.case.oracle(ReadoutInputs(**without(x, "dy")))}

    def expected_gradients(self, x):
        return oracle.GRADIENTS[self.case.row["name"]](**x)


class RuleOperation(Case):
    sizes, small, float32 = rule_cases.SIZES, rule_cases.SMALL, rule_cases.SIZES[5:8]
    # Heads of many sequences, columns and chunks of one head, value heads of a key head, queries of a state, packed.
    shared = (
        Sizes(3, 50, 4, 4, 4, 20, 24),
        Sizes(1, 300, 1, 1, 1, 20, 150),
        Sizes(1, 60, 1, 8, 1, 20, 40),
        Sizes(1, 60, 1, 2, 8, 20, 40),
        Sizes(1, 200, 1, 2, 2, 20, 40, (0, 3, 3, 150, 200)),
    )
    busy = Sizes(2, 100, 1, 2, 1, 20, 40)
    results, gradients = Near(1e-10, 1e-3), Near(1e-9, 1e-3)
    results32 = gradients32 = Near(2e-4, 1e-3)

    def __init__(self, case, method):
        self.case, self.method, self.name = case, method, f"{case}-{method}"

    def inputs(self, size, dtype=np.float64, seed=0):
        return self.case.inputs(size, seed, dtype) | {"cu_seqlens": size.cu_seqlens}

    def of(self, x):
        """The arrays, and sizes that say what is packed."""
        return without(x, "cu_seqlens"), self.busy._replace(cu_seqlens=x["cu_seqlens"])

    def forward(self, x):
        return self.case.forward(*self.of(x), method=self.method)

    def backward(self, x):
        return self.case.backward(*self.of(x), method=self.method)

    def reference(self, size):
        x, results, gradients = rule_cases.reference(self.case, size)
        return x | {"cu_seqlens": size.cu_seqlens}, results, gradients

    def cancels(self, size):
        """o hardly depends on the length of q."""
        return ("q", "k") if size.T == 1 and self.case.option("normalize") else ()


CASES = [
    *map(MapOperation, MAP_CASES),
    *map(ReadoutOperation, READOUT_CASES),
    *(RuleOperation(case, method) for case in RULE_CASES for method in METHODS),
    *(case for module in (noncausal_cases, attention_cases, convolution_cases, norm_cases) for case in module.CASES),
]
