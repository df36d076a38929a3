"""A folder of tokens from documents: how it is made, and how it is read.

`prepare(["stdlib"], "DATA")` makes a folder of `tokenizer.json`, the tokens `train.bin`, `valid.bin` and `test.bin`,
and `meta.json`; `Data.open("DATA").tokens("train")` are tokens from it. The tokenizer needs the library tokenizers:
`pip install 'fwm_py[language]'`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py import __version__
from fwm_py.checks import choice, integer, shown
from fwm_py.experiments.files import PARTIAL, locked, publish, write_file
from fwm_py.experiments.language.bpe import (
    END,
    END_ID,
    SMALLEST_VOCAB,
    encode_documents,
    load_bpe,
    token_dtype,
    tokenizers,
    train_bpe,
)
from fwm_py.experiments.language.corpus import Document, Skipped, read_corpus
from fwm_py.experiments.language.floors import LARGEST_VOCAB, floors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPLITS = ("train", "valid", "test")
TOKENIZER, META = "tokenizer.json", "meta.json"
FILES = (TOKENIZER, *(f"{split}.bin" for split in SPLITS), META)
FORMAT = 1
WAY_OUT = "delete this folder, and prepare it again"


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
    with _new_folder(Path(os.path.realpath(out))) as folder:
        documents, skipped = read_corpus(sources)
        for one in skipped:
            if on_skip is not None:
                on_skip(one)
        splits, duplicates = split_documents(documents, parts)
        facts = {"sources": [os.fsdecode(source) for source in sources], "parts": parts}
        counts = {"duplicates": duplicates, "skipped": len(skipped)}
        for name, data in _files(splits, vocab, facts | counts).items():
            write_file(folder / name, data)
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


def _files(splits: dict[str, list[str]], vocab: int, facts: dict[str, Any]) -> dict[str, bytes]:
    """The contents of all files by name."""
    tokenizer = train_bpe(splits["train"], vocab)
    tokens = {split: encode_documents(tokenizer, texts) for split, texts in splits.items()}
    files = {TOKENIZER: tokenizer.to_str(pretty=True).encode()}
    files |= {f"{split}.bin": tokens[split].tobytes() for split in SPLITS}
    vocab_size = tokenizer.get_vocab_size()
    found = floors(tokens["train"], tokens["valid"], vocab_size)
    meta = {
        "format": FORMAT,
        **facts,
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size).name,
        "end": END,
        "splits": {
            split: Counts(len(texts), len(tokens[split]), sum(len(text.encode()) for text in texts))._asdict()
            for split, texts in splits.items()
        },
        # rounded, as the last digits of a logarithm differ between processors
        "floors": {name: round(value, 4) for name, value in found._asdict().items()},
        "files": {
            name: FileFacts(len(data), hashlib.sha256(data).hexdigest())._asdict() for name, data in files.items()
        },
        "made_by": {"fwm_py": __version__, "tokenizers": tokenizers().__version__, "python": platform.python_version()},
    }
    meta["sha256"] = _sha256_of(meta)
    return files | {META: (json.dumps(meta, indent=1) + "\n").encode()}


def _sha256_of(meta: Any) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it when the block ends, and is gone if the block fails."""
    _refuse_files(out)
    partial = out.with_name(out.name + PARTIAL)
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, "another process prepares this folder"):
        _clear(partial)
        try:
            yield partial
            _refuse_files(out)  # of another process, which was faster
            publish(partial, out)
        except BaseException:
            with contextlib.suppress(OSError):
                _clear(partial)
                partial.rmdir()
            raise


def _refuse_files(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()):
            raise FileExistsError(f"{out}: got a folder with files, expected a new or an empty one")
    elif out.exists():
        raise FileExistsError(f"{out}: got a file, expected a folder, new or empty")


def _clear(partial: Path) -> None:
    """Delete what a kill has left, and nothing else."""
    for path in sorted(partial.iterdir()):
        if path.name.removesuffix(PARTIAL) not in FILES:
            raise FileExistsError(f"{path}: got a file that no prepare has written, expected to use its folder")
        path.unlink()


