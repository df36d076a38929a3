"""The training step of the experiments as a PyTorch user writes it from the equations: the package's yardstick.

    python benchmarks/torch_program.py [threads]      milliseconds of a step, for four of the benchmark's cases

Every token's input [value ; key embedding] is formed and projected (B x L x (N + E)), every memory is kept
as the equations have it (B x N x p), the update rules loop over time, autograd does the rest.
Parameters bear the published names, so `load_state_dict` takes those of `fwm_py.experiments.retrieval.Model`.

Shapes: B sequences, L tokens, N keys and N values, d hidden units, E embedding size, p size of the feature map.
"""

import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

READ_OUT_EPS = 1e-6


# ---- feature maps: (..., d) -> (..., p) -------------------------------------------------------------------------


def elu1(x):
    return F.elu(x) + 1


def dpfp(x, nu):
    r = torch.cat([F.relu(x), F.relu(-x)], dim=-1)
    return torch.cat([r * r.roll(shift, dims=-1) for shift in range(1, nu + 1)], dim=-1)


def favor(x, omega):
    u = x @ omega
    offset = 0.5 * (x.square().sum(dim=-1, keepdim=True) + math.log(2 * omega.shape[1]))
    return torch.cat([torch.exp(u - offset), torch.exp(-u - offset)], dim=-1)


def draw_omega(d, m):
    """FAVOR+'s random features (d, m): orthogonal d x d blocks, column c as long as row c of a normal matrix."""
    blocks = []
    for _ in range(math.ceil(m / d)):
        normal = torch.randn(d, d)
        blocks.append(torch.linalg.qr(normal).Q * normal.norm(dim=1))
    return torch.cat(blocks, dim=1)[:, :m]


# ---- update rules with their read-outs: keys K (B, L, p), one-hot values V (B, L, N), query q (B, p) -> (B, N) --


def sum_rule(K, V, q):
    W = torch.einsum("bln,blp->bnp", V, K)
    z = K.sum(dim=1)
    return torch.einsum("bnp,bp->bn", W, q) / (torch.einsum("bp,bp->b", z, q).unsqueeze(-1) + READ_OUT_EPS)


def softmax_rule(K, V, q):
    scores = torch.einsum("bld,bd->bl", K, q) / math.sqrt(K.shape[-1])
    return torch.einsum("bl,bln->bn", torch.softmax(scores, dim=1), V)


def write(W, k, v, beta):
    """Moves what the memory W (B, N, p) answers to the key k (B, p) towards the value v (B, N) by beta (B, 1)."""
    answer = torch.einsum("bnp,bp->bn", W, k)
    return W + torch.einsum("bn,bp->bnp", beta * (v - answer), k)


def delta_rule(K, V, q, beta):
    W = K.new_zeros(V.shape[0], V.shape[2], K.shape[2])
    for t in range(K.shape[1]):
        k = K[:, t]
        W = write(W, k / k.sum(dim=-1, keepdim=True), V[:, t], beta[:, t])
    return torch.einsum("bnp,bp->bn", W, q) / (q.sum(dim=-1, keepdim=True) + READ_OUT_EPS)


def fwm_rule(K, V, q, beta):
    W = K.new_zeros(V.shape[0], V.shape[2], K.shape[2])
    for t in range(K.shape[1]):
        W = write(W, K[:, t], V[:, t], beta[:, t])
        if t > 0:
            clamp = F.relu(W.flatten(start_dim=1).norm(dim=1) - 1) + 1
            W = W / clamp[:, None, None]
    y = torch.einsum("bnp,bp->bn", W, q)
    return F.layer_norm(y, y.shape[-1:])


# ---- model and step ---------------------------------------------------------------------------------------------


