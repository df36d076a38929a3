"""The folder of tokens that `prepare` makes: what is in it, what a kill leaves, and what a damaged one says."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fwm_py.experiments import bpe, prepared
from fwm_py.experiments.bpe import END, train_bpe
from fwm_py.experiments.files import Refused, locked
from fwm_py.experiments.language import data as module
from fwm_py.experiments.language.corpus import Document
from fwm_py.experiments.language.data import FILES, SPLITS, Data, prepare, split_documents
from fwm_py.experiments.language.floors import floors

pytest.importorskip("tokenizers")

VOCAB = 300
ODD = [
    "caf\u00e9 \u2028 \U0001f600\ufeff\u0301\r\n\ttabs  and   spaces \n\n",
    f"this is {END} in the middle, and {END}",
    " ",
    "\n",
    "don't we're I'll 123 45.6 <|>",
]


def texts_of(n=100):
    random = np.random.default_rng(1)
    words = ["".join(chr(97 + c) for c in random.integers(26, size=random.integers(1, 9))) for _ in range(80)]
    return [*ODD, *(" ".join(random.choice(words, 60)) + "\n" for _ in range(n - len(ODD)))]


def part_of(text, parts=25):
    remainder = int(hashlib.sha256(text.encode()).hexdigest(), 16) % parts
    return "valid" if remainder == 0 else "test" if remainder == 1 else "train"


def by_hash(texts):
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())


def write_folder(folder, texts):
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i:04}").write_bytes(text.encode())
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of documents, of which one is there twice and one is no text."""
    folder = write_folder(tmp_path_factory.mktemp("source") / "texts", texts_of())
    (folder / "again").write_bytes((folder / "0001").read_bytes())
    (folder / "binary").write_bytes(b"\0")
    return folder


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return prepare([source], tmp_path_factory.mktemp("made") / "DATA", vocab=VOCAB)


@pytest.fixture
def copied(made, tmp_path):
    """A copy to damage."""
    (tmp_path / "DATA").mkdir()
    for name in FILES:
        (tmp_path / "DATA" / name).write_bytes((made.folder / name).read_bytes())
    return tmp_path / "DATA"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- what is in it ----


def test_every_text_comes_back(made):
    """From the bytes of the files, in the order of the hashes, each in its split."""
    for split in SPLITS:
        tokens = np.fromfile(made.folder / f"{split}.bin", "<u2")
        assert tokens[-1] == made.end == 0 and tokens.max() < made.vocab_size
        documents = [part[:-1] for part in np.split(tokens, np.flatnonzero(tokens == made.end) + 1)[:-1]]
        texts = [made.tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in documents]
        assert texts == by_hash(text for text in texts_of() if part_of(text) == split)
        assert texts


def test_counts(made):
    for split in SPLITS:
        texts = [text for text in texts_of() if part_of(text) == split]
        assert made.documents[split] == len(texts)
        assert made.bytes[split] == sum(len(text.encode()) for text in texts)
        assert made.counts[split].tokens == len(made.tokens(split)) == os.path.getsize(made.folder / f"{split}.bin") / 2
    assert made.facts["duplicates"] == 1 and made.facts["skipped"] == 1
    assert made.facts["dtype"] == "uint16"


def test_tokens_are_mapped_and_read_only(made):
    tokens = made.tokens("train")
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1
    with pytest.raises(ValueError, match=r"split: got 'training', expected train, valid or test"):
        made.tokens("training")


def test_the_tokenizer_is_trained_on_train_alone(tmp_path):
    """A word of valid and of test alone, as often as it is there, has no token."""
    texts = texts_of()
    apart = (f"{'quixotic ' * 200}{i}" for i in itertools.count())
    hidden = [text for text in itertools.islice(apart, 60) if part_of(text) != "train"]
    assert {part_of(text) for text in hidden} == {"valid", "test"}
    data = prepare([write_folder(tmp_path / "texts", texts + hidden)], tmp_path / "DATA", vocab=600)
    train = by_hash(text for text in texts if part_of(text) == "train")
    assert (tmp_path / "DATA" / "tokenizer.json").read_text() == train_bpe(train, 600).to_str(pretty=True)
    assert len(data.tokenizer.encode("quixotic").ids) > 3
    assert len(train_bpe(texts + hidden, 600).encode("quixotic").ids) == 1


