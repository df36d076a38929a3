"""The experiments in plain NumPy, written from their equations: what the C code is tested against.

Nothing here is clever: one loop over the tokens of a sequence, the memory W kept whole (N x p), the input of the
projections written out (N + E wide). B sequences go side by side in the first axis. Gradients are derived by
hand; test_oracle.py holds them against `gradient`, which needs no derivation.

Symbols: N keys and N values, L tokens a sequence, B sequences, d the width of the projections, E the width of an
embedding, p the width of a feature map. Values are 0..N-1 here, tokens N..2N-1 in a batch.

Forward functions of real arrays also take complex ones, because `gradient` differentiates by the complex step:
f(x + ih) = f(x) + ih f'(x) + O(h^2), so Im f(x + ih) / h is f'(x) to the last digit when h is 1e-30. Therefore
decisions (is x positive?) look at the real part only, and |x|^2 is sum(x * x), never abs.
"""

import numpy as np

# --- feature maps: (..., d) -> (..., p) ----------------------------------------------------------------------------


def relu(x):
    """0 up to and at 0, with slope 0 there; NaN stays NaN."""
    return np.where(x.real <= 0, 0, x)


def elu1(x):
    """elu(x) + 1: x + 1 above 0, exp(x) below; p = d."""
    return np.where(x.real > 0, x + 1, np.exp(x - relu(x)))


def tanh(x):
    """p = d."""
    return np.tanh(x)


def dpfp(x, nu):
    """Block j = 1..nu holds r[i] r[i - j] (cyclic) of r = [relu(x); relu(-x)]; p = 2 d nu."""
    r = np.concatenate([relu(x), relu(-x)], axis=-1)
    return np.concatenate([r * np.roll(r, j, axis=-1) for j in range(1, nu + 1)], axis=-1)


def favor(x, omega):
    """Positive random features: [exp(x Omega - o); exp(-x Omega - o)], omega (d, m); p = 2m."""
    m = omega.shape[1]
    u = x @ omega
    o = (x * x).sum(-1, keepdims=True) / 2 + np.log(m) / 2 + np.log(2) / 2
    return np.concatenate([np.exp(u - o), np.exp(-u - o)], axis=-1)


def householder_q(a):
    """Q of A = QR as LAPACK finds it: a product of reflections, R's diagonal of either sign."""
    r, q = np.array(a, np.float64), np.eye(len(a))
    for j in range(len(a)):
        x = r[j:, j]
        if np.all(x[1:] == 0):
            continue  # nothing stands below the diagonal: no reflection, R_jj keeps its sign
        v = x.copy()
        v[0] += np.copysign(np.linalg.norm(x), x[0])  # v = x - alpha e_1, alpha = -sign(x_0) |x|
        h = np.eye(len(a))
        h[j:, j:] -= 2 * np.outer(v, v) / (v @ v)
        r, q = h @ r, q @ h
    return q


def draw_omega(d, m, normal):
    """Omega (d, m): orthogonal directions, each as long as a row of the normal block it came from.

    `normal(n)` gives the next n standard normals; every block of d columns takes a whole d x d matrix.
    """
    columns = []
    while len(columns) < m:
        block = np.asarray(normal(d * d), np.float64).reshape(d, d)
        columns += list((householder_q(block) * np.linalg.norm(block, axis=1)).T)
    return np.array(columns[:m]).T


# --- read-outs: keys (B, L, p), values (B, L) integers, beta (B, L) or None, query (B, p) -> y (B, N) ---------------


def sum_rule(keys, values, beta, query, n_values):
    """W = sum_t v_t k_t^T, z = sum_t k_t; y = W q / (z . q + 1e-6)."""
    v = np.eye(n_values)[values]
    memory = np.zeros((len(keys), n_values, keys.shape[2]), keys.dtype)
    z = np.zeros((len(keys), keys.shape[2]), keys.dtype)
    for t in range(keys.shape[1]):
        memory = memory + v[:, t, :, None] * keys[:, t, None, :]
        z = z + keys[:, t]
    return read(memory, query) / ((z * query).sum(1, keepdims=True) + 1e-6)


