"""A folder of sentences and their translations as tokens: how it is made, and how it is read.

`prepare("A.en", "A.de", "DATA")` makes a folder of `tokenizer.json`, the tokens `train.source.bin`, `train.target.bin`
and likewise of `valid` and `test`, the sentences of these two as text, and `meta.json`. The tokenizer needs the library
tokenizers, the floors sacrebleu: `pip install 'fwm_py[translation]'`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py.checks import choice, integer, positive
from fwm_py.experiments.bpe import END, END_ID, SMALLEST_VOCAB, encode_documents, token_dtype, tokenizers, train_bpe
from fwm_py.experiments.prepared import META, TOKENIZER, Prepared, new_folder, write_prepared
from fwm_py.experiments.translation.floors import Neighbours
from fwm_py.experiments.translation.metrics import bleu, sacrebleu
from fwm_py.experiments.translation.pairs import LeftOut, Pair, read_pairs, without_duplicates, without_empty

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Path_ = str | os.PathLike[str]
SPLITS = ("train", "valid", "test")
SIDES = ("source", "target")
LARGEST_VOCAB = 1 << 20
FILES = (
    TOKENIZER,
    *(f"{split}.{side}.bin" for split in SPLITS for side in SIDES),
    *(f"{split}.{side}.txt" for split in SPLITS[1:] for side in SIDES),
    META,
)


class Counts(NamedTuple):
    """Of a split: its pairs, and the tokens of its sides with the end of each sentence."""

    pairs: int
    source_tokens: int
    target_tokens: int


# ---- making ----


def prepare(
    source: Path_,
    target: Path_,
    out: Path_,
    *,
    valid: tuple[Path_, Path_] | None = None,
    test: tuple[Path_, Path_] | None = None,
    vocab: int = 4000,
    parts: int = 25,
    max_length: int = 256,
    max_ratio: float = 4.0,
) -> Data:
    """Read parallel files, train a tokenizer on both sides of training, and write the tokens of all.

    Pairs with an empty side and duplicates are left out of training, and then those with a side of more than
    `max_length` tokens, or with more than `max_ratio` times the tokens of the other side (counted with the end of the
    sentence). Of valid and test only pairs with an empty side are left out, so that scores compare. The folder is there
    when it is whole, as of `language.prepare`.

    Parameters
    ----------
    source, target : path
        Of training, parallel line by line.
    out : path
        A folder that is made; it may be there if it is empty.
    valid, test : pair of path, optional
        Source and target. If not given, pairs of training: those for which the sha256 of the source has the remainder
        0 (valid), 1 (test) when divided by `parts`, so that a sentence is in one split alone.
    vocab : int
        Tokens in all, 257 .. 2^20.
    parts : int
    max_length : int
    max_ratio : float

    Raises
    ------
    ImportError
        If tokenizers or sacrebleu is missing.
    Refused, FileExistsError, OSError
        As of `prepared.new_folder`.
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>": also for files that are not parallel, and where a split
        would be empty.
    """
    integer("vocab", vocab, SMALLEST_VOCAB, LARGEST_VOCAB)
    integer("parts", parts, len(SPLITS), 1 << 30)
    integer("max_length", max_length, 2, 1 << 20)
    if positive("max_ratio", max_ratio) < 1:
        raise ValueError(f"max_ratio: got {max_ratio}, expected a number from 1")
    tokenizers()
    sacrebleu()
    with new_folder(out, FILES) as folder:
        pairs, empty = without_empty(read_pairs(source, target))
        splits: dict[str, list[Pair]] = {"train": pairs}
        for split, files in (("valid", valid), ("test", test)):
            if files is None:
                part = SPLITS.index(split) - 1
                splits[split] = [pair for pair in pairs if _remainder(pair, parts) == part]
                splits["train"] = [pair for pair in splits["train"] if _remainder(pair, parts) != part]
            else:
                splits[split], more = without_empty(read_pairs(*files))
                empty += more
        splits["train"], duplicates = without_duplicates(splits["train"])
        _check(splits)
        tokenizer = train_bpe((side for pair in splits["train"] for side in pair), vocab)
        tokens = {split: _encoded(tokenizer, found) for split, found in splits.items()}
        fits, long, ratio = _fitting(tokens["train"], max_length, max_ratio)
        splits["train"] = [pair for pair, fit in zip(splits["train"], fits) if fit]
        tokens["train"] = tokens["train"][0].kept(fits), tokens["train"][1].kept(fits)
        _check(splits)
        left_out = LeftOut(empty, duplicates, long, ratio)
        names = {"train": (source, target), "valid": valid, "test": test}
        facts: dict[str, Any] = {
            "sources": {split: files and list(map(os.fsdecode, files)) for split, files in names.items()},
            "parts": parts,
            "max_length": max_length,
            "max_ratio": max_ratio,
            "known": {split: len(set(splits[split]) & set(splits["train"])) for split in SPLITS[1:]},
        }
        _write(folder, tokenizer, splits, tokens, facts | {"left_out": left_out._asdict()})
    return Data.open(out)


def _remainder(pair: Pair, parts: int) -> int:
    return int.from_bytes(hashlib.sha256(pair[0].encode()).digest(), "big") % parts


def _check(splits: dict[str, list[Pair]]) -> None:
    for split, pairs in splits.items():
        if not pairs:
            raise ValueError(f"{split}: got no pairs of sentences, expected at least one")


class Sentences:
    """Tokens of sentences, END behind each.

    Parameters
    ----------
    tokens : array (n,) of integers
    """

    def __init__(self, tokens: npt.NDArray[Any]) -> None:
        self.tokens = tokens
        self.ends = np.flatnonzero(tokens == END_ID)
        self.starts = np.concatenate([[0], self.ends[:-1] + 1]) if len(self.ends) else self.ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> npt.NDArray[Any]:
        """The tokens of a sentence, with END."""
        return self.tokens[self.starts[i] : self.ends[i] + 1]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sentence, with END: (n,)."""
        return self.ends - self.starts + 1

    def kept(self, fits: npt.NDArray[np.bool_]) -> Sentences:
        return Sentences(self.tokens[np.repeat(fits, self.lengths)])


