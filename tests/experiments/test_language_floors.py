"""The perplexities of n-gram models, against the same formulas with dictionaries, one n-gram after the other."""

import collections
import math

import numpy as np
import pytest

from fwm_py.experiments.language.floors import KneserNey, floors, perplexity


class Oracle:
    """Interpolated Kneser-Ney as it is written down: `p(context, w)`, the context a tuple."""

    def __init__(self, tokens, V, order):
        self.V = V
        counts = collections.Counter(zip(*(tokens[i:] for i in range(order))))
        self.counts = {order: counts}
        for k in range(order - 1, 0, -1):
            before = collections.defaultdict(set)
            for gram in self.counts[k + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[k] = {gram: len(tokens) for gram, tokens in before.items()}
        self.discounts = {}
        for k, found in self.counts.items():
            n1, n2 = (sum(count == n for count in found.values()) for n in (1, 2))
            self.discounts[k] = n1 / (n1 + 2 * n2) if n1 else 0.5

    def p(self, context, w):
        k = len(context) + 1
        lower = self.p(context[1:], w) if context else 1 / self.V
        followers = {gram[-1]: count for gram, count in self.counts[k].items() if gram[:-1] == context}
        total, D = sum(followers.values()), self.discounts[k]
        if total == 0:
            return lower
        return max(followers.get(w, 0) - D, 0) / total + D * len(followers) / total * lower


def drawn(n, V, seed):
    """Tokens in which some n-grams are frequent and others never occur."""
    random = np.random.default_rng(seed)
    return ((random.zipf(1.6, n) + 3 * (np.arange(n) % 2)) % V).astype(np.uint16)


CASES = [(200, 7, 1), (60, 9, 2), (3, 4, 3), (2, 3, 4), (1, 2, 5), (500, 3, 6)]  # n, V, seed


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("n, V, seed", CASES)
def test_every_probability_and_sum(n, V, seed, order):
    train = drawn(n, V, seed)
    model, oracle = KneserNey(train, V, order), Oracle(train.tolist(), V, order)
    for number in range(V ** (order - 1)):
        context = tuple(number // V**i % V for i in range(order - 1))
        ours = [model.probabilities(np.array([*context, w]))[-1] for w in range(V)]
        assert sum(ours) == pytest.approx(1, abs=1e-10)
        assert ours == pytest.approx([oracle.p(context, w) for w in range(V)], rel=1e-10)
        assert min(ours) > 0


def test_the_cases_reach_every_branch():
    """Contexts seen and unseen, n-grams seen and unseen, and a discount where nothing is counted once."""
    oracle = Oracle(drawn(200, 7, 1).tolist(), 7, 3)
    contexts = {gram[:2] for gram in oracle.counts[3]}
    assert 7 < len(contexts) < 49 and len(oracle.counts[3]) < 7 * len(contexts)
    assert {0 < D < 1 for D in oracle.discounts.values()} == {True}
    assert 1 not in Oracle(drawn(500, 3, 6).tolist(), 3, 2).counts[1].values()


@pytest.mark.parametrize("n, V, seed", CASES)
def test_perplexities(n, V, seed):
    train, valid = drawn(n, V, seed), drawn(50, V, seed + 10)
    counts, w = collections.Counter(train.tolist()), valid.tolist()
    two, three = Oracle(train.tolist(), V, 2), Oracle(train.tolist(), V, 3)
    models = (
        lambda i: (counts[w[i]] + 1) / (n + V),
        lambda i: two.p((w[i - 1],), w[i]),
        lambda i: three.p(tuple(w[max(i - 2, 0) : i]), w[i]),
    )
    expected = [math.exp(-sum(math.log(p(i)) for i in range(1, 50)) / 49) for p in models]
    assert floors(train, valid, V) == pytest.approx(expected, rel=1e-10)


def test_a_larger_order_knows_more():
    """A text of period 7 with each token twice in it: two tokens say what follows, one does not, none says less."""
    train = np.tile([0, 1, 2, 0, 2, 1, 3], 50)
    found = floors(train, train, 4)
    assert found.trigram < 1.1 < found.bigram < found.unigram
    assert found.unigram == pytest.approx(3.9, abs=0.1)


def test_large_tokens():
    """Three of a vocabulary of 2^20 fit into a number."""
    V = 1 << 20
    train = np.array([V - 1, V - 2, V - 1, V - 1, 0, V - 2, V - 1, V - 2], np.uint32)
    valid = np.array([V - 1, V - 2, V - 1, V - 3, 0, V - 1], np.uint32)
    oracle = Oracle(train.tolist(), V, 3)
    ours = KneserNey(train, V, 3).probabilities(valid)
    w = valid.tolist()
    assert ours == pytest.approx([oracle.p(tuple(w[max(i - 2, 0) : i]), w[i]) for i in range(1, 6)], rel=1e-10)


def test_the_tokens_type_makes_no_difference():
    train, valid = drawn(300, 200, 1), drawn(50, 200, 2)
    assert floors(train.astype(np.uint8), valid.astype(np.uint8), 200) == floors(train, valid.astype(np.int64), 200)


def test_perplexity():
    assert perplexity(np.array([0.5, 0.125])) == pytest.approx(4)


@pytest.mark.parametrize(
    "train, valid, V, message",
    [
        ([0, 4], [0, 1], 4, r"train: got the token 4, expected tokens in 0\.\.3"),
        ([0, 1], [0, -1], 4, r"valid: got the token -1, expected tokens in 0\.\.3"),
        ([], [0, 1], 4, r"train: number of tokens: got 0, expected an integer in 1\.\."),
        ([0, 1], [0], 4, r"valid: number of tokens: got 1, expected an integer in 2\.\."),
        ([0, 1], [0, 1], (1 << 20) + 1, r"vocab_size: got 1048577, expected an integer in 1\.\.1048576"),
    ],
)
def test_refusals(train, valid, V, message):
    with pytest.raises(ValueError, match=message):
        floors(np.array(train, np.int64), np.array(valid, np.int64), V)
