"""What a verb is told on its command line is what it can work with, or refused in one line."""

import pytest

from apr.cli.main import main

PATHS = ("--problems", "p", "--tokenizer", "t", "--out", "o")
TRACES = ("traces", "--method", "apr", *PATHS)
EVALUATE = ("evaluate", "--problems", "p", "--checkpoint", "c", "--out", "o")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "the following arguments are required: VERB"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("problems",), "the following arguments are required: --out (`apr problems --help`)"),
        ((*TRACES, "--workers", "0"), "argument --workers: '0' is not allowed"),
        ((*TRACES, "--workers", "-1"), "argument --workers: '-1' is not allowed"),
        ((*TRACES, "--workers", "two"), "argument --workers: 'two' is not allowed"),
        ((*TRACES, "--workers", str(10**30)), "argument --workers: '1000000"),
        ((*TRACES, "--workers", "nan"), "argument --workers: 'nan' is not allowed"),
        (TRACES, "p: no such file"),
        (("traces", "--method", "apprr", *PATHS), "--method: 'apprr' is not allowed; allowed: sos, "),
        (("traces", "--method", "", *PATHS), "--method: '' is not allowed"),
        (("teacher", "--method", "../apr", *PATHS), "--method: '../apr' is not allowed"),
        (("sft", "--method", "a\nb", "--traces", "t", *PATHS[2:]), r"--method: 'a\nb' is not allowed"),
        (("rl", "--policy", "apprr", "--validation", "v", *EVALUATE[1:]),
         "--policy: 'apprr' is not allowed; allowed: sos_plus, apr, apr_max"),
        ((*EVALUATE, "--model", "apr_max", "--stage", "sft"), "--model: 'apr_max' is not allowed; "),
        ((*EVALUATE, "--model", "sos", "--stage", "rl"), "--model: 'sos' is not allowed; allowed: sos_plus,"),
        ((*EVALUATE, "--model", "apr", "--stage", "dpo"), "argument --stage: invalid choice: 'dpo'"),
        (("params", "--scale", "large"), "scale: 'large' is not allowed; allowed: default, gpu"),
        (("params", "--scale", ""), "scale: '' is not allowed"),
        (("chunk", "--minutes", "nan", "--carry", "c"), "argument --minutes: 'nan' is not allowed"),
        (("chunk", "--minutes", "-1", "--carry", "c"), "argument --minutes: '-1' is not allowed"),
        (("chunk", "--minutes", "1", "--carry", "c", "--most-mb", "inf"), "argument --most-mb: 'inf' is not"),
        (("problems", "--out", "/dev/null/x"), "/dev/null"),
        (("plan", "--measured", "absent.json"), "absent.json: no such file"),
        (("problems", "--recipe", "params.yaml", "--out", "o"), "params.yaml: not readable as JSON"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_one_line_says_what_is_allowed(capsys, arguments, said):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("apr: error: ") and said in line
