"""English prose for measuring imports: the Debian handbook's paragraphs as two text files.

apt-get download debian-handbook && dpkg -x debian-handbook_*.deb handbook
python handbook_text.py handbook/usr/share/doc/debian-handbook/html/en-US OUT

Paragraphs of every page in order of file name. Every fourth page goes to OUT/heldout.txt,
the others to OUT/train.txt (calibration and fine-tuning). The handbook is free text (GPL-2+ or
CC-BY-SA); nothing of it is part of this repository.
"""

import html.parser
import pathlib
import re
import sys


class Paragraphs(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.depth, self.parts, self.all = 0, [], []

    def handle_starttag(self, tag, attrs):
        if self.depth:
            # A list or a listing inside a paragraph ends it.
            if tag == "div":
                self.end()
        elif tag == "div" and ("class", "para") in attrs:
            self.depth, self.parts = 1, []

    def handle_data(self, data):
        if self.depth:
            self.parts.append(data)

    def handle_endtag(self, tag):
        if tag == "div" and self.depth:
            self.end()

    def end(self):
        text = re.sub(r"\s+", " ", "".join(self.parts)).strip()
        if len(text) > 80:
            self.all.append(text)
        self.depth = 0


def main():
    source, out = map(pathlib.Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    texts = {"train": [], "heldout": []}
    for number, page in enumerate(sorted(source.glob("*.html"))):
        reader = Paragraphs()
        reader.feed(page.read_text(encoding="utf-8"))
        texts["heldout" if number % 4 == 3 else "train"] += reader.all
    for name, paragraphs in texts.items():
        # Navigation is repeated on every page; what was seen before is left out.
        paragraphs = list(dict.fromkeys(paragraphs))
        (out / f"{name}.txt").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
        print(name, len(paragraphs), "paragraphs", (out / f"{name}.txt").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
