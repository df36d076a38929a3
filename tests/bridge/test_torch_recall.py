"""The layer learns multi-query associative recall (MQAR, as zoology defines it) at a size of seconds."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from fwm_py import _core  # noqa: E402
from fwm_py.torch.nn import FastWeightAttention  # noqa: E402

PAIRS, T, V, WIDTH, B, STEPS, LR = 8, 32, 256, 32, 64, 500, 1e-2
NONE = -100  # what F.cross_entropy leaves out
SLOTS = (T - 2 * PAIRS) // 2


def sequences(n, generator):
    """Tokens (n, T), PAIRS keys with their values and then the keys again, each in a slot of two places; and the answer
    (n, T) at each of those. Keys are of the first half of the vocabulary, values of the second, 0 fills the rest."""
    keys = torch.rand(n, V // 2 - 1, generator=generator).argsort(1)[:, :PAIRS] + 1
    values = torch.randint(V // 2, V, (n, PAIRS), generator=generator)
    weights = torch.arange(1, SLOTS + 1, dtype=torch.float64) ** (0.01 - 1)
    slots = 2 * PAIRS + 2 * torch.multinomial(weights.expand(n, -1), PAIRS, generator=generator)
    x = torch.zeros(n, T, dtype=torch.int64)
    x[:, 0 : 2 * PAIRS : 2], x[:, 1 : 2 * PAIRS : 2] = keys, values
    return x.scatter_(1, slots, keys), torch.full_like(x, NONE).scatter_(1, slots, values)


class ShortConvolution(nn.Module):
    """Two projections, one convolved over 3 tokens, multiplied, projected back."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.filter = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=2)

    def forward(self, x):
        return self.out(self.filter(self.a(x).mT)[..., :T].mT * self.b(x))


class Model(nn.Module):
    """Pre-norm residual layers between an embedding and itself; logits where there is an answer."""

    def __init__(self, rule):
        super().__init__()
        self.embed = nn.Embedding(V, WIDTH)
        nn.init.normal_(self.embed.weight, std=0.02)
        memory = FastWeightAttention(WIDTH, 1, rule=rule, conv_size=4, output_norm=True)
        self.layers = nn.ModuleList([ShortConvolution(), memory])
        self.norms = nn.ModuleList([nn.RMSNorm(WIDTH) for _ in range(3)])

    def forward(self, x, answers):
        h = self.embed(x)
        for norm, layer in zip(self.norms, self.layers):
            h = h + layer(norm(h))
        asked = answers != NONE
        return self.norms[-1](h[asked]) @ self.embed.weight.T, answers[asked]


def steps_to_learn(rule, seed):
    """The steps, a multiple of 50, after which it answers more than 97 % of new questions; None if it does not."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Model(rule)
    optimiser = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for step in range(1, STEPS + 1):
        optimiser.zero_grad()
        F.cross_entropy(*model(*sequences(B, generator))).backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            with torch.no_grad():
                logits, answers = model(*sequences(256, torch.Generator().manual_seed(10**6)))
            if (logits.argmax(-1) == answers).double().mean() > 0.97:
                return step
    return None


GATED = [row["function"] for row in _core.RULES if row["scalar_gate"] or row["channel_gate"]]


@pytest.mark.parametrize("rule", ["softmax_attention", "delta_rule", *GATED])
def test_recall(rule):
    assert steps_to_learn(rule, seed=0)
