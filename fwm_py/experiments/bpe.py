"""Byte pair encoding with the library `tokenizers`: on bytes, so that every text comes back as it was."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
"""The token that stands behind each document. A document in which these letters occur has other tokens for them."""

END_ID = 0
SMALLEST_VOCAB = 257
"""The bytes and END."""

# Cut where a line ends: a token of the pattern that comes before BPE never goes on from a letter or sign to a newline,
# so the parts of a text have the tokens of the whole.
_PARTS = re.compile(r".{65536}.*?[!-~](?=\n)|.+", re.DOTALL)
_AT_ONCE = 64  # parts; an encoding costs some hundred bytes a token until its numbers are taken out


def tokenizers() -> Any:
    """The library of the extra `language`."""
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        message = "texts need tokenizers: pip install 'fwm_py[language]'"
        raise ImportError(message, name="tokenizers") from error


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Of tokens in files: little-endian uint16 if it holds them, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer with END, the 256 bytes and the most frequent merges; the same texts give the same one.

    Parameters
    ----------
    texts : iterable of str
    vocab_size : int
        Tokens in all, from 257; fewer if the texts have no more to merge.
    """
    library = tokenizers()
    byte_level = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=sorted(byte_level.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator((part for part, _ in _parts(texts)), trainer)
    return _with_end_apart(tokenizer)


def load_bpe(text: str) -> Tokenizer:
    """The tokenizer whose `to_str()` this is."""
    return _with_end_apart(tokenizers().Tokenizer.from_str(text))


def _with_end_apart(tokenizer: Any) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # END within a text is text; the file does not keep this
    return tokenizer  # type: ignore[no-any-return]


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> npt.NDArray[Any]:
    """The tokens of all texts, END behind each: (n,) in `token_dtype`."""
    dtype = token_dtype(tokenizer.get_vocab_size())
    end = np.array([END_ID], dtype)
    found = [np.empty(0, dtype)]
    parts = _parts(texts)
    while batch := list(itertools.islice(parts, _AT_ONCE)):
        encodings = tokenizer.encode_batch_fast([part for part, _ in batch], add_special_tokens=False)
        for (_, is_last), encoding in zip(batch, encodings):
            found.append(np.array(encoding.ids, dtype))
            if is_last:
                found.append(end)
    return np.concatenate(found)


def _parts(texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The parts of each text, and whether it is the text's last."""
    for text in texts:
        parts = _PARTS.findall(text) or [""]
        yield from ((part, i == len(parts)) for i, part in enumerate(parts, start=1))
