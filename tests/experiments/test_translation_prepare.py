"""The folder of parallel sentences: what is left out, which split a pair is in, its floors, and damage."""

import hashlib
import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")

from fwm_py.experiments.translation.data import FILES, Data, Sentences, prepare
from fwm_py.experiments.translation.floors import Neighbours, terms
from fwm_py.experiments.translation.pairs import read_lines, read_pairs

WORDS = "one two three four five six seven eight nine ten".split()


def sentence(number):
    return " ".join(WORDS[int(digit)] for digit in str(number))


def write(folder, name, pairs):
    paths = folder / f"{name}.en", folder / f"{name}.de"
    for path, side in zip(paths, zip(*pairs)):
        path.write_text("".join(line + "\n" for line in side))
    return paths


PAIRS = [(sentence(n), sentence(n)[::-1]) for n in range(300)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return prepare(*write(folder, "all", PAIRS), folder / "DATA", vocab=300, parts=10)


def sentences_of(data, split):
    return [
        [data.tokenizer.decode([int(token) for token in side[i][:-1]]) for side in data.tokens(split)]
        for i in range(data.counts[split].pairs)
    ]


def test_a_split_by_the_hash_of_the_source(made):
    expected = {"train": [], "valid": [], "test": []}
    for source, target in PAIRS:
        remainder = int(hashlib.sha256(source.encode()).hexdigest(), 16) % 10
        expected[{0: "valid", 1: "test"}.get(remainder, "train")].append([source, target])
    assert {split: sentences_of(made, split) for split in expected} == expected
    for split in ("valid", "test"):
        assert [list(pair) for pair in zip(*made.texts(split))] == expected[split]
    assert {path.name for path in made.folder.iterdir()} == set(FILES)
    for split, counts in made.counts.items():
        assert counts[1:] == tuple(len(side.tokens) for side in made.tokens(split))


def test_what_is_left_out(tmp_path):
    long = " ".join(WORDS * 9)
    pairs = [*PAIRS[:40], PAIRS[3], ("", "x"), ("y", "  "), (long, long), ("a", sentence(12345678)), PAIRS[5]]
    test = [PAIRS[50], ("", "nothing"), (long, "short"), PAIRS[50]]
    paths = [
        write(tmp_path, name, found) for name, found in (("train", pairs), ("valid", PAIRS[60:64]), ("test", test))
    ]
    data = prepare(*paths[0], tmp_path / "DATA", valid=paths[1], test=paths[2], vocab=300, max_length=60, max_ratio=4.0)
    assert data.facts["left_out"] == {"empty": 3, "duplicates": 2, "long": 1, "ratio": 1}
    assert sentences_of(data, "train") == [list(pair) for pair in PAIRS[:40]] and data.facts["known"]["valid"] == 0
    assert data.facts["sources"]["test"] == [str(path) for path in paths[2]]
    assert sentences_of(data, "valid") == [list(pair) for pair in PAIRS[60:64]]
    assert data.texts("test") == ([PAIRS[50][0], long, PAIRS[50][0]], [PAIRS[50][1], "short", PAIRS[50][1]])


def test_the_same_pairs_give_the_same_bytes(made, tmp_path):
    again = prepare(*write(tmp_path, "all", PAIRS), tmp_path / "DATA", vocab=300, parts=10)
    assert again.identity == made.identity and again.facts["floors"] == made.facts["floors"]
    assert Data.open(made.folder, verify=True).files == made.files


def test_floors(made):
    """The oracle: dense vectors of all terms."""
    import sacrebleu

    train, test = sentences_of(made, "train"), sentences_of(made, "test")
    vocabulary = sorted({term for source, _ in train for term in terms(source)})
    counts = np.array([[terms(source).count(term) for term in vocabulary] for source, _ in train], float)
    weights = np.log((1 + len(train)) / (1 + (counts > 0).sum(0)))
    vectors = counts * weights
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    neighbours, nearest = Neighbours([source for source, _ in train]), []
    for source, _ in test:
        found = neighbours.nearest(source)
        similar = vectors @ (np.array([terms(source).count(term) for term in vocabulary]) * weights)
        assert similar[found] == pytest.approx(similar.max())
        nearest.append(train[found][1])
    sources, targets = zip(*test)
    for name, translations in (("copy", list(sources)), ("nearest", nearest)):
        expected = sacrebleu.corpus_bleu(translations, [list(targets)]).score
        assert made.floors[name] == pytest.approx(expected, abs=0.01)


def test_terms_and_sentences_without_any():
    assert terms("A b, a") == ["a", "b", ",", "a", "a b", "b ,", ", a"]
    neighbours = Neighbours(["x", "the cat sat", "the dog sat", "the"])
    assert neighbours.nearest("The dog!") == 2 and neighbours.nearest("sat the cat") == 1
    assert neighbours.nearest("") == neighbours.nearest("unknown") == 0
    assert Neighbours(["same", "same"]).nearest("same") == 0  # whose weights are all 0


def test_sentences():
    sentences = Sentences(np.array([5, 6, 0, 0, 7, 0], np.uint16))
    assert [sentences[i].tolist() for i in range(len(sentences))] == [[5, 6, 0], [0], [7, 0]]
    assert sentences.lengths.tolist() == [3, 1, 2]
    assert sentences.kept(np.array([True, False, True])).tokens.tolist() == [5, 6, 0, 7, 0]
    assert len(Sentences(np.empty(0, np.uint16))) == 0


def test_lines(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbf a \r\n\n b\xe2\x80\xa8c\x0c\n")
    assert read_lines(path) == ["a", "", "b\u2028c"]
    path.write_bytes(b"")
    assert read_lines(path) == []
    path.write_bytes(b"a\nb")
    assert read_lines(path) == ["a", "b"]


@pytest.mark.parametrize(
    "source, target, message",
    [
        (b"a\nb\n", b"a\n", "target: got 1 lines, expected 2, as .*source has"),
        (b"a\xff\n", b"a\n", "source: got no UTF-8 at byte 1, expected text"),
        (b"a\n", b"\0\n", "target: got a NUL, expected text"),
    ],
)
def test_files_that_are_not_parallel(tmp_path, source, target, message):
    (tmp_path / "source").write_bytes(source)
    (tmp_path / "target").write_bytes(target)
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "source", tmp_path / "target")
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "source", tmp_path / "target", tmp_path / "DATA")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


