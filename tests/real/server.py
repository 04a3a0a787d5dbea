"""vLLM on this machine's CPU, in processes of its own; `make real` has its environment below `.venv`."""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv/vllm/bin/vllm"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
               "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
STARTS = 900.0
"""Seconds in which a server has to be up."""


class Vllm:
    """A server of `model`, up once it has been entered; its log is `log`."""

    def __init__(self, model: Path, log: Path, window: int = 288):
        self.model, self.log, self.window = model, log, window
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Starts it, at the port that it had before; `wait` returns when it is up."""
        command = [VLLM, "serve", self.model, "--served-model-name", "apr", "--dtype", "float32",
                   "--max-model-len", str(self.window), "--logprobs-mode", "processed_logprobs",
                   "--enforce-eager", "--enable-scale-out", "--host", "127.0.0.1", "--port", str(self.port),
                   # A prompt read in parts, of a request with a seed, ends vLLM 0.32 on a CPU.
                   "--no-enable-chunked-prefill"]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self.log.open("a") as log:
            self._process = subprocess.Popen(command, env=environment | ENVIRONMENT, cwd=self.log.parent,
                                             stdout=log, stderr=log, start_new_session=True)  # fmt: skip

    def wait(self) -> None:
        end = time.monotonic() + STARTS
        while time.monotonic() < end and self._process.poll() is None:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", trust_env=False).is_success:
                    return
            time.sleep(0.5)
        raise AssertionError(f"vLLM is not up, see {self.log}: {self.log.read_text()[-2000:]}")

    def answers(self) -> int:
        """Returns how many requests it has answered, before it was killed as well."""
        return self.log.read_text().count('"POST /v1/completions HTTP/1.1" 200')

    def kill(self) -> None:
        """SIGKILL to all of its processes, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> "Vllm":
        self.begin()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
