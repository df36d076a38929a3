"""The kernels on NumPy arrays: a memory written, read, trained by gradient descent, and read token by token.

    pip install fwm_py && python examples/numpy_kernels.py

Eight keys are written with their values and then asked for. The keys are not orthogonal, so a memory that only adds up
what it is given answers with a mixture; the delta rule corrects what it finds. Then the write strengths are learned, by
the gradients that come with every function.
"""

import numpy as np

import fwm_py

random = np.random.default_rng(0)
N, K, V = 8, 16, 4
keys, values = random.standard_normal((N, K)), random.standard_normal((N, V))
keys /= np.linalg.norm(keys, axis=1, keepdims=True)

# A sequence of one head: N tokens write, N tokens (of strength 0) read. Arrays are (B, T, heads, size).
k = np.concatenate([keys, keys])[None, :, None]
v = np.concatenate([values, np.zeros_like(values)])[None, :, None]
q = k.copy()


def error(o):
    return np.sqrt(np.mean((o[0, N:, 0] - values) ** 2))


adding, _ = fwm_py.linear_attention(q, k, v, scale=1.0)
print(f"a sum answers with an error of      {error(adding):.3f}")

strength = np.full(N, 0.5)
for step in range(200):
    beta = np.concatenate([strength, np.zeros(N)])[None, :, None]
    o, _ = fwm_py.delta_rule(q, k, v, beta, scale=1.0)
    if step == 0:
        print(f"the delta rule, strengths 0.5:      {error(o):.3f}")
    do = np.zeros_like(o)
    do[0, N:, 0] = (o[0, N:, 0] - values) / N  # of half the mean squared error
    gradients = fwm_py.delta_rule_backward(do, q, k, v, beta, scale=1.0)
    strength -= 0.2 * gradients.dbeta[0, :N, 0]
print(f"the delta rule, strengths learned:  {error(o):.3f}")

# Token by token, the state in place, as in decoding: the same answers.
state, out = np.zeros((1, 1, K, V)), np.empty((1, 1, 1, V))
answers = []
for t in range(2 * N):
    token = (slice(None), slice(t, t + 1))
    fwm_py.delta_rule(q[token], k[token], v[token], beta[token], scale=1.0, initial_state=state, out=(out, state))
    answers.append(out.copy())
assert np.allclose(np.concatenate(answers, axis=1), fwm_py.delta_rule(q, k, v, beta, scale=1.0)[0])
