"""The rules and what else computes the same on a CPU, behind one interface, for bench_kernels.py.

A side is made from a piece of work and its inputs (arrays as fwm_py takes them), and converts them to its own layout
when it is made. Calling it does the work, and nothing else is timed; `arrays` then gives the results by name, in our
layout again: o, final_state when one token is decoded, dq, dk, ... with the backward.

    Ours              fwm_py
    Transformers      the PyTorch functions of its modelling files, gradients by autograd; repeats key heads inside
    OnnxRuntime       the operator com.microsoft.LinearAttention, its inputs and outputs bound; it has no backward
    TorchAttention    torch.nn.functional.scaled_dot_product_attention, gradients by autograd
    TorchMatmul       the products of such a sum alone, on operands that lie as torch.matmul likes them best
    TorchEinsum       linear attention without a causal mask, two einsums and elu + 1, gradients by autograd
    Copy              a copy of the state: the least that touching it for one token can take
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

import fwm_py
from fwm_py.feature_maps import elu1, elu1_backward


@dataclass(frozen=True)
class Rule:
    """What a function of fwm_py takes behind q, k and v, and under what name others have it."""

    inputs: tuple = ()
    channel_gate: bool = False  # g is (B, T, HV, K)
    qk_norm: bool = False  # its models normalise q and k in the kernel
    onnx: str = ""  # update_rule of com.microsoft.LinearAttention
    transformers: tuple = ()  # modelling module; function for many tokens; function for one

    @property
    def erases(self):
        return bool({"beta", "b"} & set(self.inputs))


RULES = {
    "linear_attention": Rule(onnx="linear"),
    "gated_linear_attention": Rule(("g",), onnx="gated"),
    "delta_rule": Rule(("beta",), onnx="delta"),
    "gated_delta_rule": Rule(
        ("g", "beta"),
        qk_norm=True,
        onnx="gated_delta",
        transformers=("qwen3_next", "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"),
    ),
    "kimi_delta_rule": Rule(
        ("g", "beta"),
        channel_gate=True,
        qk_norm=True,
        onnx="gated_delta",
        transformers=("kimi_linear", "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"),
    ),
    "gated_delta_rule_2": Rule(("g", "b", "w"), channel_gate=True),
    "fast_weight_memory": Rule(("beta",)),
    "softmax_attention": Rule(),
    "products": Rule(),  # linear_attention(causal=False, scale=1): the products alone
    "noncausal": Rule(),  # linear_attention(causal=False, normalize=True) of elu1's features
}


@dataclass(frozen=True)
class Work:
    """One call. `g` is the mean of the gates' logarithms. A single token continues from a state and returns one."""

    function: str
    B: int
    T: int
    H: int
    HV: int
    K: int
    V: int
    g: float = -0.1

    @property
    def rule(self):
        return RULES[self.function]

    @property
    def decodes(self):
        return self.T == 1 and self.function not in ("softmax_attention", *SUMS)

    def names(self):
        """Of the inputs, in the order in which the function takes them."""
        return ("q", "k", "v", *self.rule.inputs)

    def shape(self, name):
        heads, size = {
            "q": (self.H, self.K),
            "k": (self.H, self.K),
            "v": (self.HV, self.V),
            "o": (self.HV, self.V),
            "g": (self.HV, self.K if self.rule.channel_gate else 0),
            "beta": (self.HV, 0),
            "b": (self.HV, self.K),
            "w": (self.HV, self.V),
        }[name]
        return (self.B, self.T, heads, size) if size else (self.B, self.T, heads)

    def sizes(self):
        heads = f"H {self.H}" if self.H == self.HV else f"H {self.H} HV {self.HV}"
        sizes = f"K V {self.K}" if self.K == self.V else f"K {self.K} V {self.V}"
        return f"B {self.B} T {self.T} {heads} {sizes}"

    def sides(self, backward):
        """Ours and all alternatives that do this work."""
        return [side for side in SIDES if side.takes(self, backward)]

    def flop(self, backward):
        """Of the recurrence and its gradient, two for each multiplication and addition; nothing recomputed is counted.

        A token of a value head: K V of them for the write, for the read-out and, if the rule erases, for what the
        memory holds. Softmax attention: the scores and the values of the causal triangle. A product forward is two
        backward; softmax attention's backward makes the scores once more.
        """
        if self.function == "softmax_attention":
            return self.B * self.H * self.T * (self.T + 1) * (self.K + self.V) * (3.5 if backward else 1)
        forward = (6 if self.rule.erases else 4) * self.K * self.V * self.B * self.T * self.HV
        return forward * (3 if backward else 1)

    def draw(self):
        """The inputs by name: q and k of length one, strengths in (0, 1), gates of half to one and a half times `g`."""
        random = np.random.default_rng(0)
        drawn = {name: random.standard_normal(self.shape(name), np.float32) for name in ("q", "k", "v", "o")}
        for name in ("q", "k"):
            drawn[name] /= np.linalg.norm(drawn[name], axis=-1, keepdims=True)
        for name in self.rule.inputs:
            drawn[name] = random.random(self.shape(name), np.float32)
        if "g" in drawn:
            drawn["g"] = np.float32(self.g) * (np.float32(0.5) + drawn["g"])
        drawn["do"] = drawn.pop("o")
        if self.decodes:
            drawn["initial_state"] = random.standard_normal((self.B, self.HV, self.K, self.V), np.float32)
        return drawn


