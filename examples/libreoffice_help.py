"""English and German paragraphs of LibreOffice's help, line by line: the text of the translation study.

    apt-get download libreoffice-help-en-us libreoffice-help-de   # or https://packages.debian.org/bookworm
    dpkg-deb -x libreoffice-help-en-us_*.deb help && dpkg-deb -x libreoffice-help-de_*.deb help
    python examples/libreoffice_help.py help pairs

writes train, valid and test, each as .en and .de, into the folder pairs. Paragraphs and headings belong together that
have the same id in the same file of both languages; those that are the same in both, repetitions, and those of more
than 100 words are left out. A file is in one split as a whole: valid if the sha256 of its path has the remainder 0 when
divided by 25, test if 1. The help is under the Mozilla Public License 2.0.
"""

import argparse
import collections
import hashlib
from html.parser import HTMLParser
from pathlib import Path

HELP = "usr/share/libreoffice/help/{}/text"
LANGUAGES = {"en": "en-US", "de": "de"}
PARTS = 25
LONGEST = 100  # words


class Paragraphs(HTMLParser):
    """The texts of elements with ids that begin with par_ or hd_, by id; an id that occurs twice has its first text."""

    KINDS = ("p", *(f"h{i}" for i in range(1, 7)))

    def __init__(self):
        super().__init__()
        self.found, self.open, self.parts = {}, None, []

    def handle_starttag(self, tag, attributes):
        name = dict(attributes).get("id") or ""
        if tag in self.KINDS and name.startswith(("par_", "hd_")):
            self.open, self.parts = name, []

    def handle_data(self, data):
        self.parts.append(data)

    def handle_endtag(self, tag):
        if tag in self.KINDS and self.open:
            self.found.setdefault(self.open, " ".join("".join(self.parts).split()))
            self.open = None


def paragraphs(path):
    parser = Paragraphs()
    parser.feed(path.read_text("utf-8"))
    return parser.found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("help", type=Path, help="where the packages were unpacked")
    parser.add_argument("out", type=Path, help="a folder, made if missing")
    args = parser.parse_args()
    roots = {language: args.help / HELP.format(name) for language, name in LANGUAGES.items()}
    files = sorted(path.relative_to(roots["en"]) for path in roots["en"].rglob("*.html"))
    if not files:
        parser.error(f"help: got no pages in {roots['en']}, expected those of libreoffice-help-en-us")
    splits, seen = collections.defaultdict(list), set()
    for file in files:
        remainder = int.from_bytes(hashlib.sha256(file.as_posix().encode()).digest(), "big") % PARTS
        if not (roots["de"] / file).exists():
            continue
        english, german = (paragraphs(roots[language] / file) for language in LANGUAGES)
        for name, text in english.items():
            pair = text, german.get(name, "")
            fits = all(pair) and text != pair[1] and max(len(side.split()) for side in pair) <= LONGEST
            if fits and pair not in seen:
                seen.add(pair)
                splits[{0: "valid", 1: "test"}.get(remainder, "train")].append(pair)
    args.out.mkdir(parents=True, exist_ok=True)
    for split, pairs in splits.items():
        for language, side in zip(LANGUAGES, zip(*pairs)):
            (args.out / f"{split}.{language}").write_text("".join(f"{text}\n" for text in side), "utf-8")
        print(f"{split}: {len(pairs)} pairs")


if __name__ == "__main__":
    main()
