"""What a call of a few numbers costs, and a token whose state is written in place: tensors against arrays.

    python benchmarks/bench_calls.py [--threads 1] [--repeats 9]

Each row calls all sides in turn, each so often that a turn takes some milliseconds; medians over repetitions, ratios
of the pairs. One token of 2 heads of 8 numbers, float32; "gradient" is the forward and torch.autograd.grad on one side,
and the two functions on the other. "Dispatched" is the call on tensors as PyTorch makes it where something watches its
operators, a profiler for one; else fwm_py goes round the dispatcher. The last row is one token of the gated delta rule
with 32 heads of 128 x 128.
"""

import argparse
import functools
import platform
import statistics
import timeit

import numpy as np
import torch

import fwm_py
import fwm_py.torch as fwm
from fwm_py.torch import _library

TURN = 0.005  # seconds


def numbers(*shapes):
    random = np.random.default_rng(0)
    return [random.standard_normal(shape, np.float32) for shape in shapes]


def gated(H, K):
    q, k, v = numbers(*[(1, 1, H, K)] * 3)
    g, beta = (np.random.default_rng(1).random((1, 1, H), np.float32) for _ in range(2))
    return [q, k, v, -g, beta]


def rows():
    """Name, function of tensors, functions of arrays (the second for the gradient), inputs."""
    x, weight = numbers((1, 1, 2, 8), (8,))
    yield (
        "gated_delta_rule",
        fwm.gated_delta_rule,
        fwm_py.gated_delta_rule,
        fwm_py.gated_delta_rule_backward,
        gated(2, 8),
    )
    yield "rms_norm", fwm.rms_norm, fwm_py.rms_norm, fwm_py.rms_norm_backward, [x, weight]
    yield "elu1", fwm.elu1, fwm_py.feature_maps.elu1, fwm_py.feature_maps.elu1_backward, [x]
    attention = fwm.softmax_attention, fwm_py.softmax_attention, fwm_py.softmax_attention_backward
    yield "softmax_attention", *attention, gated(2, 8)[:3]
    convolution = fwm.causal_conv1d, fwm_py.causal_conv1d, fwm_py.causal_conv1d_backward
    yield "causal_conv1d", *convolution, numbers((1, 1, 16), (16, 4))


def first(y):
    return y[0] if isinstance(y, tuple) else y


def sides(on_tensors, on_arrays, backward, inputs, gradient):
    tensors = [torch.from_numpy(x.copy()).requires_grad_(gradient) for x in inputs]
    if not gradient:
        return functools.partial(on_tensors, *tensors), functools.partial(on_arrays, *inputs)
    dy = np.ones_like(first(on_arrays(*inputs)))
    dy_tensor = torch.from_numpy(dy)

    def ours():
        return torch.autograd.grad(first(on_tensors(*tensors)), tensors, dy_tensor)

    return ours, lambda: (on_arrays(*inputs), backward(dy, *inputs))


def decoding():
    """A token with the state in place: both sides have the same memory, since its place decides some of the time."""
    inputs = gated(32, 128)
    state = torch.zeros(1, 32, 128, 128).numpy()
    out, tensors = (np.empty((1, 1, 32, 128), np.float32), state), [torch.from_numpy(x) for x in inputs]
    options = dict(qk_norm="l2", initial_state=torch.from_numpy(state), inplace_final_state=True)
    ours = functools.partial(fwm.gated_delta_rule, *tensors, **options)
    return ours, functools.partial(fwm_py.gated_delta_rule, *inputs, qk_norm="l2", initial_state=state, out=out)


def dispatched(call):
    unseen = _library.is_unseen

    def through():
        _library.is_unseen = lambda: False
        try:
            return call()
        finally:
            _library.is_unseen = unseen

    return through


def measure(calls, repeats):
    """Microseconds of each side, and the median of the first two's ratios."""
    counts = [max(1, int(TURN / min(timeit.repeat(call, number=3, repeat=3)) * 3)) for call in calls]
    turns = [[timeit.timeit(call, number=n) / n * 1e6 for call, n in zip(calls, counts)] for _ in range(repeats)]
    return *(statistics.median(side) for side in zip(*turns)), statistics.median(a / b for a, b, _ in turns)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fwm_py.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}; {args.threads} threads; PyTorch {torch.__version__}\n")
    print("| call | tensors, us | arrays, us | tensors / arrays | dispatched, us |\n|---|---:|---:|---:|---:|")
    table = [(f"{name}, gradient" if gradient else name, sides(*functions, gradient), gradient)
             for gradient in (False, True) for name, *functions in rows()]  # fmt: skip
    for name, calls, gradient in [*table, ("one token, 32 heads of 128 x 128, in place", decoding(), False)]:
        with torch.set_grad_enabled(gradient):
            tensors, arrays, through, ratio = measure((*calls, dispatched(calls[0])), args.repeats)
        print(f"| {name} | {tensors:.1f} | {arrays:.1f} | {ratio:.2f} | {through:.1f} |")


if __name__ == "__main__":
    main()
