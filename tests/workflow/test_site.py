"""The pages of the site, and the README's animation."""

import re
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from tests.conftest import ROOT
from workflow import site
from workflow.animate import write_animation


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """The pages, with a demo that says nothing."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(site, "PAGES", tmp_path / "pages")
    monkeypatch.setattr(site, "apr", lambda arguments: Path(arguments[-1]).write_text("live") and 0)
    assert site.main() == 0
    return tmp_path / "pages"


def test_every_link_of_a_page_has_an_end_and_every_page_its_place(pages):
    for page in pages.glob("*.md"):
        links = re.findall(r"\]\((?!http)([^)#\s]+)", page.read_text())
        assert not [link for link in links if not (pages / link).exists()], page.name
        assert ".." not in "".join(links)
    found = [value for entry in YAML(typ="safe").load(ROOT / "mkdocs.yml")["nav"] for value in entry.values()]
    named = [name for value in found for name in (value if isinstance(value, list) else [value])]
    assert sorted(named) == sorted(page.name for page in pages.glob("*.md"))
    assert "live.html" in (pages / "demo.md").read_text() and (pages / "live.html").read_text() == "live"


def test_links_are_those_of_one_folder():
    text = "[a](docs/gpu.md#b) [c](https://x.y/z.md) [d](results/report.html) ![e](docs/demo.gif)"
    assert site.linked(text, Path()) == (
        "[a](gpu.md#b) [c](https://x.y/z.md) [d](results/report.html) ![e](demo.gif)")
    assert site.linked("[f](examples/README.md)", Path()) == "[f](examples.md)"
    assert site.linked("[a](../README.md) [b](cost.md)", Path("docs")) == "[a](index.md) [b](cost.md)"


def test_an_animation_keeps_its_pictures_and_its_last_one_longest(tmp_path):
    pictures = [Image.new("RGB", (40, 20), colour) for colour in ("white", "red", "blue")]
    write_animation(pictures, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as shown:
        assert (shown.n_frames, shown.size, shown.info["loop"]) == (3, (40, 20), 0)
        seen = []
        for frame in range(3):
            shown.seek(frame)
            seen.append((shown.convert("RGB").getpixel((5, 5)), shown.info["duration"]))
    assert seen == [((255, 255, 255), 110), ((255, 0, 0), 110), ((0, 0, 255), 4000)]
