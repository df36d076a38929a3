"""What this machine can do at most, and what a training step has to do at least.

    python benchmarks/roofline.py [threads]      the two rates, and the least work of the benchmark's steps

Rates: the float32 product of big square matrices (FLOP/s) and the triad a = b + s c (bytes/s, three arrays of the
stated size together), with the threads torch was told to use. Work: FLOP and bytes of one training step by formulas,
for the fast forms (docs/mathematics). The limit is the larger of FLOP / product rate and bytes / triad rate.

The counts are lower bounds that leave out whatever an implementation might avoid:
- FLOP: the matrix products and the work per token that the forms need, an exponential counted as EXP_FLOP. Work per
  token is no matrix product and cannot run at the product rate, so a share well under 100 % is no waste by itself.
- bytes: the trained numbers that a step touches, each read in the forward pass, read in the backward pass, and updated
  by Adam (parameter and two moments read and written); gradients and all that belongs to one sequence are supposed
  to stay in a core's cache.
"""

import platform
import sys
import time
from dataclasses import dataclass

import torch

EXP_FLOP = 20  # range reduction, a polynomial of degree 6 and the scaling
PARAMETER_BYTES = 4 * (1 + 1 + 6)
ADAM_FLOP = 13
PRODUCT_SIZE = 2048
QR_FLOP = 8 / 3  # Householder QR and forming Q, times d^3


# ---- the machine ------------------------------------------------------------------------------------------------


def cpu_model():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def best_rate(amount, call, seconds=0.3):
    """`amount` by the shortest time of a call, over as many calls as fit into about `seconds`."""
    call()
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - start)
    return amount / shortest


def product_rate(threads):
    """FLOP/s of a float32 matrix product."""
    torch.set_num_threads(threads)
    a, b = torch.rand(2, PRODUCT_SIZE, PRODUCT_SIZE)
    c = torch.empty_like(a)
    return best_rate(2 * PRODUCT_SIZE**3, lambda: torch.matmul(a, b, out=c))


def triad_rate(threads, n_bytes):
    """bytes/s of a = b + s c, with three float32 arrays that take n_bytes together."""
    torch.set_num_threads(threads)
    n = max(int(n_bytes) // 12, 1024)
    a, b, c = (torch.rand(n) for _ in range(3))
    calls = max(1, 4_000_000 // n)  # a call too short to be timed is repeated

    def triad():
        for _ in range(calls):
            torch.add(b, c, alpha=3.0, out=a)

    return best_rate(12 * n * calls, triad)


# ---- the step ---------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """Least work of a training step. `working_set`: bytes of the parameters and moments it touches."""

    flop: float
    bytes: float
    working_set: float


def feature_size(attn_name, attn_arg, d):
    return {"dpfp": 2 * d * attn_arg, "favor": 2 * attn_arg}.get(attn_name, d)


def map_flop(attn_name, attn_arg, d):
    """FLOP of one token's feature map, its derivative included, beyond products."""
    if attn_name == "dpfp":
        return 5 * feature_size(attn_name, attn_arg, d)  # one multiplication, then four for the two factors' gradients
    if attn_name == "favor":
        # u, |x|^2, two exponentials; two products and two sums for du, its share of dx added to both tables
        return attn_arg * (1 + 2 * (EXP_FLOP + 1) + 4 + 2) + 4 * d
    return d * (EXP_FLOP + 3)


def rule_flop(settings, p):
    """FLOP of one token in the rule, forwards and backwards, from its p features on."""
    if settings.rule == "sum":
        return 2 * p + 3 * p  # the score; the key's gradient and its part of the query's
    if settings.rule == "ours":
        # forwards: sum and normalisation, k . u, u - a k; backwards: u + a k, w . k, dk, w + da k, dphi
        return (2 + 2 + 2) * p + (2 + 2 + 3 + 2 + 4) * p
    # fwm: two passes forwards and four backwards over the rows in use, each a multiply and add per number. Ours leaves
    # out rows and tokens that have faded, so that its share of this limit may pass 100 %.
    return 6 * 2 * p * rows_in_use(settings.n_keys, settings.seq_len, settings.replace)


def rows_in_use(n_keys, seq_len, replace):
    """Mean number of distinct values before token t, over the tokens t = 1..seq_len."""
    if not replace:
        return (seq_len - 1) / 2
    unseen = 1 - 1 / n_keys  # the chance that a token leaves a given value out
    return n_keys * (1 - (1 - unseen**seq_len) / (seq_len * (1 - unseen)))


def product_flop(settings, embedding_size):
    """FLOP of the products between parameters: projections of keys and queries, and their gradients."""
    N, B, d, E = settings.n_keys, settings.resolved_batch_size, settings.hidden_size, embedding_size
    queries = 3 * 2 * B * E * d
    if settings.rule == "softmax":
        # Q W_k, (.) E^T, dS E, dS^T (Q W_k), Q^T (dS E), (dS E) W_k^T
        return queries + 3 * 2 * B * d * (N + E) + 3 * 2 * B * N * E
    flop = queries + 3 * 2 * N * E * d
    if settings.map == "favor":
        m = settings.attn_arg
        blocks = -(-m // d)
        flop += 2 * (2 * N + B) * 2 * d * m  # P omega, W_v omega and the queries' forwards, the gradients backwards
        flop += blocks * (QR_FLOP * d**3 + 2 * EXP_FLOP * d * d)
    return flop


def training_step(settings):
    """The least Work of one training step of `settings` (fwm_py.experiments.retrieval.Settings)."""
    N, B, d, L = settings.n_keys, settings.resolved_batch_size, settings.hidden_size, settings.seq_len
    E = int(2 * N * 1.1)
    if settings.rule == "softmax":
        per_token = EXP_FLOP + 8  # a score and its gradient are sums of two table entries
    else:
        p = feature_size(settings.map, settings.attn_arg, d)
        # a pre-activation is the sum of two rows, and its gradient is added to both
        per_token = 3 * d + map_flop(settings.map, settings.attn_arg, d) + rule_flop(settings, p)
    trained = N * E + d * (N + E) + d + d * E + d  # of embeddingK, the N rows of the keys
    if settings.rule in ("ours", "fwm"):
        trained += N + E + 1
    flop = product_flop(settings, E) + B * L * per_token + ADAM_FLOP * trained
    return Work(flop=flop, bytes=PARAMETER_BYTES * trained, working_set=3 * 4 * trained)


def rates(settings, threads):
    """FLOP/s of products, and bytes/s of a triad on arrays as large as what a step of `settings` works on."""
    return product_rate(threads), triad_rate(threads, training_step(settings).working_set)


def main():
    from bench_train import CASES

    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    for n in range(1, threads + 1):
        triads = ", ".join(f"{triad_rate(n, size * 2**20) / 1e9:.0f} of {size} MiB" for size in (3, 24, 384))
        print(f"{n} threads: {product_rate(n) / 1e9:.0f} GFLOP/s; triad in GB/s: {triads}")
    for name, settings in CASES.items():
        work = training_step(settings)
        print(f"{name}: {work.flop / 1e6:.0f} MFLOP, {work.bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
