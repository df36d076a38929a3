"""A text whose entropy is known: letters of a Markov chain, in documents of a few hundred. Letters to be reversed."""

import math

import numpy as np

LETTERS = "abcdefgh"


def chain(seed=0):
    """Transition probabilities (8, 8): three letters may follow each, most often the first."""
    random = np.random.default_rng(seed)
    P = np.zeros((8, 8))
    for row in P:
        row[random.choice(8, 3, replace=False)] = 0.6, 0.3, 0.1
    return P


def entropy(P):
    """Nats of a letter, given the one before."""
    stationary = np.linalg.matrix_power(P, 200)[0]
    return float(-(stationary[:, None] * P * np.log(np.where(P > 0, P, 1))).sum())


def write_documents(folder, n=200, length=300, seed=0):
    """n files of `length` letters; returns the entropy of a letter in nats."""
    P, random = chain(seed), np.random.default_rng(seed + 1)
    folder.mkdir()
    for i in range(n):
        state, letters = int(random.integers(8)), []
        for _ in range(length):
            letters.append(LETTERS[state])
            state = int(random.choice(8, p=P[state]))
        (folder / f"{i}.txt").write_text("".join(letters))
    return entropy(P)


def write_reversals(folder, name, n, letters=26, seed=0, lengths=(5, 9)):
    """n lines of 5 to 9 letters in <name>.source, and the same letters from the last to the first in <name>.target."""
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    lines = [
        [chr(97 + letter) for letter in random.integers(letters, size=random.integers(lengths[0], lengths[1] + 1))]
        for _ in range(n)
    ]
    paths = folder / f"{name}.source", folder / f"{name}.target"
    for path, step in zip(paths, (1, -1)):
        path.write_text("".join(" ".join(line[::step]) + "\n" for line in lines))
    return paths


assert math.isclose(entropy(np.full((8, 8), 1 / 8)), math.log(8))