def delta_rule(keys, values, beta, query, n_values):
    """k = k_t / sum(k_t); W <- W + beta_t (v_t - W k) k^T from W = 0; y = W q / (sum(q) + 1e-6)."""
    v = np.eye(n_values)[values]
    memory = np.zeros((len(keys), n_values, keys.shape[2]), keys.dtype)
    for t in range(keys.shape[1]):
        k = keys[:, t] / keys[:, t].sum(1, keepdims=True)
        error = v[:, t] - read(memory, k)
        memory = memory + (beta[:, t, None] * error)[:, :, None] * k[:, None, :]
    return read(memory, query) / (query.sum(1, keepdims=True) + 1e-6)


def fwm_rule(keys, values, beta, query, n_values, norms=None):
    """W <- W + beta_t (v_t - W k_t) k_t^T, from the second token on W <- W / max(1, |W|_F); y = layer_norm(W q).

    A list given as `norms` receives |W|_F (B,) of each token from the second on, before the division.
    """
    v = np.eye(n_values)[values]
    memory = np.zeros((len(keys), n_values, keys.shape[2]), keys.dtype)
    for t in range(keys.shape[1]):
        error = v[:, t] - read(memory, keys[:, t])
        memory = memory + (beta[:, t, None] * error)[:, :, None] * keys[:, t, None, :]
        if t > 0:
            norm = frobenius(memory)
            memory = memory / (relu(norm - 1) + 1)[:, None, None]
            if norms is not None:
                norms.append(norm)
    return layer_norm(read(memory, query))


def softmax_rule(keys, values, beta, query, n_values):
    """weights = softmax over t of k_t . q / sqrt(d); y[n] is the weight of all tokens whose value is n."""
    scores = np.stack([(keys[:, t] * query).sum(1) for t in range(keys.shape[1])], axis=1) / np.sqrt(keys.shape[2])
    weights = np.exp(scores - scores.real.max(1, keepdims=True))
    weights = weights / weights.sum(1, keepdims=True)
    return (weights[:, :, None] * np.eye(n_values)[values]).sum(1)


def read(memory, k):
    """W k of every sequence: (B, N, p), (B, p) -> (B, N)."""
    return (memory * k[:, None, :]).sum(2)


def frobenius(memory):
    return np.sqrt((memory * memory).sum((1, 2)))


def layer_norm(y):
    """Over the N values, with the biased variance, eps 1e-5, no gain and no bias."""
    centred = y - y.mean(1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(1, keepdims=True) + 1e-5)


# --- their gradients, dy (B, N) -> {"keys", "beta" where there is one, "query"} --------------------------------------


def sum_gradient(dy, keys, values, beta, query, n_values):
    """y is sum_t v_t (k_t . q) over sum_t k_t . q + 1e-6: `slope` is that of k_t . q."""
    y = sum_rule(keys, values, beta, query, n_values)
    of_token = np.take_along_axis(dy, values, axis=1)
    slope = (of_token - (dy * y).sum(1, keepdims=True)) / ((keys.sum(1) * query).sum(1, keepdims=True) + 1e-6)
    return {"keys": slope[..., None] * query[:, None], "query": (slope[..., None] * keys).sum(1)}


def softmax_gradient(dy, keys, values, beta, query, n_values):
    scores = (keys * query[:, None]).sum(2) / np.sqrt(keys.shape[2])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights, of_token = weights / weights.sum(1, keepdims=True), np.take_along_axis(dy, values, axis=1)
    slope = weights * (of_token - (weights * of_token).sum(1, keepdims=True)) / np.sqrt(keys.shape[2])
    return {"keys": slope[..., None] * query[:, None], "query": (slope[..., None] * keys).sum(1)}


def delta_gradient(dy, keys, values, beta, query, n_values):
    total, den = keys.sum(2, keepdims=True), query.sum(1, keepdims=True) + 1e-6
    tokens = written(keys / total, values, beta, n_values, clamps=False)
    y = read(tokens[-1][-1], query) / den
    dk, dbeta = written_gradient(outer(dy / den, query), keys / total, beta, tokens)
    dquery = (read(tokens[-1][-1].swapaxes(1, 2), dy) - (dy * y).sum(1, keepdims=True)) / den
    return {"keys": (dk - (dk * keys / total).sum(2, keepdims=True)) / total, "beta": dbeta, "query": dquery}