def noncausal(q, k, v, out=None):
    return fwm_py.linear_attention(elu1(q), elu1(k), v, out=out, causal=False, normalize=True)


def noncausal_backward(do, q, k, v, out=None):
    gradients = fwm_py.linear_attention_backward(do, elu1(q), elu1(k), v, causal=False, normalize=True)
    return gradients._replace(dq=elu1_backward(gradients.dq, q), dk=elu1_backward(gradients.dk, k))


PRODUCTS = dict(causal=False, scale=1.0)
SUMS = {  # forward and backward of what is no function of fwm_py by itself
    "noncausal": (noncausal, noncausal_backward),
    "products": tuple(
        functools.partial(function, **PRODUCTS)
        for function in (fwm_py.linear_attention, fwm_py.linear_attention_backward)
    ),
}


def functions_of(name):
    return SUMS.get(name) or (getattr(fwm_py, name), getattr(fwm_py, name + "_backward"))


class Ours:
    """Writes into arrays made before, as OnnxRuntime does; one token also updates its state in place."""

    name = "ours"

    def __init__(self, work, inputs, backward, threads):
        fwm_py.set_num_threads(threads)
        self.work, self.with_backward = work, backward
        self.forward, self.backward = functions_of(work.function)
        self.inputs, self.do = [inputs[name] for name in work.names()], inputs["do"]
        self.options, self.results, self.gradients = {}, {}, None
        if work.rule.qk_norm:
            self.options["qk_norm"] = "l2"
        self.out = np.empty(work.shape("o"), np.float32)
        if work.decodes:
            self.state = inputs["initial_state"].copy()

    def __call__(self):
        if self.work.decodes:
            self.forward(
                *self.inputs,
                initial_state=self.state,
                output_final_state=True,
                out=(self.out, self.state),
                **self.options,
            )
            self.results = {"o": self.out, "final_state": self.state}
        elif self.work.function == "softmax_attention":
            self.attention()
        else:
            self.forward(*self.inputs, out=self.out, **self.options)
            self.results = {"o": self.out}
            if self.with_backward:
                self.make_gradients(**self.options)

    def attention(self):
        if self.with_backward:
            o, lse = self.forward(*self.inputs, return_lse=True, out=self.out)
            self.results = {"o": o}
            self.make_gradients(o=o, lse=lse)
        else:
            self.forward(*self.inputs, out=self.out)
            self.results = {"o": self.out}

    def make_gradients(self, **options):
        self.gradients = self.backward(
            self.do, *self.inputs, out=self.gradients, **options
        )  # the first call makes them
        self.results |= {"d" + name: getattr(self.gradients, "d" + name) for name in self.work.names()}

    def arrays(self):
        return self.results

    @staticmethod
    def takes(work, backward):
        return True