@pytest.mark.parametrize("vocab", [257, 258, 300])
def test_size_of_the_vocabulary(source, tmp_path, vocab):
    data = prepare([source], tmp_path / "DATA", vocab=vocab)
    assert data.vocab_size == data.tokenizer.get_vocab_size() == vocab
    assert data.tokenizer.id_to_token(0) == END


def test_a_text_with_nothing_left_to_merge(tmp_path):
    texts = ["abab", "cd cd", "ef"]
    data = prepare([write_folder(tmp_path / "texts", texts)], tmp_path / "DATA", vocab=5000)
    assert 257 < data.vocab_size < 270
    assert Data.open(tmp_path / "DATA", verify=True) == data


def test_floors_are_of_these_tokens(made):
    tokens = {split: made.tokens(split) for split in SPLITS}
    expected = floors(tokens["train"], tokens["valid"], VOCAB)._asdict()
    assert made.floors == {name: round(value, 4) for name, value in expected.items()}


def test_sha256_of_every_file(made):
    for name, (size, digest) in made.files.items():
        data = (made.folder / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
    assert {*made.files, "meta.json"} == {path.name for path in made.folder.iterdir()} == set(FILES)


def test_data_opens_as_it_was_made(made):
    assert Data.open(made.folder, verify=True) == Data.open(str(made.folder)) == made


# ---- the same again ----


def test_the_same_sources_give_the_same_bytes(made, source, tmp_path):
    code = "import sys; from fwm_py.experiments.language.data import *; prepare([sys.argv[1]], sys.argv[2], vocab=300)"
    for i in (1, 2):
        environment = os.environ | {"PYTHONHASHSEED": str(i), "RAYON_NUM_THREADS": str(i)}
        subprocess.run([sys.executable, "-c", code, source, tmp_path / f"{i}"], env=environment, check=True)
        assert contents(tmp_path / f"{i}") == contents(made.folder)


def test_a_copy_in_another_order_gives_the_same_tokens(made, tmp_path):
    texts = texts_of()
    folder, file = write_folder(tmp_path / "copy", texts[40:]), tmp_path / "copy.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:40]))
    data = prepare([folder, file], tmp_path / "DATA", vocab=VOCAB)
    assert data.identity == made.identity
    assert contents(data.folder) | {"meta.json": b""} == contents(made.folder) | {"meta.json": b""}
    file.write_text(file.read_text() + '{"text": "one more"}\n')
    assert prepare([folder, file], tmp_path / "MORE", vocab=VOCAB).identity != made.identity


def test_what_is_skipped_is_reported(source, tmp_path):
    reported = []
    prepare([source], tmp_path / "DATA", vocab=VOCAB, on_skip=reported.append)
    assert [str(skipped) for skipped in reported] == [f"{source}/binary: not text: it has a NUL"]


# ---- splits ----


def documents_of(texts):
    return [Document(str(i), text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("parts", [3, 10, 25])
def test_split_by_hash(parts):
    texts = [f"text {i}" for i in range(200)]
    splits, duplicates = split_documents(documents_of(texts + texts[:7]), parts)
    assert duplicates == 7
    assert splits == {split: by_hash(text for text in texts if part_of(text, parts) == split) for split in SPLITS}


def test_no_split_is_empty():
    texts = [f"text {i}" for i in range(40)]
    first, second, *others = by_hash(texts)
    assert split_documents(documents_of(texts), 1 << 30) == ({"train": others, "valid": [first], "test": [second]}, 0)
    rest = [text for text in texts if part_of(text, 3) != "train"]
    splits, _ = split_documents(documents_of(rest), 3)
    larger = max(("valid", "test"), key=lambda split: sum(part_of(text, 3) == split for text in rest))
    assert splits["train"] == by_hash(text for text in rest if part_of(text, 3) == larger)[:1]
    assert sorted(itertools.chain(*splits.values())) == sorted(rest)


def test_three_documents_are_enough(tmp_path):
    texts = ["a", "b", "c", "c"]
    data = prepare([write_folder(tmp_path / "texts", texts)], tmp_path / "DATA", vocab=VOCAB)
    assert set(data.documents.values()) == {1} and data.facts["duplicates"] == 1
    (tmp_path / "texts" / "0000").unlink()
    with pytest.raises(
        ValueError, match=r"sources: got 2 of different text, expected at least 3 documents, for train,"
    ):
        prepare([tmp_path / "texts"], tmp_path / "OTHER", vocab=VOCAB)
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "DATA"}


# ---- tokens ----


def test_tokens_of_32_bits(source, made, tmp_path, monkeypatch):
    for place in (bpe, module):
        monkeypatch.setattr(place, "token_dtype", lambda vocab_size: np.dtype("<u4"))
    data = prepare([source], tmp_path / "DATA", vocab=VOCAB)
    monkeypatch.undo()
    tokens = np.fromfile(tmp_path / "DATA" / "train.bin", "<u4")
    assert (tokens == made.tokens("train")).all() and len(tokens) == data.counts["train"].tokens
    assert data.facts["dtype"] == "uint32"


def test_without_the_library(monkeypatch, tmp_path):
    """Before anything is read."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"texts need tokenizers: pip install 'fwm_py\[language\]'") as caught:
        prepare([tmp_path / "nowhere"], tmp_path / "DATA")
    assert caught.value.name == "tokenizers" and not [*tmp_path.iterdir()]


# ---- the folder ----


def test_a_folder_with_files_is_refused(source, tmp_path):
    (tmp_path / "DATA").mkdir()
    (tmp_path / "DATA" / "mine").write_text("mine")
    for _ in range(2):
        with pytest.raises(FileExistsError, match=r"DATA: got a folder with files, expected a new or an empty one"):
            prepare([source], tmp_path / "DATA")
    with pytest.raises(FileExistsError, match=r"mine: got a file, expected a folder, new or empty"):
        prepare([source], tmp_path / "DATA" / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["DATA", "mine"]


def test_an_empty_folder_or_a_link_to_one_is_filled(made, source, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    prepare([source], tmp_path / "link", vocab=VOCAB)
    assert contents(tmp_path / "far") == contents(made.folder) and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"far", "link"}


def test_folders_above_are_made(source, tmp_path):
    assert prepare([source], tmp_path / "a" / "b", vocab=VOCAB).folder == tmp_path / "a" / "b"


def test_data_within_a_source_is_no_source(made, tmp_path):
    folder = write_folder(tmp_path / "texts", texts_of())
    assert prepare([folder], folder / "DATA", vocab=VOCAB).identity == made.identity


KILLED = """
import os, signal, sys
from fwm_py.experiments.language.data import prepare
replace, calls = os.replace, 0
def killing(*paths):
    global calls
    calls += 1
    if calls > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = killing
prepare([sys.argv[1]], sys.argv[2], vocab=300)
"""


@pytest.mark.parametrize("files", range(len(FILES) + 1))
def test_a_kill_leaves_all_or_nothing(made, source, tmp_path, files):
    """SIGKILL where a file, or the folder at last, would get its name."""
    killed = subprocess.run([sys.executable, "-c", KILLED, source, tmp_path / "DATA", str(files)])
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["DATA.partial"]
    left = contents(tmp_path / "DATA.partial")
    assert len(left) == min(files + 1, len(FILES)) and all(name.removesuffix(".partial") in FILES for name in left)
    prepare([source], tmp_path / "DATA", vocab=VOCAB)
    assert [path.name for path in tmp_path.iterdir()] == ["DATA"]
    assert contents(tmp_path / "DATA") == contents(made.folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(source, tmp_path, monkeypatch, error):
    calls, write_file = [], prepared.write_file

    def failing(path, data):
        calls.append(path)
        if len(calls) == 3:
            raise error
        write_file(path, data)

    monkeypatch.setattr(prepared, "write_file", failing)
    with pytest.raises(type(error)):
        prepare([source], tmp_path / "DATA", vocab=VOCAB)
    assert not [*tmp_path.iterdir()]


def test_bad_sources_leave_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare([tmp_path / "nowhere"], tmp_path / "DATA")
    assert not [*tmp_path.iterdir()]


def test_one_prepare_at_a_time(source, tmp_path):
    partial = tmp_path / "DATA.partial"
    partial.mkdir()
    (partial / "meta.json").write_text("of the other")
    with locked(partial, "in use"), pytest.raises(Refused, match=r"DATA.partial: another process prepares this folder"):
        prepare([source], tmp_path / "DATA")
    assert contents(partial) == {"meta.json": b"of the other"}


def test_the_faster_one_stays(source, tmp_path, monkeypatch):
    """What has come to stand at DATA meanwhile."""

    def other(*_):
        (tmp_path / "DATA").mkdir()
        (tmp_path / "DATA" / "mine").write_text("mine")
        return texts(*_)

    texts = module.split_documents
    monkeypatch.setattr(module, "split_documents", other)
    with pytest.raises(FileExistsError, match="got a folder with files"):
        prepare([source], tmp_path / "DATA", vocab=VOCAB)
    assert [path.name for path in tmp_path.rglob("*")] == ["DATA", "mine"]


def test_files_of_others_are_not_deleted(source, tmp_path):
    partial = write_folder(tmp_path / "DATA.partial", ["mine"])
    with pytest.raises(FileExistsError, match=r"DATA.partial/0000: got a file that no prepare has written"):
        prepare([source], tmp_path / "DATA")
    assert contents(partial) == {"0000": b"mine"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vocab": 256}, r"vocab: got 256, expected an integer in 257\.\.1048576"),
        ({"vocab": (1 << 20) + 1}, r"vocab: got 1048577, expected"),
        ({"parts": 2}, r"parts: got 2, expected an integer in 3\.\."),
    ],
)
def test_refusals(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare([source], tmp_path / "DATA", **options)


# ---- damage ----

WAY_OUT = "delete this folder, and prepare it again$"


def flip(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(copied, name):
    (copied / name).unlink()
    with pytest.raises(
        ValueError, match=rf"^\S*/{name}: got no such file, expected one that prepare writes; {WAY_OUT}"
    ):
        Data.open(copied)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
@pytest.mark.parametrize("name", FILES[:-1])
def test_a_file_of_another_size(copied, name, change):
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(change(data))
    got = rf"{len(change(data))} bytes, expected {len(data)}"
    with pytest.raises(ValueError, match=rf"^\S*/{name}: got {got}; {WAY_OUT}"):
        Data.open(copied)


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_file_of_other_contents(copied, name):
    (copied / name).write_bytes(flip((copied / name).read_bytes()))
    data = Data.open(copied)
    message = rf"^\S*/{name}: got other contents, expected the sha256 of meta.json; {WAY_OUT}"
    with pytest.raises(ValueError, match=message):
        Data.open(copied, verify=True)
    if name == "tokenizer.json":
        with pytest.raises(ValueError, match=message):
            data.tokenizer  # noqa: B018


def test_files_that_change_after_opening(copied):
    data = Data.open(copied)
    (copied / "test.bin").write_bytes(b"\0\0")
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=rf"test.bin: got 2 bytes, expected \d+; {WAY_OUT}"):
        data.tokens("test")
    with pytest.raises(ValueError, match=rf"tokenizer.json: got no such file, .*; {WAY_OUT}"):
        data.tokenizer  # noqa: B018


def changed(name, value):
    def change(text):
        meta = json.loads(text)
        assert meta[name] != value
        return json.dumps(meta | {name: value})

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-3],
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "3",
        lambda text: "{}",
        lambda text: '{"format": 1}',
        lambda text: "[" * 100_000,
        lambda text: text.replace('"sources"', '"sauces"'),
        changed("vocab_size", 301),
        changed("vocab_size", None),
        changed("floors", {}),
        changed("sha256", "0" * 64),
    ],
)
def test_damaged_facts(copied, change):
    path = copied / "meta.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(
        ValueError, match=rf"^\S*/meta.json: got a damaged file, expected what prepare writes; {WAY_OUT}"
    ):
        Data.open(copied)


def test_facts_that_are_no_text(copied):
    (copied / "meta.json").write_bytes(b"\xff\0")
    with pytest.raises(ValueError, match=r"meta.json: got a damaged file"):
        Data.open(copied)


def test_another_format(copied):
    path = copied / "meta.json"
    path.write_text(changed("format", 2)(path.read_text()))
    with pytest.raises(ValueError, match=rf"meta.json: got the format 2, expected 1, that of fwm_py .*; {WAY_OUT}"):
        Data.open(copied)


def test_data_of_another_kind(copied):
    path = copied / "meta.json"
    path.write_text(changed("kind", "translation")(path.read_text()))
    with pytest.raises(ValueError, match=r"meta.json: got data of 'translation', expected language"):
        Data.open(copied)


@pytest.mark.parametrize("name", ["nowhere", "DATA/train.bin"])
def test_no_folder(copied, name):
    with pytest.raises(ValueError, match=rf"{name}/meta.json: got no such file, .*; {WAY_OUT}"):
        Data.open(copied.parent / name)
