"""Gathers what a bare machine with a GPU lacks, into a folder that is carried there beside this repository.

    python -m workflow.gpu.gather gpu-carry --checkpoint data/models/sft/apr

The machine has a Python with PyTorch and transformers, and no network. The folder has wheels of the other
packages that training needs, the problems and the tokenizer of the scale, and a checkpoint that was trained
elsewhere, if one is given. Sizes are printed; more than --most-mb with what git tracks is an error.
"""

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from apr.core.files import remove
from apr.core.model_files import read_config
from apr.pipeline.plan import Plan, load_scale
from apr.pipeline.run import call

WHEELS = ("trl", "datasets", "dill", "multiprocess", "peft", "pydantic", "pydantic_core", "annotated_types",
          "typing_inspection", "ruamel.yaml", "starlette")  # fmt: skip
"""What such a machine lacks, all that these need being there."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def wheels(folder: Path, python: str) -> None:
    """Downloads wheels of the versions that are installed here, for another Python."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                    "--implementation", "cp", "--python-version", python, *platforms, "--dest", str(folder),
                    *(f"{name}=={version(name)}" for name in WHEELS)], check=True)  # fmt: skip


def made(folder: Path, scale: str) -> None:
    """Makes the problems and the tokenizer of a scale, in a folder."""
    plan = Plan(scale, root=f"{folder}/")
    for name in ("problems", "tokenizer"):
        call(plan.jobs[name])


def size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file() and not path.is_symlink())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", default="gpu")
    parser.add_argument(
        "--checkpoint", type=Path, help="model that the scale's task was trained on elsewhere"
    )
    parser.add_argument("--python", default="3.12", help="that of the machine")
    parser.add_argument("--most-mb", type=float, default=64 * 1.048576, help="in all (default: 64 MiB)")
    args = parser.parse_args()
    load_scale(args.scale)
    if args.checkpoint:
        read_config(args.checkpoint)
    remove(args.folder)
    wheels(args.folder / "wheels", args.python)
    made(args.folder, args.scale)
    if args.checkpoint:
        shutil.copytree(args.checkpoint, args.folder / "checkpoint")
    tracked = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], check=True,
                             capture_output=True, text=True).stdout  # fmt: skip
    sizes = {place.name: size([place, *place.rglob("*")]) for place in sorted(args.folder.iterdir())}
    sizes["repository"] = size([Path(name) for name in tracked.split("\0") if name])
    for name, count in sizes.items():
        print(f"{count / 1e6:8.2f} MB {name}")
    whole = sum(sizes.values()) / 1e6
    print(f"{whole:8.2f} MB in all, allowed: {args.most_mb:.2f}")
    sys.exit(whole > args.most_mb)


if __name__ == "__main__":
    main()