class Torch:
    """A PyTorch function and its gradients by autograd."""

    layout = staticmethod(lambda x: x)  # ours to its own, and back

    def __init__(self, work, inputs, backward, threads):
        torch.set_num_threads(threads)
        self.names, self.with_backward, self.results = work.names(), backward, {}
        self.inputs = [self.layout(torch.from_numpy(inputs[name])).contiguous() for name in self.names]
        self.do = self.layout(torch.from_numpy(inputs["do"])).contiguous()
        self.options = {}
        if work.decodes:
            state = torch.from_numpy(inputs["initial_state"])
            self.options = {"initial_state": state, "output_final_state": True}

    def __call__(self):
        if not self.with_backward:
            with torch.no_grad():
                o, final_state = self.function(*self.inputs)
            self.results = {"o": o} if final_state is None else {"o": o, "final_state": final_state}
            return
        leaves = [x.detach().requires_grad_() for x in self.inputs]
        o, _ = self.function(*leaves)
        gradients = torch.autograd.grad(o, leaves, self.do)
        self.results = {"o": o.detach()} | {"d" + name: dx for name, dx in zip(self.names, gradients)}

    def arrays(self):
        return {name: (x if name == "final_state" else self.layout(x)).numpy() for name, x in self.results.items()}


class Transformers(Torch):
    name = "transformers"

    def __init__(self, work, inputs, backward, threads):
        import transformers  # a process that does not need it is spared the seconds

        transformers.logging.set_verbosity_error()  # that a faster package is missing, which needs a GPU
        super().__init__(work, inputs, backward, threads)
        family, many, one = work.rule.transformers
        module = __import__(f"transformers.models.{family}.modeling_{family}", fromlist=[many, one])
        self.rule = getattr(module, one if work.decodes else many)

    def function(self, *inputs):
        return self.rule(*inputs, use_qk_l2norm_in_kernel=True, **self.options)

    @staticmethod
    def takes(work, backward):
        return bool(work.rule.transformers)


class TorchAttention(Torch):
    name = "torch"
    layout = staticmethod(lambda x: x.transpose(1, 2))

    def function(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), None

    @staticmethod
    def takes(work, backward):
        return work.function == "softmax_attention"


class TorchMatmul:
    """S = k^T v and o = q S; dq = do S^T, dS = q^T do, dk = v dS^T, dv = k dS: into tensors made before."""

    name = "torch.matmul"

    def __init__(self, work, inputs, backward, threads):
        torch.set_num_threads(threads)
        self.with_backward = backward
        first = {name: torch.from_numpy(inputs[name]).transpose(1, 2) for name in ("q", "k", "v", "do")}
        self.rows = {name: x.contiguous() for name, x in first.items()}  # (B, H, T, size)
        self.columns = {name: x.mT.contiguous() for name, x in first.items()}  # (B, H, size, T)
        self.S, self.dS = (torch.empty(work.B, work.H, work.K, work.V) for _ in range(2))
        self.results = {"o": torch.empty_like(self.rows["v"])}
        self.results |= {"d" + name: torch.empty_like(self.rows[name]) for name in "qkv"} if backward else {}

    def __call__(self):
        rows, columns, out = self.rows, self.columns, self.results
        torch.matmul(columns["k"], rows["v"], out=self.S)
        torch.matmul(rows["q"], self.S, out=out["o"])
        if self.with_backward:  # the same products as ours, whose backward saves nothing and makes S again
            torch.matmul(columns["k"], rows["v"], out=self.S)
            torch.matmul(rows["do"], self.S.mT, out=out["dq"])
            torch.matmul(columns["q"], rows["do"], out=self.dS)
            torch.matmul(rows["v"], self.dS.mT, out=out["dk"])
            torch.matmul(rows["k"], self.dS, out=out["dv"])

    def arrays(self):
        return {name: x.transpose(1, 2).numpy() for name, x in self.results.items()}

    @staticmethod
    def takes(work, backward):
        return work.function == "products"


