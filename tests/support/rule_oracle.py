"""The rules in plain NumPy, token by token: what the C code is tested against.

All rules are one family. S (K x V) is the memory of a value head; at each token

    S <- diag(exp g) S                the gate g: none, a scalar or one number for each of the K channels
    n  = u - S^T e                    e erases, u is what is written, n what really is
    S <- S + k n^T                    k writes
    S <- S / max(1, |S|_F)            fast_weight_memory only
    o  = scale S^T q

and a rule says what e and u are (RULES below). A sum erases nothing and writes u = v; the delta rule corrects what the
memory holds for its key, beta k (v - S^T k)^T, so u = beta v and e = beta k; Gated DeltaNet 2 has a vector in place of
either beta, u = w * v and e = b * k.

Shapes: q (B, T, HQ, K); k (B, T, H, K); v (B, T, HV, V); beta (B, T, HV); g (B, T, HV) or (B, T, HV, K);
b (B, T, HV, K); w (B, T, HV, V); S (B, HV, K, V); o (B, T, R, V) with R = max(HQ, HV). With cu_seqlens, B is 1 and
states count sequences. `d<name>` is the gradient of sum(do * o) + sum(dfinal_state * final_state) with respect
to <name>.
"""

import itertools
from typing import NamedTuple

import numpy as np

# --- the family: everything of value heads, r queries a state ------------------------------------------------------


def family_forward(q, k, e, u, gate, state, scale, clamped):
    """o (B, T, HV, r, V), and for each token (decayed, n, norm, state), where `state` is what o reads.

    q (B, T, HV, r, K); k, e (B, T, HV, K); u (B, T, HV, V); gate = exp g (B, T, HV, K or 1); state (B, HV, K, V);
    clamped (T) says whose write is followed by the division. e and gate may be None.
    """
    o, tokens = np.empty((*q.shape[:-1], u.shape[-1])), []
    for t in range(q.shape[1]):
        decayed = state if gate is None else gate[:, t, :, :, None] * state
        n = u[:, t] if e is None else u[:, t] - read(decayed, e[:, t])
        state = decayed + outer(k[:, t], n)
        norm = np.maximum(1, np.sqrt(inner(state, state))) if clamped[t] else np.ones((len(q), k.shape[2], 1, 1))
        state = state / norm
        o[:, t] = scale * (q[:, t] @ state)
        tokens.append((decayed, n, norm, state))
    return o, tokens


def family_backward(do, dstate, q, k, e, gate, scale, tokens):
    """dq, dk, de, du, dg (B, T, HV, K or 1) and the gradient of the initial state, from dstate, that of the final one.

    Backwards in time, dstate is the gradient of what the token left behind; each line below undoes one line above.
    """
    dq, dk, de = np.empty(q.shape), np.empty(k.shape), np.zeros(k.shape)
    du, dg = np.empty((*k.shape[:-1], dstate.shape[-1])), None if gate is None else np.empty(gate.shape)
    for t in reversed(range(q.shape[1])):
        decayed, n, norm, state = tokens[t]
        dq[:, t] = scale * (do[:, t] @ state.swapaxes(-1, -2))
        dstate = dstate + scale * (q[:, t].swapaxes(-1, -2) @ do[:, t])
        if np.any(norm != 1):  # state = W / |W|:  dW = (dstate - <dstate, state> state) / |W|
            dstate = (dstate - np.where(norm > 1, inner(dstate, state), 0) * state) / norm
        dk[:, t] = read(dstate.swapaxes(-1, -2), n)
        du[:, t] = read(dstate, k[:, t])  # also the gradient of n
        if e is not None:
            de[:, t] = -read(decayed.swapaxes(-1, -2), du[:, t])
            dstate = dstate - outer(e[:, t], du[:, t])
        if gate is not None:  # decayed = exp(g) S:  dg = <ddecayed, decayed>
            dg[:, t] = (dstate * decayed).sum(-1) if gate.shape[-1] > 1 else inner(dstate, decayed)[..., 0]
            dstate = gate[:, t, :, :, None] * dstate
    return dq, dk, de, du, dg, dstate


def read(state, k):
    """S^T k: (.., K, V), (.., K) -> (.., V)."""
    return (k[..., None, :] @ state)[..., 0, :]


def outer(k, n):
    """k n^T: (.., K), (.., V) -> (.., K, V)."""
    return k[..., :, None] * n[..., None, :]


