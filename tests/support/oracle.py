"""The experiments in plain NumPy, written from their equations: what the C code is tested against.

Nothing here is clever: one loop over the tokens of a sequence, the memory W kept whole (N x p), the input of the
projections written out (N + E wide), gradients without any derivation. B sequences go side by side in the first axis.

Symbols: N keys and N values, L tokens a sequence, B sequences, d the width of the projections, E the width of an
embedding, p the width of a feature map. Values are 0..N-1 here, tokens N..2N-1 in a batch.

Every function of real arrays also takes complex ones, because `gradient` differentiates by the complex step:
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


# --- rules: keys (B, L, p), values (B, L) integers, beta (B, L) or None, query (B, p) -> y (B, N) -------------------


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


# --- the model -----------------------------------------------------------------------------------------------------

MAPS = {"linear": elu1, "tanh": tanh, "dpfp": dpfp, "favor": favor}
RULES = {"sum": sum_rule, "fwm": fwm_rule, "ours": delta_rule, "softmax": softmax_rule}
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
    return RULES[rule](k, values, beta, q, parameters["embeddingV.weight"].shape[0])


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
    """The gradient of `loss` with respect to the trained parameters: the mean of that of each sequence.

    The loss of a sequence is NaN where a rule divides by the sum of no features. Its slope then is NaN in every number
    that its keys, strengths or query depend on, and 0 in the others.
    """
    trained = {name: parameters[name] for name in trained_names(rule)}

    def of_sequence(sequence):
        def its_loss(moved):
            return loss({**parameters, **moved}, map_name, argument, rule, sequence)

        def its_inputs(moved):
            parts = project({**parameters, **moved}, None, None, *sequence[:3])
            return sum((np.cos(np.arange(a.size)) * a.ravel()).sum() for a in parts if a is not None)

        if not np.isnan(its_loss({})):
            return gradient(its_loss, trained)
        return {name: np.where(slope == 0, 0, np.nan) for name, slope in gradient(its_inputs, trained).items()}

    slopes = [of_sequence([a[i : i + 1] for a in batch]) for i in range(len(batch[0]))]
    return {name: np.mean([slope[name] for slope in slopes], axis=0) for name in trained}


# --- Adam ----------------------------------------------------------------------------------------------------------


class Adam:
    """Dense, betas 0.9 and 0.999, eps 1e-8: a row without a gradient still moves while its first moment fades."""

    def __init__(self, arrays):
        self.step = 0
        self.m = {name: np.zeros(a.shape) for name, a in arrays.items()}
        self.v = {name: np.zeros(a.shape) for name, a in arrays.items()}

    def update(self, arrays, gradients, lr):
        self.step += 1
        for name, g in gradients.items():
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
            rate = lr / (1 - 0.9**self.step)
            arrays[name] -= rate * self.m[name] / (np.sqrt(self.v[name]) / np.sqrt(1 - 0.999**self.step) + 1e-8)


# --- initial parameters: the torch CPU generator -------------------------------------------------------------------


class TorchCpu:
    """torch.manual_seed(seed) on a CPU: the 32-bit words of MT19937, and how torch makes floats of them."""

    def __init__(self, seed):
        self.words = np.random.RandomState(seed)
        self.spare = None

    def bits(self, n):
        return self.words.randint(0, 2**32, size=n, dtype=np.uint32).astype(np.uint64)

    def uniform(self, shape, low, high):
        """x (high - low) + low, rounded once to float32 (the products and sums are exact in float64)."""
        x = (self.bits(int(np.prod(shape))) & np.uint64(2**24 - 1)) * 2.0**-24
        low, high = np.float32(low), np.float32(high)
        return (x * np.float64(high - low) + np.float64(low)).astype(np.float32).reshape(shape)

    def normal(self, n):
        """n float32 normals: Box-Muller on blocks of 16 uniforms, or on pairs of doubles when n < 16."""
        if n < 16:
            return np.array([self._one_normal() for _ in range(n)], np.float32)
        x = self.uniform(n, 0, 1)
        blocks = n // 16
        x[: 16 * blocks] = self._box_muller(x[: 16 * blocks])
        if n % 16:
            x[-16:] = self._box_muller(self.uniform(16, 0, 1))  # the last 16 are drawn again
        return x

    @staticmethod
    def _box_muller(uniforms):
        x = uniforms.reshape(-1, 2, 8).astype(np.float64)
        radius = np.sqrt(-2 * np.log(1 - x[:, 0])).astype(np.float32)
        angle = (np.float64(np.float32(2 * np.pi)) * x[:, 1]).astype(np.float32)
        pairs = np.stack([radius * np.cos(angle, dtype=np.float64), radius * np.sin(angle, dtype=np.float64)], axis=1)
        return pairs.astype(np.float32).reshape(-1)

    def _one_normal(self):
        if self.spare is not None:
            value, self.spare = self.spare, None
            return value
        u = [((int(hi) << 32 | int(lo)) & (2**53 - 1)) * 2.0**-53 for hi, lo in self.bits(4).reshape(2, 2)]
        radius, angle = np.sqrt(-2 * np.log1p(-u[1])), 2 * np.pi * u[0]
        self.spare = radius * np.sin(angle)
        return radius * np.cos(angle)


def initial_parameters(n_keys, d, softmax, generator):
    """Published names -> float32 arrays, drawn in the published order from a TorchCpu (which goes on afterwards)."""
    n, e = n_keys, int(2 * n_keys * 1.1)
    parameters = {"embeddingV.weight": np.eye(n, dtype=np.float32)}
    generator.normal(n * n)  # drawn, then overwritten by the identity
    generator.normal(2 * n * e)  # drawn, then overwritten below
    shapes = {"W_k": (d, e + n), "W_v": (d, e + n), "W_q": (d, e)}
    if not softmax:
        shapes.update({"W_f": (d, e + n), "W_b": (1, e + n)})
    for name, shape in shapes.items():
        bound = 1 / np.sqrt(shape[1])
        parameters[name + ".weight"] = generator.uniform(shape, -bound, bound)
        parameters[name + ".bias"] = generator.uniform(shape[:1], -bound, bound)
    parameters["embeddingK.weight"] = generator.normal(2 * n * e).reshape(2 * n, e)
    for name in ("W_v", "W_k", "W_q"):
        xavier = np.sqrt(6 / sum(shapes[name]))
        bound = xavier if softmax or name == "W_v" else 1 / np.sqrt(d)
        parameters[name + ".weight"] = generator.uniform(shapes[name], -bound, bound)
    return parameters


# --- data and evaluation -------------------------------------------------------------------------------------------


class Stream:
    """Batches and evaluation sequences; one RandomState serves both, in the order they are asked for."""

    def __init__(self, seed, n_keys, batch_size, replace):
        self.random = np.random.RandomState(seed)
        self.n_keys, self.batch_size, self.replace = n_keys, batch_size, replace

    def _sequence(self, length):
        n = self.n_keys
        keys = self.random.choice(np.arange(n), size=length, replace=self.replace)
        values = self.random.choice(np.arange(n, 2 * n), size=length, replace=self.replace)
        return keys, values

    def batch(self):
        """keys (B, L), values (B, L), query (B,), answer (B,)."""
        length = 2 * self.n_keys if self.replace else self.n_keys
        rows = []
        for _ in range(self.batch_size):
            keys, values = self._sequence(length)
            query = self.random.choice(keys)
            rows.append((keys, values, query, values[keys == query][-1]))
        return tuple(np.array(column) for column in zip(*rows))

    def evaluation(self):
        """20 times keys (N,), values (N,), queries (n,), answers (n,): the distinct keys in order, at most 200."""
        sequences = []
        for _ in range(20):
            keys, values = self._sequence(self.n_keys)
            queries = np.unique(keys)[:200]
            sequences.append((keys, values, queries, np.array([values[keys == q][-1] for q in queries])))
        return sequences


def pairwise_mean(losses):
    """The mean of float32 numbers as NumPy adds them; the order decides the last bits of an evaluation."""
    losses = np.asarray(losses, np.float32)
    return _pairwise_sum(losses) / np.float32(len(losses))


def _pairwise_sum(x):
    if len(x) > 128:
        half = len(x) // 2 // 8 * 8
        return _pairwise_sum(x[:half]) + _pairwise_sum(x[half:])
    whole = len(x) // 8 * 8
    total = np.float32(0)
    if whole:
        s = x[:8].copy()
        for i in range(8, whole, 8):
            s = s + x[i : i + 8]
        total = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))
    for value in x[whole:]:
        total = total + value
    return total


def evaluate(stream, chunk_loss):
    """Evaluation loss, float32. `chunk_loss(batch)` is the loss of up to B queries, all on the same sequence."""
    losses = []
    for keys, values, queries, answers in stream.evaluation():
        for start in range(0, len(queries), stream.batch_size):
            query, answer = queries[start : start + stream.batch_size], answers[start : start + stream.batch_size]
            same = np.ones((len(query), 1), np.int64)
            losses.append(chunk_loss((same * keys, same * values - stream.n_keys, query, answer - stream.n_keys)))
    return pairwise_mean(losses)


# --- a whole training run ------------------------------------------------------------------------------------------


def train(n_keys, d, map_name, argument, rule, replace, batch_size, seed, lr, max_steps):
    """(training losses, [(step, evaluation loss)]) of max_steps steps in float64; slow, for tiny sizes only.

    FAVOR+ (argument = m) draws a new Omega for every forward pass, from the generator of the initialisation.
    """
    generator, stream = TorchCpu(seed), Stream(seed, n_keys, batch_size, replace)
    parameters = initial_parameters(n_keys, d, rule == "softmax", generator)
    parameters = {name: a.astype(np.float64) for name, a in parameters.items()}
    trained = {name: parameters[name] for name in trained_names(rule)}
    adam, losses, rows = Adam(trained), [], []

    def map_argument():
        if map_name != "favor":
            return argument
        return draw_omega(d, argument, generator.normal).astype(np.float32).astype(np.float64)

    def one_loss(batch):
        return loss(parameters, map_name, map_argument(), rule, batch)

    for step in range(1, max_steps + 1):
        keys, values, query, answer = stream.batch()
        batch, fixed = (keys, values - n_keys, query, answer - n_keys), map_argument()
        losses.append(loss(parameters, map_name, fixed, rule, batch))
        slopes = gradient(lambda a: loss({**parameters, **a}, map_name, fixed, rule, batch), trained)
        adam.update(trained, slopes, lr)  # in place: the arrays are those of `parameters`
        if step % 100 == 0:
            rows.append((step, evaluate(stream, one_loss)))
    return losses, rows
