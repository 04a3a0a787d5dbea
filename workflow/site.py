"""Puts together the pages of the site: README, docs, examples, what they show of the results, and the demo.

`make site` makes .site/html of them, with MkDocs: it can be read without a network.
"""

import os
import re
import shutil
from pathlib import Path

from apr.cli.main import main as apr
from apr.core.files import remove

PAGES = Path(".site/pages")
NAMES = {"README.md": "index.md", "examples/README.md": "examples.md"}
"""Documents that have another name on the site, where all pages lie in one folder."""
KEPT = ("results", "LICENSE", "CITATION.cff")
"""What links lead to and is no page."""
LIVE = "live.html"
FRAME = f"""
[Open it alone]({LIVE}), or use it here:

<iframe src="{LIVE}" title="the demo" loading="lazy" style="width: 100%; height: 62rem; border: 0"></iframe>
"""


def documents() -> list[Path]:
    """Returns what becomes a page."""
    return [*sorted(Path().glob("*.md")), *sorted(Path("docs").glob("*.md")), Path("examples/README.md")]


def linked(text: str, folder: Path) -> str:
    """Returns the text of a document in `folder`, with its links as they are on the site."""

    def place(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = os.path.normpath(folder / target)
        page = path.endswith((".md", ".gif")) and not path.startswith(KEPT)
        name = NAMES.get(path, os.path.basename(path) if page else path)
        return f"]({name}{anchor})"

    return re.sub(r"\]\((?!http)([^)#\s]+)(#[^)\s]*)?\)", place, text)


def main() -> int:
    remove(PAGES)
    PAGES.mkdir(parents=True)
    for path in documents():
        text = linked(path.read_text(), path.parent)
        if path.name == "demo.md":
            title, _, rest = text.partition("\n")
            text = f"{title}\n{FRAME}{rest}"
        (PAGES / NAMES.get(str(path), path.name)).write_text(text)
    for name in KEPT:
        copy = shutil.copytree if Path(name).is_dir() else shutil.copyfile
        copy(name, PAGES / name)
    for picture in Path("docs").glob("*.gif"):
        shutil.copyfile(picture, PAGES / picture.name)
    return apr(["demo", "--out", str(PAGES / LIVE)])


if __name__ == "__main__":
    raise SystemExit(main())