class RetrievalModel(nn.Module):
    """One query a sequence about L pairs of key and value; the parameters are named as in the published program."""

    def __init__(self, n_keys, attn_name, attn_arg, update_rule, hidden_size=64):
        super().__init__()
        embedding_size = int(2 * n_keys * 1.1)
        self.n_keys, self.hidden_size = n_keys, hidden_size
        self.attn_name, self.attn_arg = attn_name, attn_arg
        self.rule = "softmax" if attn_name == "softmax" else update_rule
        self.register_buffer("one_hot", torch.eye(n_keys), persistent=False)
        self.embeddingK = nn.Embedding(2 * n_keys, embedding_size)
        self.W_k = nn.Linear(n_keys + embedding_size, hidden_size)
        self.W_q = nn.Linear(embedding_size, hidden_size)
        for weight in (self.W_k.weight, self.W_q.weight):
            nn.init.uniform_(weight, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))
        if self.rule in ("ours", "fwm"):
            self.W_b = nn.Linear(n_keys + embedding_size, 1)

    def feature_map(self, omega=None):
        """The map of one forward pass: FAVOR+ draws a new omega (d, m) unless one is given."""
        if self.attn_name == "favor":
            omega = draw_omega(self.hidden_size, self.attn_arg) if omega is None else omega
        return {
            "softmax": lambda x: x,
            "linear": elu1,
            "tanh": torch.tanh,
            "dpfp": lambda x: dpfp(x, self.attn_arg),
            "favor": lambda x: favor(x, omega),
        }[self.attn_name]

    def forward(self, keys, values, query, omega=None):
        """Tokens keys (B, L) and values (B, L), 0..N-1 and N..2N-1, query (B,) -> the answer's scores (B, N)."""
        phi = self.feature_map(omega)
        V = self.one_hot[values - self.n_keys]
        x = torch.cat([V, self.embeddingK.weight[keys]], dim=-1)
        K = phi(self.W_k(x))
        q = phi(self.W_q(self.embeddingK.weight[query]))
        if self.rule == "softmax":
            return softmax_rule(K, V, q)
        if self.rule == "sum":
            return sum_rule(K, V, q)
        beta = torch.sigmoid(self.W_b(x))
        return (delta_rule if self.rule == "ours" else fwm_rule)(K, V, q, beta)

    def loss(self, keys, values, query, answer, omega=None):
        target = self.one_hot[answer - self.n_keys]
        return (0.5 * (target - self(keys, values, query, omega)).square()).sum(dim=-1).mean()


class TrainingStep:
    """Loss, gradients and Adam on a batch that is ready: step(keys, values, query, answer) -> loss."""

    def __init__(self, model, lr=1e-3):
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def __call__(self, *batch):
        loss = self.model.loss(*batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def draw_batch(n_keys, replace, batch_size):
    """A batch of the experiment, from torch's generator: keys, values (B, L), query, answer (B,)."""
    if replace:
        keys, values = torch.randint(n_keys, (2, batch_size, 2 * n_keys))
    else:
        keys, values = torch.rand(2, batch_size, n_keys).argsort(dim=-1)
    values = values + n_keys
    rows, positions = torch.arange(batch_size), torch.randint(keys.shape[1], (batch_size,))
    query = keys[rows, positions]
    last = keys.shape[1] - 1 - (keys == query[:, None]).flip(1).int().argmax(dim=1)
    return keys, values, query, values[rows, last]


CASES = [  # attn_name, attn_arg, update_rule, n_keys, replace, batch_size, lr
    ("dpfp", 1, "sum", 600, False, 32, 1e-3),
    ("softmax", 0, "sum", 600, False, 32, 1e-3),
    ("dpfp", 1, "ours", 200, True, 32, 1e-3),
    ("tanh", 0, "fwm", 200, True, 128, 1e-4),
]


def main():
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    for attn_name, attn_arg, update_rule, n_keys, replace, batch_size, lr in CASES:
        step = TrainingStep(RetrievalModel(n_keys, attn_name, attn_arg, update_rule), lr)
        seconds = []
        for _ in range(8):
            batch = draw_batch(n_keys, replace, batch_size)
            start = time.perf_counter()
            step(*batch)
            seconds.append(time.perf_counter() - start)
        timed = seconds[3:]  # the first steps fill the allocator
        print(
            f"{attn_name}{attn_arg} {update_rule} N={n_keys}: median {1e3 * statistics.median(timed):.0f} ms, "
            f"minimum {1e3 * min(timed):.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