def _encoded(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> tuple[Sentences, Sentences]:
    source, target = (Sentences(encode_documents(tokenizer, side)) for side in zip(*pairs))
    return source, target


def _fitting(sides: tuple[Sentences, Sentences], max_length: int, max_ratio: float) -> tuple[Any, int, int]:
    """Which pairs are neither too long nor of too unequal sides; how many are the one, and of the others the other."""
    lengths = np.stack([side.lengths for side in sides])
    short = lengths.max(0) <= max_length
    alike = lengths.max(0) <= max_ratio * lengths.min(0)
    return short & alike, int((~short).sum()), int((short & ~alike).sum())


def _write(
    folder: Path, tokenizer: Tokenizer, splits: dict[str, list[Pair]], tokens: dict[str, Any], facts: dict[str, Any]
) -> None:
    files = {TOKENIZER: tokenizer.to_str(pretty=True).encode()}
    for split, pairs in splits.items():
        for i, side in enumerate(SIDES):
            files[f"{split}.{side}.bin"] = tokens[split][i].tokens.tobytes()
            if split != "train":
                files[f"{split}.{side}.txt"] = "".join(pair[i] + "\n" for pair in pairs).encode()
    sources, targets = (list(side) for side in zip(*splits["test"]))
    neighbours = Neighbours([source for source, _ in splits["train"]])
    nearest = [splits["train"][neighbours.nearest(source)][1] for source in sources]
    vocab_size = tokenizer.get_vocab_size()
    facts |= {
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size).name,
        "end": END,
        "splits": {
            split: Counts(len(pairs), *(len(side.tokens) for side in tokens[split]))._asdict()
            for split, pairs in splits.items()
        },
        "floors": {"copy": round(bleu(sources, targets), 2), "nearest": round(bleu(nearest, targets), 2)},
    }
    versions = {"tokenizers": tokenizers().__version__, "sacrebleu": sacrebleu().__version__}
    write_prepared(folder, Data, files, facts, versions)


# ---- reading ----


class Data(Prepared):
    """What `prepare` has written.

    Attributes
    ----------
    folder, files : Path, dict of FileFacts
    floors : dict of float
        BLEU on test of `copy`, the source as it is, and of `nearest`: `floors.Neighbours`.
    facts : dict
        meta.json: also `sources` (None of a split that is taken from training), `parts`, `max_length`, `max_ratio`,
        `left_out`, `known` (pairs of valid and test that training has too), `made_by`.
    """

    KIND: ClassVar[str] = "translation"
    FORMAT: ClassVar[int] = 1

    @property
    def counts(self) -> dict[str, Counts]:
        """By split: `train`, `valid` and `test`."""
        return {split: Counts(**facts) for split, facts in self.facts["splits"].items()}

    def tokens(self, split: str) -> tuple[Sentences, Sentences]:
        """Source and target of a split.

        Raises
        ------
        OSError, TypeError, ValueError
            As of `open`; or "split: got <value>, expected <what is allowed>".
        """
        choice("split", split, SPLITS)
        dtype = token_dtype(self.vocab_size)
        source, target = (Sentences(self.array(f"{split}.{side}.bin", dtype)) for side in SIDES)
        return source, target

    def texts(self, split: str) -> tuple[list[str], list[str]]:
        """Sentences and translations of `valid` or `test`; raises as `tokens` does."""
        choice("split", split, SPLITS[1:])
        source, target = (self.text(f"{split}.{side}.txt").removesuffix("\n").split("\n") for side in SIDES)
        return source, target