@pytest.mark.parametrize(
    "pairs, options, message",
    [
        (PAIRS[:1], {}, "valid: got no pairs of sentences, expected at least one"),
        ([("", "x")], {}, "train: got no pairs"),
        (PAIRS[10:], dict(max_length=2, vocab=300), "train: got no pairs"),
        (PAIRS, dict(vocab=3), "vocab: got 3, expected an integer in 257"),
        (PAIRS, dict(parts=2), "parts: got 2, expected an integer in 3"),
        (PAIRS, dict(max_ratio=0.9), "max_ratio: got 0.9, expected a number from 1"),
    ],
)
def test_bad_input(tmp_path, pairs, options, message):
    paths = write(tmp_path, "all", pairs)
    with pytest.raises(ValueError, match=message):
        prepare(*paths, tmp_path / "DATA", **options)
    assert not (tmp_path / "DATA").exists() and not (tmp_path / "DATA.partial").exists()


def test_damage(made, tmp_path):
    with pytest.raises(ValueError, match="split: got 'all', expected train, valid"):
        made.tokens("all")
    with pytest.raises(ValueError, match="split: got 'train', expected valid"):
        made.texts("train")
    with pytest.raises(ValueError, match=r"meta.json: got no such file, .*; delete this folder, and prepare it again"):
        Data.open(tmp_path)
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in made.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"kind": "language"}))
    with pytest.raises(ValueError, match="got data of 'language', expected translation"):
        Data.open(folder)
    (folder / "meta.json").write_text(json.dumps(meta))
    data = Data.open(folder)
    text = (folder / "test.target.txt").read_text()
    (folder / "test.target.txt").write_text(text.replace("e", "f"))
    with pytest.raises(ValueError, match=r"test.target.txt: got other contents"):
        data.texts("test")
    (folder / "train.source.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train.source.bin: got 0 bytes"):
        data.tokens("train")
