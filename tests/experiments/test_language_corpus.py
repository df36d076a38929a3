"""What is read from sources, and what is skipped, by name and with a reason."""

import errno
import gzip
import json
import os
import sysconfig
from pathlib import Path

import pytest

from fwm_py.experiments.language import corpus
from fwm_py.experiments.language.corpus import Document, Skipped, read_corpus


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, so that names are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, data):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_file_is_a_document_as_it_is(folder):
    text = "\ufeffone\r\ntwo\x0c \u2028 é \U0001f600\n\n"
    write("a.txt", text)
    assert read_corpus(["a.txt"]) == ([Document("a.txt", text)], [])
    assert read_corpus([Path("a.txt")]) == read_corpus([b"a.txt"]) == read_corpus(["a.txt"])


def test_a_folder_is_read_sorted_with_all_below(folder):
    for name in ("d/b.txt", "d/a.rst", "d/c/z", "d/c/y.py", "d/B"):
        write(name, name)
    assert [name for name, _ in read_corpus(["d"]).documents] == ["d/B", "d/a.rst", "d/b.txt", "d/c/y.py", "d/c/z"]


def test_sources_are_read_in_their_order(folder):
    write("b", "1")
    write("a", "2")
    assert read_corpus(["b", "a"]).documents == [("b", "1"), ("a", "2")]


def test_gz(folder):
    write("a.txt.gz", gzip.compress(b"zipped"))
    write("b.jsonl.gz", gzip.compress(lines({"text": "one"}, {"text": "two"}).encode()))
    write("C.GZ", gzip.compress(b"upper"))
    documents = read_corpus(["a.txt.gz", "b.jsonl.gz", "C.GZ"]).documents
    assert documents == [
        ("a.txt.gz", "zipped"),
        ("b.jsonl.gz: line 1", "one"),
        ("b.jsonl.gz: line 2", "two"),
        ("C.GZ", "upper"),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"text",
        lambda data: data[:-10],
        lambda data: data[:10] + b"\xff" + data[11:],
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    ],
    ids=["none", "cut", "contents", "checksum"],
)
def test_a_damaged_gz_is_skipped(folder, damage):
    write("a.gz", damage(gzip.compress(b"some text that is long enough for all of this" * 9)))
    write("b", "good")
    assert read_corpus(["a.gz", "b"]) == ([("b", "good")], [("a.gz", "a damaged .gz")])


def test_jsonl(folder):
    write(
        "a.jsonl", "\ufeff" + lines({"text": "é\n", "id": 3}) + "\n  \r\n" + lines({"text": ""}) + '{"text": "end"}\r'
    )
    assert read_corpus(["a.jsonl"]) == ([("a.jsonl: line 1", "é\n"), ("a.jsonl: line 5", "end")], [])


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"text": "cut', "no JSON with a text in the field text"),
        (b'{"title": "a"}', "no JSON with a text in the field text"),
        (b'{"text": 3}', "no JSON with a text in the field text"),
        (b'{"text": ["a"]}', "no JSON with a text in the field text"),
        (b'["text"]', "no JSON with a text in the field text"),
        (b'{"text": "\xff"}', "no JSON with a text in the field text"),
        (b'{"text": "\\ud800"}', "no JSON with a text in the field text"),
        (b"[" * 100_000, "no JSON with a text in the field text"),
        (b'{"text": "a\\u0000"}', "not text: it has a NUL"),
    ],
)
def test_a_damaged_line_is_named(folder, line, reason):
    write("a.jsonl", b'{"text": "one"}\n' + line + b'\n{"text": "three"}')
    documents = [("a.jsonl: line 1", "one"), ("a.jsonl: line 3", "three")]
    assert read_corpus(["a.jsonl"]) == (documents, [("a.jsonl: line 2", reason)])


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"a\0b", "not text: it has a NUL"),
        ("caf\xe9".encode("latin-1"), "not text: no UTF-8 at byte 3"),
        ("text".encode("utf-16"), "not text: it has a NUL"),
    ],
)
def test_what_is_no_text_is_skipped(folder, data, reason):
    write("d/bad", data)
    write("d/good", "good")
    skipped = Skipped("d/bad", reason)
    assert read_corpus(["d"]) == read_corpus(["d/bad", "d/good"]) == ([("d/good", "good")], [skipped])
    assert str(skipped) == f"d/bad: {reason}"


def test_what_is_empty_is_no_document(folder):
    write("d/a", "")
    write("d/b", "b")
    assert read_corpus(["d"]) == ([("d/b", "b")], [])


def test_a_file_counts_once(folder):
    write("d/a", "a")
    write("d/c/b", "b")
    os.symlink("a", "d/link")
    os.symlink("../..", "d/c/round")
    os.symlink("d", "other")
    names = ["d/a", "d/c/b"]
    for sources in (["d"], ["d", "d"], ["d", "other", "d/a", "d/link"]):
        assert [name for name, _ in read_corpus(sources).documents] == names
    assert [name for name, _ in read_corpus(["other"]).documents] == ["other/a", "other/c/b"]
    assert [name for name, _ in read_corpus(["d/link", "d"]).documents] == ["d/link", "d/c/b"]