def fwm_gradient(dy, keys, values, beta, query, n_values):
    tokens = written(keys, values, beta, n_values, clamps=True)
    answer = read(tokens[-1][-1], query)
    y, deviation = layer_norm(answer), np.sqrt(answer.var(1, keepdims=True) + 1e-5)
    danswer = (dy - dy.mean(1, keepdims=True) - y * (dy * y).mean(1, keepdims=True)) / deviation
    dk, dbeta = written_gradient(outer(danswer, query), keys, beta, tokens)
    return {"keys": dk, "beta": dbeta, "query": read(tokens[-1][-1].swapaxes(1, 2), danswer)}


def written(keys, values, beta, n_values, clamps):
    """Of each token: the memory before it, the error v - W k, the norm divided by, the memory after it."""
    memory, tokens = np.zeros((len(keys), n_values, keys.shape[2])), []
    for t in range(keys.shape[1]):
        before, error = memory, np.eye(n_values)[values[:, t]] - read(memory, keys[:, t])
        memory = before + outer(beta[:, t, None] * error, keys[:, t])
        norm = np.maximum(1, frobenius(memory)) if clamps and t > 0 else np.ones(len(keys))
        memory = memory / norm[:, None, None]
        tokens.append((before, error, norm, memory))
    return tokens


def written_gradient(dmemory, keys, beta, tokens):
    """dkeys and dbeta from the gradient of the last memory; each line undoes one of `written`."""
    dkeys, dbeta = np.empty(keys.shape), np.empty(beta.shape)
    for t in reversed(range(keys.shape[1])):
        before, error, norm, after = tokens[t]
        along = np.where(norm > 1, (dmemory * after).sum((1, 2)), 0)  # W / |W|: dW = (d - <d, W> W) / |W|
        dmemory = (dmemory - along[:, None, None] * after) / norm[:, None, None]
        dwritten = read(dmemory, keys[:, t])
        dbeta[:, t], derror = (dwritten * error).sum(1), beta[:, t, None] * dwritten
        dkeys[:, t] = beta[:, t, None] * read(dmemory.swapaxes(1, 2), error) - read(before.swapaxes(1, 2), derror)
        dmemory = dmemory - outer(derror, keys[:, t])
    return dkeys, dbeta


def outer(a, b):
    return a[:, :, None] * b[:, None, :]


def map_gradient(phi, dy, x, *argument):
    """By one complex step a channel, which serves all rows."""
    dx = np.empty(x.shape)
    for i in range(x.shape[-1]):
        moved = x.astype(np.complex128)
        moved[..., i] += 1e-30j
        dx[..., i] = (dy * phi(moved, *argument)).imag.sum(-1) / 1e-30
    return dx


# --- the model -----------------------------------------------------------------------------------------------------

MAPS = {"linear": elu1, "tanh": tanh, "dpfp": dpfp, "favor": favor}
READOUTS = {"sum": sum_rule, "fwm": fwm_rule, "ours": delta_rule, "softmax": softmax_rule}
GRADIENTS = {"sum": sum_gradient, "fwm": fwm_gradient, "ours": delta_gradient, "softmax": softmax_gradient}
WITH_BETA = ("fwm", "ours")
NEVER_TRAINED = ("embeddingV.weight", "W_v.weight", "W_v.bias", "W_f.weight", "W_f.bias")


def trained_names(rule):
    names = ["embeddingK.weight", "W_k.weight", "W_k.bias", "W_q.weight", "W_q.bias"]
    return [*names, "W_b.weight", "W_b.bias"] if rule in WITH_BETA else names


def project(parameters, map_name, argument, keys, values, query):
    """What goes into a rule: mapped keys (B, L, p), beta (B, L) or None, mapped query (B, p).

    keys and query are tokens 0..N-1, values 0..N-1; map_name None is softmax's: keys and query as they are.
    """
    embedding, one_hot = parameters["embeddingK.weight"], np.eye(parameters["embeddingV.weight"].shape[0])
    x = np.concatenate([one_hot[values], embedding[keys]], axis=-1)  # (B, L, N + E)
    k = x @ parameters["W_k.weight"].T + parameters["W_k.bias"]
    q = embedding[query] @ parameters["W_q.weight"].T + parameters["W_q.bias"]
    if map_name is not None:
        phi, arguments = MAPS[map_name], () if argument is None else (argument,)
        k, q = phi(k, *arguments), phi(q, *arguments)
    beta = None
    if "W_b.weight" in parameters:
        beta = 1 / (1 + np.exp(-(x @ parameters["W_b.weight"].T + parameters["W_b.bias"])))[..., 0]
    return k, beta, q