def inner(a, b):
    """<a, b> of matrices: (.., K, V), (.., K, V) -> (.., 1, 1)."""
    return (a * b).sum((-1, -2), keepdims=True)


# --- the rules: (k, v, strengths) -> e, u, and back ----------------------------------------------------------------


class Rule(NamedTuple):
    erase_and_write: callable  # (k, v, *strengths) -> e, u
    backward: callable  # (de, du, k, v, *strengths) -> dk (by way of e), dv, *dstrengths


SUM = Rule(lambda k, v: (None, v), lambda de, du, k, v: (0, du))
DELTA = Rule(
    lambda k, v, beta: (beta[..., None] * k, beta[..., None] * v),
    lambda de, du, k, v, beta: (beta[..., None] * de, beta[..., None] * du, (de * k).sum(-1) + (du * v).sum(-1)),
)
ERASE_AND_WRITE = Rule(lambda k, v, b, w: (b * k, w * v), lambda de, du, k, v, b, w: (b * de, w * du, de * k, du * v))

RULES = {
    "linear_attention": SUM,
    "gated_linear_attention": SUM,
    "delta_rule": DELTA,
    "gated_delta_rule": DELTA,
    "kimi_delta_rule": DELTA,
    "gated_delta_rule_2": ERASE_AND_WRITE,
    "fast_weight_memory": DELTA,
}
STRENGTHS = ("beta", "b", "w")


def normalised_delta(d):
    """The delta rule that divides what a key erases by d = z . k + eps, e = beta / d k; its backward gives dd too."""

    def backward(de, du, k, v, beta):
        derase = (de * k).sum(-1)
        dk, dv, dbeta = (beta / d)[..., None] * de, beta[..., None] * du, derase / d + (du * v).sum(-1)
        return dk, dv, dbeta, -derase * beta / d**2

    return Rule(lambda k, v, beta: ((beta / d)[..., None] * k, beta[..., None] * v), backward)


# --- normalised keys and queries -----------------------------------------------------------------------------------


def normalise(x, how):
    """x over its length ("l2") or its sum ("sum"), and what it was divided by: inf where all of x is 0 ("sum")."""
    total = np.where((x == 0).all(-1, keepdims=True), np.inf, x.sum(-1, keepdims=True))
    size = {"l2": np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6), "sum": total, None: 1.0}[how]
    return x / size, size


def normalise_backward(dy, y, size, how):
    """y = x / size.  l2: dx = (dy - (dy . y) y) / size;  sum: dx = (dy - (dy . y)) / size."""
    along = (dy * y).sum(-1, keepdims=True)
    return (dy - {"l2": along * y, "sum": along, None: 0.0}[how]) / size


# --- heads: a head of few serves several neighbours of many --------------------------------------------------------


