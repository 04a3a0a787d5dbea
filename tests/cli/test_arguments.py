"""What a verb is told on its command line is what it can work with, or refused in one line."""

import signal
import subprocess
import sys
import time

import pytest

from apr.cli.main import main
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "the following arguments are required: VERB"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("run",), "the following arguments are required: job (`apr run --help`)"),
        (("run", "traces/apr", "--workers", "0"), "argument --workers: '0' is not allowed"),
        (("run", "traces/apr", "--workers", "-1"), "argument --workers: '-1' is not allowed"),
        (("run", "traces/apr", "--workers", "two"), "argument --workers: 'two' is not allowed"),
        (("run", "traces/apr", "--workers", str(10**30)), "argument --workers: '1000000"),
        (("run", "traces/apr", "--workers", "nan"), "argument --workers: 'nan' is not allowed"),
        (("run", "traces/apr", "--root", "absent"), "absent/data/problems/recipe.json: no such file"),
        (("run", "traces/apprr"), "job: 'traces/apprr' is not allowed; allowed: problems, tokenizer, "),
        (("run", "traces/"), "job: 'traces/' is not allowed"),
        (("run", "teacher/../apr"), "job: 'teacher/../apr' is not allowed"),
        (("run", "sft/a\nb"), r"job: 'sft/a\nb' is not allowed"),
        (("run", "rl/apprr"), "job: 'rl/apprr' is not allowed; allowed: "),
        (("run", "evaluate/sft/apr_max"), "job: 'evaluate/sft/apr_max' is not allowed; "),
        (("run", "evaluate/rl/sos"), "job: 'evaluate/rl/sos' is not allowed; "),
        (("run", "evaluate/dpo/apr"), "job: 'evaluate/dpo/apr' is not allowed; "),
        (("params", "--scale", "large"), "scale: 'large' is not allowed; allowed: default, depth, gpu, "),
        (("params", "--scale", ""), "scale: '' is not allowed"),
        (("chunk", "--minutes", "nan", "--carry", "c"), "argument --minutes: 'nan' is not allowed"),
        (("chunk", "--minutes", "-1", "--carry", "c"), "argument --minutes: '-1' is not allowed"),
        (("chunk", "--minutes", "1", "--carry", "c", "--most-mb", "inf"), "argument --most-mb: 'inf' is not"),
        (("run", "problems", "--root", "/dev/null/x"), "/dev/null"),
        (("plan", "--measured", "absent.json"), "absent.json: no such file"),
        (("run", "problems", "--recipe", "params.yaml"), "params.yaml: not readable as JSON"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_one_line_says_what_is_allowed(tmp_path, monkeypatch, capsys, arguments, said):
    for name in ("params.yaml", "presets", "apr"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("apr: error: ") and said in line


def start(*arguments):
    return subprocess.Popen([sys.executable, "-m", "apr", *arguments], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip


def test_an_output_that_nobody_reads_ends_quietly():
    process = start("params")
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, "")


def test_ctrl_c_ends_quietly(tmp_path):
    process = start("run", "problems", "--root", str(tmp_path))
    while not list(tmp_path.glob("data/.problems.partial-*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and "Traceback" not in process.stderr.read()
    assert not list((tmp_path / "data").iterdir()), "nothing half-written is left"