def read_out(parameters, map_name, argument, rule, keys, values, query):
    """y (B, N): what the memory of each sequence answers to its query."""
    k, beta, q = project(parameters, map_name, argument, keys, values, query)
    return READOUTS[rule](k, values, beta, q, parameters["embeddingV.weight"].shape[0])


def loss(parameters, map_name, argument, rule, batch):
    """Mean over the batch of 0.5 |one-hot(answer) - y|^2; batch is (keys, values, query, answer), values as 0..N-1."""
    keys, values, query, answer = batch
    y = read_out(parameters, map_name, argument, rule, keys, values, query)
    miss = np.eye(y.shape[1])[answer] - y
    return (0.5 * (miss * miss).sum(1)).mean()


def gradient(f, arrays, h=1e-30):
    """df/da of every array of a dict, f(arrays) a real scalar, by one complex step an element."""
    result = {}
    for name, array in arrays.items():
        result[name] = np.zeros(array.shape)
        for i in np.ndindex(array.shape):
            moved = array.astype(np.complex128)
            moved[i] += 1j * h
            result[name][i] = f({**arrays, name: moved}).imag / h
    return result


def loss_gradient(parameters, map_name, argument, rule, batch):
    """The gradient of `loss` with respect to the trained parameters.

    The loss of a sequence is NaN where a rule divides by the sum of no features. Its slope then is NaN in every number
    that its keys, strengths or query depend on, and 0 in the others.
    """
    keys, values, query, answer = batch
    arguments = () if argument is None else (argument,)
    raw_k, beta, raw_q = project(parameters, None, None, keys, values, query)
    k, _, q = project(parameters, map_name, argument, keys, values, query)
    y = READOUTS[rule](k, values, beta, q, parameters["embeddingV.weight"].shape[0])
    d = GRADIENTS[rule]((y - np.eye(y.shape[1])[answer]) / len(y), k, values, beta, q, y.shape[1])
    if map_name is not None:
        d["keys"] = map_gradient(MAPS[map_name], d["keys"], raw_k, *arguments)
        d["query"] = map_gradient(MAPS[map_name], d["query"], raw_q, *arguments)
    lost = np.isnan(y).any(1)
    slopes = project_gradient(parameters, d, beta, batch, ~lost)
    anything = {name: np.cos(np.arange(a.size)).reshape(a.shape) for name, a in d.items()}
    for b in np.flatnonzero(lost):
        alone = project_gradient(parameters, anything, beta, batch, np.arange(len(y)) == b)
        slopes = {name: slope + np.where(alone[name] == 0, 0, np.nan) for name, slope in slopes.items()}
    return {name: slopes[name] for name in trained_names(rule)}


def project_gradient(parameters, d, beta, batch, of):
    """From the gradients of keys and query before the map, and of beta, those of the parameters, of some sequences."""
    keys, values, query, _ = (array[of] for array in batch)
    d = {name: array[of] for name, array in d.items()}
    embedding, n = parameters["embeddingK.weight"], parameters["embeddingV.weight"].shape[0]
    x = np.concatenate([np.eye(n)[values], embedding[keys]], axis=-1)
    into, of_embedding = {"W_k": d["keys"]}, np.zeros(embedding.shape)
    if "beta" in d:
        into["W_b"] = (d["beta"] * beta[of] * (1 - beta[of]))[..., None]
    slopes = {"W_q.weight": d["query"].T @ embedding[query], "W_q.bias": d["query"].sum(0)}
    np.add.at(of_embedding, query, d["query"] @ parameters["W_q.weight"])
    for name, dx in into.items():
        slopes |= {f"{name}.weight": np.einsum("bli,blj->ij", dx, x), f"{name}.bias": dx.sum((0, 1))}
        np.add.at(of_embedding, keys, (dx @ parameters[f"{name}.weight"])[..., n:])
    return slopes | {"embeddingK.weight": of_embedding}
