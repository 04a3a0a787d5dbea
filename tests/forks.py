"""`snakemake`, `dvc` and `apr` as forks of one process that has imported what they need: it takes seconds.

They import the `apr` of the folder that they work in, as they do when they are started. What a fork starts by
one of these names, or as a module of Python, is a fork of that process too.
"""

import atexit
import gc
import json
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from select import select
from socket import AF_UNIX, recv_fds, send_fds, socket
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, NoReturn

PROGRAMS = ("snakemake", "dvc", "apr")
OWN = ("__main__", "apr", "workflow")
CLIENT = f"""import os, runpy, sys
programs, name, *arguments = sys.argv[1:]
if name == "python" and arguments[:1] == ["-m"] and arguments[1] in {PROGRAMS}:
    name, *arguments = arguments[1:]
if name == "python":
    os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])
ask = runpy.run_path({__file__!r})["ask"]
sys.exit(ask(programs, [0, 1, 2], name, arguments, os.getcwd(), dict(os.environ)) & 255)
"""
"""What a program of each name does, first in the PATH of a fork."""


@cache
def server() -> str:
    """Starts this file's process, which ends when its input does; the folder of its socket and programs."""
    folder = TemporaryDirectory(prefix="forks")
    atexit.register(folder.cleanup)
    for name in ("python", *PROGRAMS):
        client = shlex.join([sys.executable, "-ISc", CLIENT, folder.name, name])
        Path(folder.name, name).write_text(f'#!/bin/sh\nexec {client} "$@"\n')
        Path(folder.name, name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen([sys.executable, "-P", __file__, folder.name], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env=environment | {"OMP_NUM_THREADS": "1"},
                               )  # fmt: skip
    atexit.register(process.communicate)
    assert process.stdout
    process.stdout.readline()
    return folder.name


def run(program: str, *arguments: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code of a program, and what it says."""
    programs = server()
    ours = {**environment, "PATH": f"{programs}:{environment['PATH']}"}
    with TemporaryFile("w+") as output, open(os.devnull) as nothing:
        files = [nothing.fileno(), output.fileno(), output.fileno()]
        code = ask(programs, files, program, arguments, str(folder), ours)
        output.seek(0)
        return code, output.read()


def ask(programs: str, files: list[int], *request: Any) -> int:
    """The exit code of a fork that reads and writes `files`."""
    message = json.dumps(request).encode() + b"\n"
    with socket(AF_UNIX) as client:
        client.connect(f"{programs}/socket")
        client.sendall(message[send_fds(client, [message], files) :])
        return int(client.recv(8) or 1)


def serve(programs: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    listener, known = socket(AF_UNIX), set[str]()
    listener.bind(f"{programs}/socket")
    listener.listen()
    print("ready", flush=True)
    while sys.stdin not in select([listener, sys.stdin], [], [])[0]:
        client, _ = listener.accept()
        for path in Path(programs).glob("*.modules"):  # the next one finds them imported
            for name in path.read_text().split():
                if name not in known and name.split(".")[0] not in OWN:
                    known.add(name)
                    with suppress(Exception):
                        import_module(name)
            path.unlink()
        gc.collect()
        gc.freeze()  # a fork does not go through what was there before it
        if not os.fork():
            answer(client, programs)
        client.close()


def answer(client: socket, programs: str) -> None:
    """Sends the exit code of the program that a client asks for, or ends it if the client ends first."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, *_ = recv_fds(client, 1 << 16, 3)
    while not message.endswith(b"\n"):
        message += client.recv(1 << 16)
    if not (pid := os.fork()):
        client.close()
        work(programs, files, *json.loads(message))
    ended = os.pidfd_open(pid)
    if client.fileno() in select([client.fileno(), ended], [], [])[0]:
        os.kill(pid, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        client.sendall(str(code).encode())
    os._exit(0)


def work(programs: str, files: list[int], program: str, arguments: list[str], folder: str,
         environment: dict[str, str]) -> None:  # fmt: skip
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for target, file in enumerate(files):
        os.dup2(file, target)
    sys.argv, sys.executable = [program, *arguments], f"{programs}/python"  # its folder is first in a PATH
    code: Any = 1
    try:
        if program == "apr":
            sys.path.insert(0, folder)
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            code = import_module(f"{program}.cli").main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # whatever it is, Python would end so too
        traceback.print_exc()
    finally:
        end_at_once(code, Path(programs, f"{os.getpid()}.modules"))


def end_at_once(code: Any, learnt: Path) -> NoReturn:
    """Ends a fork as Python ends, but does not take apart what it has imported, which takes a second."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    learnt.with_suffix("").write_text("\n".join(sys.modules))
    learnt.with_suffix("").rename(learnt)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(sys.argv[1])