class TorchEinsum(Torch):
    name = "torch"

    def function(self, q, k, v):
        q, k = torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1
        S, z = torch.einsum("bnhk,bnhv->bhkv", k, v), k.sum(1)
        return torch.einsum("bthk,bhkv->bthv", q, S) / ((q * z[:, None]).sum(-1, keepdim=True) + 1e-6), None

    @staticmethod
    def takes(work, backward):
        return work.function == "noncausal"


class OnnxRuntime:
    """Heads lie side by side in its last axis, which is our layout with two axes seen as one: nothing is copied."""

    name = "onnxruntime"

    def __init__(self, work, inputs, backward, threads):
        self.work = work
        feeds = {name: inputs[name].reshape(work.B, work.T, -1) for name in work.names()}
        feeds["state"] = inputs.get("initial_state", np.zeros((work.B, work.HV, work.K, work.V), np.float32))
        self.session = onnxruntime.InferenceSession(
            self.model(feeds), self.session_options(threads), providers=["CPUExecutionProvider"]
        )
        self.binding = self.session.io_binding()
        for name, array in feeds.items():
            self.binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        self.o, self.state = (
            onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
            for shape in ((work.B, work.T, work.HV * work.V), feeds["state"].shape)
        )
        self.binding.bind_ortvalue_output("o", self.o)
        self.binding.bind_ortvalue_output("final_state", self.state)

    def model(self, feeds):
        names = [name if name in feeds else "" for name in ("q", "k", "v", "state", "g", "beta")]
        node = helper.make_node(
            "LinearAttention",
            names,
            ["o", "final_state"],
            domain="com.microsoft",
            update_rule=self.work.rule.onnx,
            q_num_heads=self.work.H,
            kv_num_heads=self.work.HV,
        )
        inputs, outputs = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name]
            for names in (names, ["o", "final_state"])
        )
        model = helper.make_model(
            helper.make_graph([node], "one_node", inputs, outputs),
            ir_version=10,
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        )
        return model.SerializeToString()

    @staticmethod
    def session_options(threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return options

    def __call__(self):
        self.session.run_with_iobinding(self.binding)

    def arrays(self):
        results = {"o": self.o.numpy().reshape(self.work.shape("o"))}
        return results | {"final_state": self.state.numpy()} if self.work.decodes else results

    @staticmethod
    def takes(work, backward):
        return bool(work.rule.onnx) and not backward


class Copy:
    name = "copy"

    def __init__(self, work, inputs, backward, threads):
        self.state = inputs["initial_state"]
        self.copy = np.empty_like(self.state)

    def __call__(self):
        np.copyto(self.copy, self.state)

    def arrays(self):
        return {}

    @staticmethod
    def takes(work, backward):
        return work.decodes


SIDES = [Ours, Transformers, OnnxRuntime, TorchAttention, TorchEinsum, TorchMatmul, Copy]


def disagreement(ours, theirs):
    """The largest difference of two sides' results, as a share of the largest value of each array.

    A gradient counts as no smaller than a thousandth of the largest one: with strong gates dg falls to 1e-8 of the
    others, far below what autograd's sums and differences of them leave of it.
    """
    mine, wanted = ours.arrays(), theirs.arrays()
    largest = {name: np.abs(array).max() for name, array in wanted.items()}
    least = 1e-3 * max((largest[name] for name in wanted if name.startswith("d")), default=0)
    errors = [0.0]
    for name, array in wanted.items():
        error = np.abs(mine[name] - array).max() / max(largest[name], least if name.startswith("d") else 0)
        errors.append(math.inf if math.isnan(error) else float(error))
    return max(errors)
