"""`snakemake` and `dvc` as forks of one process that has imported what they import, which takes a second.

They import the `apr` of the folder that they work in, as they do when they are started.
"""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

OWN = ("__main__", "apr", "workflow")


@cache
def server() -> "subprocess.Popen[str]":
    """This file's process, which ends when its input does."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, env=environment)  # fmt: skip


def run(program: str, *arguments: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code of a program, and what it says."""
    process = server()
    assert process.stdin and process.stdout
    with TemporaryDirectory() as temporary:
        out = Path(temporary, "said")
        print(json.dumps([program, arguments, str(folder), dict(environment), str(out)]),
              file=process.stdin, flush=True)  # fmt: skip
        return int(process.stdout.readline()), out.read_text()


def serve() -> None:
    for line in sys.stdin:
        program, arguments, folder, environment, out = json.loads(line)
        if not os.fork():
            work(program, arguments, folder, environment, out)
        code = os.waitstatus_to_exitcode(os.wait()[1])
        for name in Path(f"{out}.modules").read_text().split():  # the next one finds them imported
            with suppress(Exception):
                import_module(name)
        print(code, flush=True)


def work(program: str, arguments: list[str], folder: str, environment: dict[str, str], out: str) -> Any:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(out, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [program, *arguments]
    atexit.register(lambda: Path(f"{out}.modules").write_text(
        "\n".join(name for name in sys.modules if name.split(".")[0] not in OWN)))  # fmt: skip
    sys.exit(import_module(f"{program}.cli").main())


if __name__ == "__main__":
    serve()