def test_links_are_followed(folder):
    write("far/f/a", "a")
    write("far/b", "b")
    os.mkdir("d")
    os.symlink("../far/f", "d/folder")
    os.symlink("../far/b", "d/file")
    assert read_corpus(["d"]).documents == [("d/file", "b"), ("d/folder/a", "a")]


def test_what_is_no_file_in_a_folder_is_skipped(folder):
    write("d/a", "a")
    write("d/.git/config", "b")
    write("d/.hidden", "c")
    os.mkfifo("d/pipe")
    os.symlink("nowhere", "d/link")
    documents, skipped = read_corpus(["d"])
    assert documents == [("d/a", "a")]
    assert sorted(skipped) == [
        ("d/.git", "hidden"),
        ("d/.hidden", "hidden"),
        ("d/link", "a link to nothing"),
        ("d/pipe", "a device or a pipe"),
    ]
    assert read_corpus(["d/.hidden"]).documents == [("d/.hidden", "c")]  # as it was asked for


def deny(monkeypatch, name):
    """The file or folder may not be opened, root or not."""

    def denying(function):
        def denied(path, *args, **kwargs):
            if os.fspath(path) == name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return function(path, *args, **kwargs)

        return denied

    monkeypatch.setattr(corpus, "open", denying(open), raising=False)
    monkeypatch.setattr(os, "scandir", denying(os.scandir))


@pytest.mark.parametrize("name", ["d/bad", "d/folder"])
def test_what_may_not_be_read(folder, monkeypatch, name):
    write("d/bad", "bad")
    write("d/folder/file", "file")
    write("d/good", "good")
    deny(monkeypatch, name)
    documents, skipped = read_corpus(["d"])
    assert len(documents) == 2 and skipped == [(name, "Permission denied")]
    with pytest.raises(PermissionError, match=name):
        read_corpus(["d/good", name])


def test_a_missing_source_is_refused(folder):
    write("a", "a")
    with pytest.raises(FileNotFoundError, match="'nowhere'"):
        read_corpus(["a", "nowhere"])


def test_a_pipe_is_refused(folder):
    write("a", "a")
    os.mkfifo("pipe")
    with pytest.raises(ValueError, match=r"^sources: got 'pipe', expected files, folders, .gz, .jsonl or stdlib$"):
        read_corpus(["a", "pipe"])


def test_nothing_left_is_refused(folder):
    write("a", b"\0")
    write("b", b"\0")
    write("c", b"")
    expected = "expected files, folders, .gz, .jsonl or stdlib$"
    for sources, got in (
        ([], ""),
        (["c"], ""),
        (["a"], ", but a: not text: it has a NUL"),
        (["a", "b"], ", but a: not text: it has a NUL and 1 more"),
    ):
        with pytest.raises(ValueError, match=f"^sources: got no text{got}, {expected}"):
            read_corpus(sources)


@pytest.mark.parametrize("sources", ["a.txt", Path("a.txt"), b"a.txt"])
def test_a_path_is_no_list(sources):
    with pytest.raises(TypeError, match=r"sources: got .*a\.txt.*, expected a list of files"):
        read_corpus(sources)


# ---- stdlib ----


def test_stdlib_is_of_this_python():
    documents, _ = read_corpus(["stdlib"])
    texts = dict(documents)
    root = sysconfig.get_paths()["stdlib"]
    assert texts[os.path.join(root, "os.py")] == Path(root, "os.py").read_bytes().decode()
    assert os.path.join(root, "json", "decoder.py") in texts
    assert len(documents) > 200
    left_out = {"site-packages", "dist-packages", "test", "tests", "encodings", "idlelib", "lib2to3", "__pycache__"}
    for name in texts:
        assert name.endswith(".py") and not left_out & set(Path(name).relative_to(root).parts)


def test_stdlib_takes_sources_alone(folder, monkeypatch):
    wanted = ["lib/a.py", "lib/email/b.py"]
    for name in (
        *wanted,
        "lib/c.txt",
        "lib/_sysconfigdata_linux.py",
        "lib/config-3/d.py",
        "lib/site-packages/e.py",
        "lib/email/tests/f.py",
        "lib/tkinter/g.py",
    ):
        write(name, name)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": "lib"})
    assert read_corpus(["stdlib"]) == ([(name, name) for name in wanted], [])
    write("stdlib", "a file of this name")
    assert read_corpus(["stdlib"]).documents[0].name == "lib/a.py"
    assert read_corpus(["./stdlib"]).documents == [("./stdlib", "a file of this name")]


def test_a_python_without_sources_is_refused(folder, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": "lib.zip"})
    with pytest.raises(ValueError, match="sources: got no text, but lib.zip: No such file or directory, expected"):
        read_corpus(["stdlib"])