def spread(x, heads):
    """(B, T, h, ..) -> (B, T, heads, ..)."""
    return np.repeat(x, heads // x.shape[2], axis=2)


def gather(dx, heads):
    """The gradient of `spread`: sums over the neighbours."""
    return dx.reshape(*dx.shape[:2], heads, dx.shape[2] // heads, *dx.shape[3:]).sum(3)


# --- a whole function ----------------------------------------------------------------------------------------------


def forward(function, inputs, cu_seqlens=None, norms=None, **options):
    """{"o", "final_state", and with normalize "final_sum"}. inputs: q, k, v, and as they apply g, beta, b, w,
    initial_state, initial_sum (B, H, K). A list given as `norms` receives max(1, |S|_F) of each token."""
    return of_each_sequence(lambda x: one_forward(function, x, norms, **options)[0], inputs, cu_seqlens)


def backward(function, inputs, cu_seqlens=None, **options):
    """The gradients by the inputs' names. inputs: as above, and do, dfinal_state, dfinal_sum (absent: zero)."""
    return of_each_sequence(lambda x: one_backward(function, x, **options), inputs, cu_seqlens)


def of_each_sequence(run, inputs, cu_seqlens):
    """Sequences that are packed in one row are run one by one, each with its own states."""
    if cu_seqlens is None:
        return run(inputs)
    results = []
    for i, (start, end) in enumerate(itertools.pairwise(cu_seqlens)):
        results.append(run({name: x[i : i + 1] if is_state(name) else x[:, start:end] for name, x in inputs.items()}))
    return {name: np.concatenate([r[name] for r in results], axis=0 if is_state(name) else 1) for name in results[0]}


def is_state(name):
    return name.endswith(("_state", "_sum"))


def one_forward(function, x, norms=None, *, scale=None, normalize=False, eps=1e-6, qk_norm=None, clamp_first=True):
    """The results of sequences of equal length, and what the backward wants to know of them."""
    (B, T, H, K), (HV, V) = x["k"].shape, x["v"].shape[2:]
    R = max(x["q"].shape[2], HV)
    scale = scale if scale is not None else 1.0 if normalize else K**-0.5
    first, z_first = x.get("initial_state", np.zeros((B, HV, K, V))), x.get("initial_sum", np.zeros((B, H, K)))

    q, q_size = normalise(x["q"], qk_norm)
    k, k_size = normalise(x["k"], qk_norm)
    q_read, k_write = spread(q, R).reshape(B, T, HV, R // HV, K), spread(k, HV)
    rule = RULES[function]
    if normalize and rule is DELTA:
        z_before = z_first[:, None] + np.cumsum(k, axis=1) - k
        rule = normalised_delta(spread((z_before * k).sum(-1) + eps, HV))
    e, u = rule.erase_and_write(k_write, x["v"], *(x[name] for name in STRENGTHS if name in x))
    gate = None if "g" not in x else np.exp(x["g"] if x["g"].ndim == 4 else x["g"][..., None])
    clamped = np.full(T, function == "fast_weight_memory")
    if not clamp_first and "initial_state" not in x:
        clamped[:1] = False
    o, tokens = family_forward(q_read, k_write, e, u, gate, first, scale, clamped)
    if norms is not None:
        norms.extend(norm for _, _, norm, _ in tokens)
    results = {"o": o.reshape(B, T, R, V), "final_state": tokens[-1][3] if T else first}

    z = denominator = None
    if normalize:  # z_t, the sum of keys up to t, is the key heads'
        z = z_first[:, None] + np.cumsum(k, axis=1)
        denominator = scale * (spread(z, R) * spread(q, R)).sum(-1, keepdims=True) + eps
        results |= {"o": results["o"] / denominator, "final_sum": z[:, -1] if T else z_first}
    return results, (rule, scale, q, q_size, k, k_size, q_read, k_write, e, gate, tokens, z, denominator)


def one_backward(function, x, **options):
    results, saved = one_forward(function, x, **options)
    rule, scale, q, q_size, k, k_size, q_read, k_write, e, gate, tokens, z, denominator = saved
    (B, T, H, K), (HV, V), HQ, R = k.shape, x["v"].shape[2:], q.shape[2], results["o"].shape[2]
    strengths = [name for name in STRENGTHS if name in x]

    do = x["do"] if denominator is None else x["do"] / denominator
    dfinal = x.get("dfinal_state", np.zeros((B, HV, K, V)))
    dq, dk, de, du, dg, dinitial = family_backward(
        do.reshape(B, T, HV, R // HV, V), dfinal, q_read, k_write, e, gate, scale, tokens
    )
    dk_erase, dv, *dstrengths = rule.backward(de, du, k_write, x["v"], *(x[name] for name in strengths))
    dq, dk = gather(dq.reshape(B, T, R, K), HQ), gather(dk + dk_erase, H)
    result = {"v": dv, "initial_state": dinitial, **dict(zip(strengths, dstrengths))}
    if dg is not None:
        result["g"] = dg.reshape(x["g"].shape)

    if z is not None:  # o = numerator / denominator, denominator = scale z . q + eps
        ddenominator = -(do * results["o"]).sum(-1, keepdims=True)
        dq = dq + gather(scale * ddenominator * spread(z, R), HQ)
        dz = gather(scale * ddenominator * spread(q, R), H)
        dz_final = x.get("dfinal_sum", np.zeros((B, H, K)))
        dk = dk + dz_final[:, None] + np.cumsum(dz[:, ::-1], axis=1)[:, ::-1]  # k_s is in every z_t with t >= s
        result["initial_sum"] = dz_final + dz.sum(1)
    if len(dstrengths) > len(strengths):  # d_t = z_(t-1) . k_t + eps
        dd = gather(dstrengths[-1], H)[..., None]
        later = np.cumsum((dd * k)[:, ::-1], axis=1)[:, ::-1]  # k_s is in every z_(t-1) with t > s
        dk = dk + dd * (z - k) + later - dd * k
        result["initial_sum"] = result["initial_sum"] + (dd * k).sum(1)
    qk_norm = options.get("qk_norm")
    result |= {"q": normalise_backward(dq, q, q_size, qk_norm), "k": normalise_backward(dk, k, k_size, qk_norm)}
    return result
