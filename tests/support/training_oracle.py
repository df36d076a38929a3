"""The training of the retrieval experiment in plain NumPy: Adam, initial parameters, data, evaluation, a whole run."""

import numpy as np

from support.oracle import draw_omega, loss, loss_gradient, trained_names

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
        return self._asked(self.n_keys, 200)

    def recall(self):
        """The same with sequences as long as a batch's, and all their keys."""
        return self._asked(2 * self.n_keys if self.replace else self.n_keys, None)

    def _asked(self, length, most):
        sequences = []
        for _ in range(20):
            keys, values = self._sequence(length)
            queries = np.unique(keys)[:most]
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
        slopes = loss_gradient(parameters, map_name, fixed, rule, batch)
        adam.update(trained, slopes, lr)  # in place: the arrays are those of `parameters`
        if step % 100 == 0:
            rows.append((step, evaluate(stream, one_loss)))
    return losses, rows
