"""A folder of tokens from documents: how it is made, and how it is read.

`prepare(["stdlib"], "DATA")` makes a folder of `tokenizer.json`, the tokens `train.bin`, `valid.bin` and `test.bin`,
and `meta.json`; `Data.open("DATA").tokens("train")` are tokens from it. The tokenizer needs the library tokenizers:
`pip install 'fwm_py[language]'`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy.typing as npt

from fwm_py.checks import choice, integer
from fwm_py.experiments.bpe import END, END_ID, SMALLEST_VOCAB, encode_documents, token_dtype, tokenizers, train_bpe
from fwm_py.experiments.language.corpus import Document, Skipped, read_corpus
from fwm_py.experiments.language.floors import LARGEST_VOCAB, floors
from fwm_py.experiments.prepared import META, TOKENIZER, Prepared, new_folder, write_prepared

SPLITS = ("train", "valid", "test")
FILES = (TOKENIZER, *(f"{split}.bin" for split in SPLITS), META)


class Counts(NamedTuple):
    """Of a split: its documents, their tokens with the ends, and the bytes of their UTF-8 without."""

    documents: int
    tokens: int
    bytes: int


# ---- making ----


def prepare(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    vocab: int = 2048,
    parts: int = 25,
    on_skip: Callable[[Skipped], object] | None = None,
) -> Data:
    """Split documents, train a tokenizer on those of training, and write the tokens of all.

    The same sources give the same bytes, and in another order, or from elsewhere, the same tokens. The folder is there
    when it is whole: a kill leaves `<out>.partial` at most, which the next call for this folder begins anew.

    Parameters
    ----------
    sources : sequence of path
        As of `corpus.read_corpus`.
    out : path
        A folder that is made, with those above it; it may be there if it is empty.
    vocab : int
        Tokens in all, 257 .. 2^20, of which 256 are the bytes and one the end of a document; there are fewer if the
        texts of training have no more pairs to merge.
    parts : int
        Of so many documents one is for valid and one for test: `split_documents`.
    on_skip : callable, optional
        Called with what the sources have that is not text.

    Returns
    -------
    Data

    Raises
    ------
    ImportError
        If the library tokenizers is missing.
    Refused
        If another process prepares this folder.
    FileExistsError
        If `out` has files.
    OSError
        If a source cannot be read, or the folder cannot be written.
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>": also for sources without text, and for fewer than three
        documents.
    """
    integer("vocab", vocab, SMALLEST_VOCAB, LARGEST_VOCAB)
    integer("parts", parts, len(SPLITS), 1 << 30)
    tokenizers()
    with new_folder(out, FILES) as folder:
        documents, skipped = read_corpus(sources)
        for one in skipped:
            if on_skip is not None:
                on_skip(one)
        splits, duplicates = split_documents(documents, parts)
        facts = {"sources": [os.fsdecode(source) for source in sources], "parts": parts}
        _write(folder, splits, vocab, facts | {"duplicates": duplicates, "skipped": len(skipped)})
    return Data.open(out)


def split_documents(documents: Sequence[Document], parts: int) -> tuple[dict[str, list[str]], int]:
    """The texts of each split, in the order of their hashes, and the number of duplicates that were left out.

    The sha256 of a text's UTF-8, as a number, is divided by `parts`: the remainder 0 is valid, 1 test, all others
    train. So a document stays where it is whatever comes to a corpus; but where a split would be empty, as of small
    corpora, it takes the first document of the split that has most.

    Raises
    ------
    ValueError
        "sources: got <n> of different text, ..": with fewer than three.
    """
    by_hash = {hashlib.sha256(text.encode()).digest(): text for _, text in documents}
    if len(by_hash) < len(SPLITS):
        raise ValueError(
            f"sources: got {len(by_hash)} of different text, expected at least {len(SPLITS)} documents, for "
            f"{', '.join(SPLITS)}: cut a long text into files, or into the lines of a .jsonl"
        )
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for digest in sorted(by_hash):
        remainder = int.from_bytes(digest, "big") % parts
        splits[{0: "valid", 1: "test"}.get(remainder, "train")].append(by_hash[digest])
    for texts in splits.values():
        if not texts:
            texts.append(max(splits.values(), key=len).pop(0))
    return splits, len(documents) - len(by_hash)


def _write(folder: Path, splits: dict[str, list[str]], vocab: int, facts: dict[str, Any]) -> None:
    tokenizer = train_bpe(splits["train"], vocab)
    tokens = {split: encode_documents(tokenizer, texts) for split, texts in splits.items()}
    files = {TOKENIZER: tokenizer.to_str(pretty=True).encode()}
    files |= {f"{split}.bin": tokens[split].tobytes() for split in SPLITS}
    vocab_size = tokenizer.get_vocab_size()
    found = floors(tokens["train"], tokens["valid"], vocab_size)
    facts |= {
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size).name,
        "end": END,
        "splits": {
            split: Counts(len(texts), len(tokens[split]), sum(len(text.encode()) for text in texts))._asdict()
            for split, texts in splits.items()
        },
        # rounded, as the last digits of a logarithm differ between processors
        "floors": {name: round(value, 4) for name, value in found._asdict().items()},
    }
    write_prepared(folder, Data, files, facts, {"tokenizers": tokenizers().__version__})


# ---- reading ----


class Data(Prepared):
    """What `prepare` has written.

    Attributes
    ----------
    folder, files : Path, dict of FileFacts
    floors : dict of float
        Perplexities on valid of `unigram`, `bigram` and `trigram`, to four decimals.
    facts : dict
        meta.json: also `sources`, `parts`, `duplicates`, `skipped`, `made_by`.
    """

    KIND: ClassVar[str] = "language"
    FORMAT: ClassVar[int] = 1

    @property
    def counts(self) -> dict[str, Counts]:
        """By split: `train`, `valid` and `test`."""
        return {split: Counts(**facts) for split, facts in self.facts["splits"].items()}

    @property
    def end(self) -> int:
        """The token that stands behind each document."""
        return END_ID

    @property
    def documents(self) -> dict[str, int]:
        """Their number, by split."""
        return {split: counts.documents for split, counts in self.counts.items()}

    @property
    def bytes(self) -> dict[str, int]:
        """Of the documents' UTF-8 without the ends, by split: what bits of a byte are counted by."""
        return {split: counts.bytes for split, counts in self.counts.items()}

    def tokens(self, split: str) -> npt.NDArray[Any]:
        """The tokens of `train`, `valid` or `test`: (n,), uint16 or uint32, read-only, from the disk as they are used.

        Raises
        ------
        OSError, TypeError, ValueError
            As of `open`; or "split: got <value>, expected <what is allowed>".
        """
        return self.array(f"{choice('split', split, SPLITS)}.bin", token_dtype(self.vocab_size))
