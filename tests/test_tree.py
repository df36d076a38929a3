"""The order of csrc: layers call downwards, no circles, a name for one struct alone, and a page for each file with
mathematics; no dead link in the documentation; and tests that share support alone."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
CSRC = ROOT / "csrc"
pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="csrc is not here")

# From low to high: a file includes what stands in its own layer or below.
LAYERS = [
    ("random", "runtime"),
    ("api",),
    ("kernels/base",),
    ("kernels/maps", "kernels/rules", "kernels/attention", "kernels/convolution", "kernels/norm"),
    ("kernels/retrieval/readouts",),
    ("kernels/retrieval",),
    ("kernels",),  # table.c
    ("retrieval",),
    ("python",),
]
# What a folder includes none of although it stands below: whoever calls the kernels knows them by api alone.
UNSEEN = {"retrieval": ("kernels",), "python": ("kernels",)}

FILES = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*.[ch]"))


def room_of(path):
    """The layer of a file and its room there: the longest of the folders above that it lies in."""
    found = [(len(room), i, room) for i, rooms in enumerate(LAYERS) for room in rooms if path.startswith(room + "/")]
    assert found, f"{path} lies in no layer"
    return max(found)[1:]


def includes(path):
    return re.findall(r'^#include "(.*)"', (CSRC / path).read_text(), re.MULTILINE)


def without_comments(path):
    return re.sub(r"/\*.*?\*/", "", (CSRC / path).read_text(), flags=re.DOTALL)


def find_circle(edges):
    """The nodes of a circle, or None."""
    state = {}

    def visit(node, way):
        state[node] = "open"
        for other in edges.get(node, ()):
            if state.get(other) == "open":
                return [*way[way.index(other) :], other]
            circle = None if other in state else visit(other, [*way, other])
            if circle:
                return circle
        state[node] = "done"
        return None

    return next((circle for node in edges if node not in state if (circle := visit(node, [node]))), None)


def test_a_circle_is_found():
    assert find_circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert find_circle({"a": ["b", "c"], "b": ["c"], "c": []}) is None


@pytest.mark.parametrize("path", FILES)
def test_includes_go_downwards(path):
    for other in includes(path):
        assert (CSRC / other).is_file()
        assert room_of(other)[0] <= room_of(path)[0], f"{path} includes {other}, which stands above it"
        folder = path.split("/")[0]
        assert not other.startswith(tuple(f"{hidden}/" for hidden in UNSEEN.get(folder, ()))), f"{path}: {other}"


def test_no_circle_of_files():
    """A .c and the .h of its name are one: what one of them includes, both do."""
    edges = {}
    for path in FILES:
        unit = path.rsplit(".", 1)[0]
        others = (other.rsplit(".", 1)[0] for other in includes(path))
        edges.setdefault(unit, set()).update(other for other in others if other != unit)
    assert find_circle(edges) is None


def test_no_circle_of_rooms():
    edges = {room: set() for layer in LAYERS for room in layer}
    for path in FILES:
        own = room_of(path)[1]
        edges[own].update(other for other in (room_of(name)[1] for name in includes(path)) if other != own)
    assert sum(map(len, edges.values())) > 10 and find_circle(edges) is None


TYPES = re.compile(
    r"\btypedef\s+(?:struct|union|enum)\b[^;{]*\{(?:[^{}]|\{[^{}]*\})*\}\s*(\w+)\s*;|\bstruct\s+(\w+)\s*\{"
)


def test_a_struct_has_one_name():
    where = {}
    for path in FILES:
        for names in TYPES.findall(without_comments(path)):
            where.setdefault(names[0] or names[1], []).append(path)
    assert len(where) > 100  # they are found
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}


def test_names_are_not_doubled():
    """FWM_NAME puts fwm_ before a name."""
    for path in FILES:
        assert "FWM_NAME(fwm_" not in (CSRC / path).read_text(), path


def test_no_enumerator_of_one_letter_in_a_header():
    for path in FILES:
        if path.endswith(".h"):
            for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", without_comments(path)):
                names = [entry.split("=")[0].strip() for entry in body.split(",")]
                assert all(len(name) != 1 for name in names), (path, names)
            assert not re.findall(r"^#define [A-Z]\b", (CSRC / path).read_text(), re.MULTILINE), path


# ---- documentation ----

# Folders of csrc/kernels with mathematics, and the names of their files that have none.
WITH_MATHEMATICS = ("attention", "convolution", "maps", "noncausal", "norm", "retrieval", "rules")
WITHOUT = ("table.c", "operation.c", "rules/halves.c")
DERIVED = [
    path
    for path in FILES
    if path.startswith(tuple(f"kernels/{folder}/" for folder in WITH_MATHEMATICS))
    and path.endswith(".c")
    and not path.endswith(WITHOUT)
]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))


def first_comment(path):
    return re.match(r"/\*.*?\*/", (CSRC / path).read_text(), flags=re.DOTALL)[0]


def without_code(text):
    """Markdown without blocks and spans of code, in which brackets are no links and # no heading."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))


def links_of(page):
    """The targets in this tree, as they are written."""
    targets = re.findall(r"\]\(([^()\s]+)\)", without_code((ROOT / page).read_text()))
    return [target for target in targets if not target.startswith(("https://", "http://", "mailto:"))]


def anchors_of(path):
    """The anchors that the headings of a page have on GitHub."""
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DERIVED)
def test_a_file_with_mathematics_names_its_page(path):
    """And the page links to the file."""
    pages = re.findall(r"docs/mathematics/\w+\.md", first_comment(path))
    assert len(pages) == 1 and (ROOT / pages[0]).is_file(), f"{path} names {pages}"
    assert f"../../csrc/{path}" in links_of(pages[0]), f"{pages[0]} has no link to csrc/{path}"


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page):
    for link in links_of(page):
        name, _, anchor = link.partition("#")
        target = ROOT / page if not name else (ROOT / page).parent / name
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors_of(target), f"{page} links to {link}"


def test_links_are_found():
    assert len(DERIVED) > 30 and sum(map(len, map(links_of, PAGES))) > 100


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_test_imports_from_another(path):
    """What several share is in support; programs in strings, too, import from there."""
    text = path.read_text()
    assert not re.findall(r"^\s*(?:from|import)\s[\w., ]*\btest_\w+", text, re.MULTILINE)
    assert len(text.splitlines()) <= 500
