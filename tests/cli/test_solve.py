"""`apr solve` on an untrained model of the default shape: the verb, its errors, its picture."""

import pytest

from apr.cli.main import main
from apr.cli.solve import picture
from apr.core.errors import DataError
from apr.language import build_language
from apr.language.tokenizer import make_tokenizer
from apr.pipeline.plan import load_scale
from apr.rollouts.rollout import Status, Thread
from apr.tasks.countdown.problem import Problem, problem_of_text
from apr.training.checkpoint import new_model, save_checkpoint


@pytest.fixture(scope="module")
def language():
    params = load_scale("default")
    return build_language(params.grammar, params.problems)


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
        ([" ".join(["99"] * 300) + " -> 27"], "grammar.window: 256 is not allowed; allowed: more than the"),
    ],
)
def test_errors(checkpoint, capsys, arguments, said):
    assert main(["solve", *arguments, "--model", checkpoint]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("apr: error:")]
    assert said in line


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