# ---- reading ----


class Counts(NamedTuple):
    """Of a split: its documents, their tokens with the ends, and the bytes of their UTF-8 without."""

    documents: int
    tokens: int
    bytes: int


class FileFacts(NamedTuple):
    """The size of a file in bytes, and the sha256 of what it holds."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Data:
    """What `prepare` has written.

    Attributes
    ----------
    folder : Path
    vocab_size : int
        Of the tokenizer: tokens are in 0..vocab_size - 1.
    counts : dict of Counts
        By split: `train`, `valid` and `test`.
    floors : dict of float
        Perplexities on valid of `unigram`, `bigram` and `trigram`, to four decimals.
    files : dict of FileFacts
        By name, all but meta.json.
    facts : dict
        meta.json: also `sources`, `parts`, `duplicates`, `skipped`, `made_by`.
    """

    folder: Path
    vocab_size: int
    counts: dict[str, Counts]
    floors: dict[str, float]
    files: dict[str, FileFacts]
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, verify: bool = False) -> Data:
        """Read meta.json, and see that the other files have its sizes, and with `verify` its sha256.

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            "<path>: got <what>, expected <what>; <the way out>": for one that is missing or damaged.
        """
        path = Path(folder)
        meta = read_meta(path / META)
        files = {name: FileFacts(**facts) for name, facts in meta["files"].items()}
        counts = {split: Counts(**facts) for split, facts in meta["splits"].items()}
        data = cls(path, meta["vocab_size"], counts, meta["floors"], files, meta)
        for name in files:
            data._check_size(name)
            if verify:
                data._check_contents(name, np.memmap(path / name, np.uint8, "r"))
        return data

    @property
    def identity(self) -> str:
        """A sha256 of the tokenizer and of all tokens: the same for data from copies of the sources elsewhere."""
        return _sha256_of({name: facts.sha256 for name, facts in self.files.items()})

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
        name = f"{choice('split', split, SPLITS)}.bin"
        self._check_size(name)
        return np.memmap(self.folder / name, token_dtype(self.vocab_size), "r")

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """`encode(text).ids` are a text's tokens; `decode(tokens, skip_special_tokens=False)` is their text, with ends.

        Raises
        ------
        ImportError
            If the library tokenizers is missing.
        OSError, ValueError
            As of `open`.
        """
        path = self.folder / TOKENIZER
        with _missing(path):
            data = path.read_bytes()
        self._check_contents(TOKENIZER, data)
        return load_bpe(data.decode())

    def _check_size(self, name: str) -> None:
        path, size = self.folder / name, self.files[name].size
        with _missing(path):
            found = os.stat(path).st_size
        if found != size:
            raise _damaged(path, f"{found} bytes", f"{size}")

    def _check_contents(self, name: str, data: Any) -> None:
        if hashlib.sha256(data).hexdigest() != self.files[name].sha256:
            raise _damaged(self.folder / name, "other contents", f"the sha256 of {META}")


def _damaged(path: Path, got: str, expected: str) -> ValueError:
    return ValueError(f"{path}: got {got}, expected {expected}; {WAY_OUT}")


@contextlib.contextmanager
def _missing(path: Path) -> Iterator[None]:
    """The error of a missing file says what to do, as that of a damaged one."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise _damaged(path, "no such file", "one that prepare writes") from None


def read_meta(path: Path) -> dict[str, Any]:
    """What a meta.json, or a copy of it, holds; raises as `Data.open` does."""
    with _missing(path):
        data = path.read_bytes()
    try:
        meta: dict[str, Any] = json.loads(data)
        kind = meta["format"]
        whole = meta.pop("sha256") == _sha256_of(meta)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _damaged(path, "a damaged file", "what prepare writes") from None
    if kind != FORMAT:
        raise _damaged(path, f"the format {shown(kind)}", f"{FORMAT}, that of fwm_py {__version__}")
    if not whole:
        raise _damaged(path, "a damaged file", "what prepare writes")
    return meta
