"""`apr solve` on an untrained model of the default shape: the verb, its errors, its picture."""

import shutil

import pytest

from apr.cli.main import main
from apr.cli.solve import picture
from apr.core.errors import DataError
from apr.pipeline.plan import load_scale
from apr.rollouts.rollout import Status, Thread
from apr.tasks import make_tokenizer, open_task
from apr.tasks.countdown.problem import Problem, problem_of_text
from apr.training.checkpoint import new_model, save_checkpoint

EASY = "3 5 9 12 -> 27"


@pytest.fixture(scope="module")
def language():
    params = load_scale("default")
    return open_task(params).language


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, language):
    params, root = load_scale("default"), tmp_path_factory.mktemp("solve")
    make_tokenizer(params, root / "tokenizer")
    vocabulary = language.vocabulary
    model = new_model(params.model, vocabulary.size, vocabulary.pad, params.grammar.window, seed=1)
    save_checkpoint(model, root / "tokenizer", root / "model")
    return str(root / "model")


def test_problems_are_read_and_misread_in_one_line():
    read = problem_of_text("3 5 9 12 -> 27")
    assert read == problem_of_text(" 3,5, 9 12=27 ") == Problem("problem", (3, 5, 9, 12), 27)
    for text in ("3 -> 27", "3 5 27", "3 x -> 27", "-> 27", "", "3 -5 -> 27", "3 ５ -> 27", "3 5.0 -> 27",
                 "3 5 -> " + "9" * 5000, "9" * 5000 + " 5 -> 27", "3\x005 -> 27"):  # fmt: skip
        with pytest.raises(DataError, match="not a problem; allowed: numbers, an arrow, a target"):
            problem_of_text(text)


def test_a_problem_is_decoded_and_judged(checkpoint, capsys):
    assert main(["solve", "3 5 9 12 -> 27", "--model", checkpoint, "--temperature", "1"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("root ")
    assert said[-2].startswith("verdict: wrong (") and said[-3].startswith("answer: ")
    assert "tokens sampled" in said[-1] and "0 children" in said[-1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["3 5 -> x"], "not a problem"),
        (["3 5 9 12 -> 27", "--children", "2", "--tokens", "64"], "only one of them is allowed"),
        ([" ".join(["9" * 90] * 4) + " -> 27"], "grammar.window: 288 is not allowed; allowed: more than the"),
        ([" ".join(["99"] * 300) + " -> 27"], "300 numbers, (99, 99, 99, 99, 99, 99, ...), in a"),
        (["3 5 9 12 5 -> 27"], "allowed: at most 4, as the language has depths"),
        (["3 5 -> " + "9" * 5000], "not a problem"),
        ([""], "not a problem"),
        ([EASY, "--children", "-1"], "--children: '-1' is not allowed"),
        ([EASY, "--children", "99"], "--children: 99 is not allowed; allowed: at most 10"),
        ([EASY, "--children", "1.5"], "--children: '1.5' is not allowed"),
        ([EASY, "--children", ""], "--children: '' is not allowed"),
        ([EASY, "--tokens", "0"], "--tokens: '0' is not allowed"),
        ([EASY, "--tokens", str(2**31)], "--tokens: '2147483648' is not allowed"),
        ([EASY, "--tokens", "9" * 5000], "--tokens: '999"),
        ([EASY, "--temperature", "nan"], "--temperature: 'nan' is not allowed"),
        ([EASY, "--temperature", "inf"], "--temperature: 'inf' is not allowed"),
        ([EASY, "--temperature", "-1"], "--temperature: '-1' is not allowed"),
        ([EASY, "--temperature", "1e-320"], "allowed: 0, greedy, or 0.001 to 100"),
        ([EASY, "--seed", "-1"], "--seed: '-1' is not allowed"),
        ([EASY, "--seed", str(2**63)], "--seed: '9223372036854775808' is not allowed"),
        ([EASY, "--seed", "７"], "--seed: '７' is not allowed"),
        ([EASY, "--seed", "x\ny"], r"--seed: 'x\ny' is not allowed"),
        ([EASY, "--join", "some"], "--join: invalid choice: 'some'"),
        ([EASY, "--scale", "Smoke"], "scale: 'Smoke' is not allowed; allowed: default, "),
        ([EASY, "--scale", "../presets/smoke"], "scale: '../presets/smoke' is not allowed"),
        ([EASY, "--nonsense"], "unrecognized arguments: --nonsense"),
        ([], "the following arguments are required: problem"),
    ],
    ids=lambda value: value[-1][:20] if isinstance(value, list) and value else None,
)
def test_errors(checkpoint, capsys, arguments, said):
    assert main(["solve", *arguments, "--model", checkpoint]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("apr: error:") and said in line


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "thread_language.json", "model.safetensors"]
)
def test_what_is_no_checkpoint_is_refused_in_one_line(checkpoint, tmp_path, capsys, name):
    path = tmp_path / name
    for broken in (b"", b"\xff\xfe", b"[]", b"{}", b"null", b"[" * 10**5, b'{"depths": 4, "messages": 10, '
                   b'"number_tokens": 1000000000}', b'{"depths": true, "messages": 10, "number_tokens": 9}',
                   None, "directory"):  # fmt: skip
        shutil.rmtree(tmp_path)
        shutil.copytree(checkpoint, tmp_path)
        path.unlink()
        if broken == "directory":
            path.mkdir()
        elif broken is not None:
            path.write_bytes(broken)
        assert main(["solve", EASY, "--model", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"apr: error: {tmp_path}")


def test_where_there_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file", "", "a\nb", "x" * 5000):
        assert main(["solve", EASY, "--model", str(path)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("numbers", ["3 5 9 12", "12 9 5 3", "9,3,12,5"])
def test_the_order_of_the_numbers_changes_nothing(checkpoint, capsys, numbers):
    def said(problem):
        sampling = ["--temperature", "1", "--seed", f"{2**63 - 1}"]
        main(["solve", f"{problem} -> 27", "--model", checkpoint, *sampling])
        return capsys.readouterr().out.rpartition(",")[0]  # seconds come last

    assert said(numbers) == said("5 3 12 9")


def test_the_picture_shows_who_waits_and_what_is_sampled_now(language):
    from rich.console import Console

    def thread(depth, text, prompt, status):
        ids = language.vocabulary.encode(text)
        return Thread(0, -1, depth, prompt, ids, [place >= prompt for place in range(len(ids))], [], status)

    root = thread(0, "<root> 7 :0 3 4 go spawn #1 7 :1 3 + 4 = 7 run", 6, Status.WAITING)
    child = thread(1, "<child> 7 go", 3, Status.RUNNING)
    now = language.vocabulary.encode(":2 3 + 4 = 7")
    console = Console(width=60)
    with console.capture() as shown:
        console.print(picture([((), root, []), ((0,), child, now)], language, 60))
    first, second = shown.get().splitlines()
    assert first.startswith("root waiting") and " 10 " in first and first.rstrip().endswith("run")
    assert second.startswith("└── #1   running") and ":2 3 + 4 = 7" in second
