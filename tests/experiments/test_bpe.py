"""Byte pair encoding: every text comes back, whole or cut into parts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwm_py.experiments import bpe
from fwm_py.experiments.bpe import END, END_ID, encode_documents, load_bpe, token_dtype, train_bpe

pytest.importorskip("tokenizers")

TEXTS = ["a1 .\n's\r\n\n  aZ<|endoftext|> a. \u00e9\u2003a\n\n a1", "s. aa\n  a\n \n\t\u00a0a'sa"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS * 3, 275)


def test_dtype():
    assert [token_dtype(V).str for V in (257, 65536, 65537)] == ["<u2", "<u2", "<u4"]


def test_tokens_are_the_end_the_bytes_and_merges(tokenizer):
    assert tokenizer.get_vocab_size() == 275
    assert tokenizer.id_to_token(END_ID) == END
    assert train_bpe(TEXTS, 257).get_vocab_size() == 257
    assert 275 < train_bpe(TEXTS, 10_000).get_vocab_size() < 300  # nothing is left to merge


def test_end_in_a_text_is_text(tokenizer):
    for one in (tokenizer, load_bpe(tokenizer.to_str())):
        ids = one.encode(END).ids
        assert END_ID not in ids and one.decode(ids) == END


@given(text=st.text())
def test_every_text_comes_back(tokenizer, text):
    tokens = encode_documents(tokenizer, [text]).tolist()
    assert tokens[-1] == END_ID and tokenizer.decode(tokens[:-1], skip_special_tokens=False) == text


@given(text=st.text(st.sampled_from("aZ1.'s \n\r\t\x0b\u00a0\u2003\u00e9\u0301<"), max_size=40))
def test_the_parts_of_a_text_have_its_tokens(tokenizer, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_PARTS", re.compile(bpe._PARTS.pattern.replace("65536", "2"), re.DOTALL))
        patch.setattr(bpe, "_AT_ONCE", 2)
        found = encode_documents(tokenizer, [text, text])
    assert found.tolist() == [*tokenizer.encode(text).ids, END_ID] * 2


def test_a_long_text_is_cut(tokenizer):
    text = "".join(f"line {i}, which has some {i % 7} words\n" for i in range(5000))
    parts = bpe._PARTS.findall(text)
    assert len(parts) == 3 and "".join(parts) == text and max(map(len, parts)) < 65600
    assert encode_documents(tokenizer, [text]).tolist() == [*tokenizer.encode(text).ids, END_ID]
    line = "a b " * 30_000
    assert encode_documents(tokenizer, [line]).tolist() == [*tokenizer.encode(line).ids, END_ID]
