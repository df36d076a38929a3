"""A small language model of characters, whose attention is a fast weight memory with the delta rule.

    pip install 'fwm_py[torch]' && python examples/train_text.py [FILE] [--steps 300] [--rule gated_delta_rule]

FILE is any text, some 100 kB or more; without one it learns from this package's own Python files. Two cores take a few
minutes. In the end the model writes on from a line of the text, token by token from its states.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import fwm_py
from fwm_py.torch.nn import FastWeightAttention


class Block(nn.Module):
    def __init__(self, size, heads, **attention):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = FastWeightAttention(size, heads, **attention)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x, state=None):
        y, state = self.attention(self.norm1(x), state, return_state=True)
        x = x + y
        return x + self.mlp(self.norm2(x)), state


class Model(nn.Module):
    def __init__(self, vocabulary, size=128, layers=3, heads=4, **attention):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, size)
        self.blocks = nn.ModuleList(Block(size, heads, **attention) for _ in range(layers))
        self.norm, self.read = nn.LayerNorm(size), nn.Linear(size, vocabulary)

    def forward(self, ids, states=None):
        x, after = self.embed(ids), []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks)):
            x, state = block(x, state)
            after.append(state)
        return self.read(self.norm(x)), after


def write_on(model, ids, length):
    """The model's own continuation, from its states: a token costs the same wherever it stands."""
    written = []
    with torch.no_grad():
        logits, states = model(ids[None])
        for _ in range(length):
            token = torch.multinomial((logits[0, -1] / 0.7).softmax(-1), 1)
            written.append(token.item())
            logits, states = model(token[None], states)
    return written


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rule", default="gated_delta_rule")
    parser.add_argument("--feature_map", default=None)
    parser.add_argument("--length", type=int, default=256, help="of the sequences")
    args = parser.parse_args()
    torch.manual_seed(0)
    files = [args.file] if args.file else sorted(Path(fwm_py.__file__).parent.glob("*.py"))
    text = "".join(path.read_text() for path in files)
    letters = sorted(set(text))
    ids = torch.tensor([letters.index(letter) for letter in text])
    model = Model(len(letters), rule=args.rule, feature_map=args.feature_map)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, max(args.steps, 2))
    start = time.perf_counter()
    for step in range(1, args.steps + 1):
        first = torch.randint(len(ids) - args.length - 1, (8, 1))
        batch = ids[first + torch.arange(args.length + 1)]
        logits, _ = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % max(args.steps // 10, 1) == 0:
            print(
                f"step {step}: {loss.item() / 0.693147:.2f} bits a character, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    begin = ids[:200]
    print("".join(letters[i] for i in begin.tolist() + write_on(model, begin, 400)))


if __name__ == "__main__":
    main()
