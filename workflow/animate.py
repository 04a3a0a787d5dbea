"""The README's animation: the demo solves a problem, photographed in Chromium every few steps.

    python -m workflow.animate [--page data/demo.html] [--out docs/demo.gif] ["5 8 13 19 -> 44"]
        [--children 6]
"""

import argparse
import json
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from apr.core.files import atomic_path
from apr.tasks.countdown.problem import Problem, problem_of_text
from tests.chromium import Browser, open_browser

WIDTH, EVERY = 900, 5
"""Pixels; steps between two pictures."""
SHOWN, LAST = 110, 4000
"""Milliseconds of a picture, and of the last one."""
COLOURS = 40
STYLE = """header, details, .buttons, .transport, .hint, .about { display: none !important }
#panes { min-height: 0 !important; grid-template-columns: minmax(0, 1fr) 260px !important }
main { padding: 0 12px 12px !important } form { border: 0 !important; padding: 0 !important }
body { background: #fff !important } * { transition: none !important }"""
PREPARE = """(([style, numbers, target, children]) => {
  document.head.append(Object.assign(document.createElement("style"), { textContent: style }));
  fill({ numbers, target });
  at("children").value = children;
  start();
  playing = false;
})"""
STEPS = "for (let i = 0; i < %d; i++) stepAll(); show(); lanes.every(lane => lane.rollout.done)"


def photograph(browser: Browser, page: Path, problem: Problem, children: int | None) -> list[Image.Image]:
    """Returns the pictures, from the first steps to the last of both models, all of one size."""
    given = json.dumps([STYLE, problem.numbers, problem.target, "" if children is None else str(children)])

    def begin() -> None:
        browser.open(page.resolve(), WIDTH, 1200)
        browser.run(PREPARE + f"({given})")

    begin()
    browser.run(STEPS % 10_000)
    height = browser.run("Math.ceil(document.querySelector('main').getBoundingClientRect().bottom)")
    begin()
    pictures, done = [], False
    while not done:
        done = browser.run(STEPS % EVERY)
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
        data = browser.call("Page.captureScreenshot", clip=clip)["data"]
        pictures.append(Image.open(BytesIO(b64decode(data))).convert("RGB"))
    return pictures


def write_animation(pictures: list[Image.Image], out: Path) -> None:
    """Writes a GIF that runs for ever."""
    some = pictures[:: max(1, len(pictures) // 4)] + pictures[-1:]
    sheet = Image.new("RGB", (some[0].width, sum(picture.height for picture in some)))
    for place, picture in enumerate(some):
        sheet.paste(picture, (0, place * picture.height))
    palette = sheet.quantize(COLOURS, dither=Image.Dither.NONE)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [SHOWN] * (len(frames) - 1) + [LAST]
    with atomic_path(out) as partial:
        frames[0].save(partial, format="GIF", save_all=True, append_images=frames[1:], duration=durations,
                       loop=0, optimize=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("problem", nargs="?", default="5 8 13 19 -> 44")
    parser.add_argument("--children", type=int)
    parser.add_argument("--page", type=Path, default=Path("data/demo.html"))
    parser.add_argument("--out", type=Path, default=Path("docs/demo.gif"))
    args = parser.parse_args()
    with TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:
        pictures = photograph(browser, args.page, problem_of_text(args.problem), args.children)
    write_animation(pictures, args.out)
    print(f"{args.out}: {len(pictures)} pictures, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
