"""The solvers: what the plain ones write, traces as worked out by hand, solutions that verify."""

import re
import shutil
from collections import Counter
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import HEURISTICS, Reference, expand, factor_distance

from apr.core.compiled import CompilerError
from apr.core.params import load_params
from apr.core.seeds import derive_rng
from apr.language import Language, Vocabulary
from apr.tasks import open_task
from apr.tasks.countdown import solver
from apr.tasks.countdown.operation import Operation, legal_operations
from apr.tasks.countdown.problem import Problem
from apr.tasks.countdown.settings import CountdownProblems, Heuristic, Solver
from apr.tasks.countdown.solvable import reachable
from apr.tasks.countdown.solver import solve, solve_given
from apr.tasks.countdown.verify import verify
from apr.tasks.countdown.words import words_of
from apr.tasks.problems import generate_problems
from apr.tasks.task import children_of

PARAMS = load_params("params.yaml")
LANGUAGE = open_task(PARAMS).language
METHODS = {
    "sos": Solver(solver="sos", beam=(1, 5)),
    "sos_plus": Solver(solver="sos_plus", beam=(1, 5), promising=0.6),
    "apr": Solver(solver="apr", beam=(1, 10), promising=0.8),
    "apr_deep": Solver(solver="apr", beam=(2, 6), promising=0.6, spawn_depth=1, child_promising=0.5),
    "apr_nested": Solver(solver="apr", beam=(2, 6), promising=0.8, depth=2, child_beam=(1, 4)),
}
SETTINGS = CountdownProblems(number_range=(1, 20), target_range=(10, 50), train=60, validation=1, test=1)
PROBLEMS = generate_problems(open_task(PARAMS.model_copy(update={"problems": SETTINGS})))["train"]


def steps(language, thread):
    """What a thread says, step by step."""
    return [language.vocabulary.decode(thread.ids[a:b]) for a, b in pairwise([0, *thread.ends])]


def text(thread):
    return " ".join(steps(LANGUAGE, thread))


def test_heuristics_by_hand():
    # factors >= 2 of 24: 2 3 4 6 8 12 24
    assert factor_distance(24, 24) == 0
    assert factor_distance(10, 24) == 2
    assert factor_distance(17, 24) == 5
    assert HEURISTICS["multiply"]("9 + 8 = 17", (10, 17), 24) == 7
    assert HEURISTICS["result"]("9 + 8 = 17", (10, 17), 24) == 5
    said = ["9 + 8 = 17", "9 * 3 = 27", "30 / 2 = 15", "20 - 4 = 16", "9 - 8 = 1"]
    ranked = sorted(said, key=lambda operation: HEURISTICS["shrink"](operation, (), 24))
    assert ranked == ["9 - 8 = 1", "30 / 2 = 15", "20 - 4 = 16", "9 + 8 = 17", "9 * 3 = 27"]


def test_expand_by_hand():
    # of 2 2 4: 2+2 and 2*2 leave {4,4}; 2-2 {4,0}; 2/2 {4,1}; 4+2 {2,6}; 4-2 and 4/2 {2,2}; 4*2 {2,8}
    successors = expand((2, 2, 4), 24, 15, None, "multiply")
    assert [state for _, state in successors] == [(4, 4), (4, 0), (4, 1), (2, 6), (2, 2), (2, 8)]
    best = expand((2, 2, 4), 24, 2, None, "multiply")
    assert [state for _, state in best] == [(4, 4), (2, 6)]  # distance 0; ties keep the order
    # of 1 17 3 for 24: 17 - 3 = 14 beside 1 is 2 + 1 from factors, 1 + 3 = 4 beside 17 is 0 + 5
    assert expand((1, 17, 3), 24, 1, None, "multiply")[0][1] == (1, 14)
    assert expand((1, 17, 3), 24, 1, None, "result")[0][1] == (17, 4)
    small = expand((1, 17, 3), 24, 4, None, "shrink")
    assert [state for _, state in small] == [(3, 16), (17, 2), (1, 20), (1, 14)]


def test_a_serial_trace_by_hand():
    method = Solver(solver="sos_plus", beam=(9, 9), promising=1.0)
    (thread,) = solve(LANGUAGE, Problem("p", (2, 2, 4), 6), method, None, derive_rng(0))
    assert text(thread) == (
        "<root> 6 :0 2 2 4 go :1 2 + 2 = 4 4 + 8 > - 0 < * 16 > / 1 < :1 2 - 2 = 0 4 + 4 < - 4 < * 0 < "
        ":1 2 / 2 = 1 4 + 5 < - 3 < * 4 < / 4 < :1 4 + 2 = 6 2 + 8 > - 4 < * 12 > / 3 < "
        ":1 4 - 2 = 2 2 + 4 < - 0 < * 4 < / 1 < :1 4 * 2 = 8 2 + 10 > - 6 ! "
        "answer 4 * 2 = 8 , 8 - 2 = 6 end"
    )
    assert LANGUAGE.syntax.sampled(thread.ids).tolist() == [False] * 7 + [True] * (len(thread.ids) - 7)


def test_a_parallel_trace_by_hand():
    method = Solver(solver="apr", beam=(2, 2), promising=1.0)
    trace = solve(LANGUAGE, Problem("p", (2, 2, 4), 16), method, None, derive_rng(0))
    texts = [text(thread) for thread in trace]
    assert texts == [
        "<root> 16 :0 2 2 4 go spawn 16 :1 #2 2 + 2 = 4 4 #1 4 - 2 = 2 2 run "
        "joined 2 + 2 = 4 , 4 * 4 = 16 joined none resume answer 2 + 2 = 4 , 4 * 4 = 16 end",
        "<child> 16 :1 2 + 2 = 4 4 go + 8 < - 0 < * 16 ! join 2 + 2 = 4 , 4 * 4 = 16 end",
        "<child> 16 :1 4 - 2 = 2 2 go + 4 < - 0 < * 4 < / 1 < join none end",
    ]
    mask = LANGUAGE.syntax.sampled(trace[0].ids)
    sampled = [word for word, kept in zip(texts[0].split(), mask, strict=True) if kept]
    assert sampled == texts[0].split()[7:25] + texts[0].split()[40:]


NESTED = [
    (-1, True, "<root> 10 :0 1 2 4 4 go spawn 10 :1 #2 2 * 1 = 2 4 4 #1 4 + 1 = 5 2 4 run "
               "joined none joined 4 + 1 = 5 , 4 - 2 = 2 , 5 * 2 = 10 resume "
               "answer 4 + 1 = 5 , 4 - 2 = 2 , 5 * 2 = 10 end"),
    (0, False, "<child> 10 :1 2 * 1 = 2 4 4 go spawn 10 :1 2 * 1 = 2 4 4 :2 "
               "#2 4 / 4 = 1 2 #1 4 - 2 = 2 4 run joined none joined none resume join none end"),
    (0, True, "<child> 10 :1 4 + 1 = 5 2 4 go spawn 10 :1 4 + 1 = 5 2 4 :2 #2 4 - 2 = 2 5 #1 5 * 2 = 10 4 "
              "run joined 4 + 1 = 5 , 4 - 2 = 2 , 5 * 2 = 10 joined none resume "
              "join 4 + 1 = 5 , 4 - 2 = 2 , 5 * 2 = 10 end"),
    (1, False, "<child> 10 :1 2 * 1 = 2 4 4 :2 4 / 4 = 1 2 go + 3 < - 1 < * 2 < / 2 < join none end"),
    (1, False, "<child> 10 :1 2 * 1 = 2 4 4 :2 4 - 2 = 2 4 go + 6 < - 2 < * 8 < / 2 < join none end"),
    (2, True, "<child> 10 :1 4 + 1 = 5 2 4 :2 4 - 2 = 2 5 go + 7 < - 3 < * 10 ! "
              "join 4 + 1 = 5 , 4 - 2 = 2 , 5 * 2 = 10 end"),
    (2, False, "<child> 10 :1 4 + 1 = 5 2 4 :2 5 * 2 = 10 4 go + 14 > - 6 < * 40 > join none end"),
]  # fmt: skip


def test_a_nested_trace_by_hand():
    # Factors of 10 but 1: 2 5 10. The root keeps 2 and 5, the first two results that are one; its children do
    # as it does: of 2 4 4 there is 4 / 4 = 1, a distance of 1, and 4 - 2 = 2; of 2 4 5 there are 2 and 10.
    method = Solver(solver="apr", beam=(2, 2), promising=1.0, heuristic="result", depth=2)
    trace = solve(LANGUAGE, Problem("p", (1, 2, 4, 4), 10), method, None, derive_rng(0))
    assert [(thread.parent, thread.solved, text(thread)) for thread in trace] == NESTED
    mask = LANGUAGE.syntax.sampled(trace[1].ids)
    sampled = [word for word, kept in zip(text(trace[1]).split(), mask, strict=True) if kept]
    said = text(trace[1]).split()
    assert sampled == said[said.index("spawn") : said.index("run") + 1] + said[said.index("resume") + 1 :]


def test_what_is_asked_for_are_children_of_the_root():
    method = METHODS["apr_nested"].model_copy(update={"beam": (1, 4)})
    wide, deep = Problem("p", (3, 7, 11, 19), 50), 0
    for wanted, had in enumerate((0, 0, 2, 3, 4, 4)):
        for seed in range(5):
            trace = solve_given(LANGUAGE, wide, method, 100, derive_rng(seed), wanted)
            assert children_of(trace) == had == sum(thread.parent == 0 for thread in trace)
            deep += len(trace) - 1 - had
    assert deep > 100


SHARES = st.sampled_from([0.0, 0.3, 0.9, 1.0])


SOLVERS = st.builds(
    Solver, solver=st.sampled_from(["sos", "sos_plus", "apr"]),
    beam=st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda ends: tuple(sorted(ends))),
    middle_share=SHARES, heuristic=st.sampled_from(get_args(Heuristic)),
    max_value=st.sampled_from([None, 20, 1000]),
    child_beam=st.integers(1, 15) | st.just((1, 3)), depth=st.integers(1, 3), spawn_depth=st.integers(0, 2),
    promising=SHARES, child_promising=SHARES,
)  # fmt: skip
NUMBERS = st.lists(st.integers(0, 99), min_size=2, max_size=4) | st.lists(
    st.integers(0, 15_000), min_size=2, max_size=4
)
LANGUAGES = {size: Language(Vocabulary(size, words_of(4), 12)) for size in (5, 100, 12000)}


@given(SOLVERS, NUMBERS, st.integers(0, 100), st.sampled_from([None, 30, 5000]),
       st.sampled_from(list(LANGUAGES)), st.integers(0, 10**9))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_the_search_writes_what_the_plain_one_writes(method, numbers, target, max_value, size, seed):
    problem, language = Problem("p", tuple(numbers), target), LANGUAGES[size]
    rng, plain = derive_rng(seed), derive_rng(seed)
    trace = solve(language, problem, method, max_value, rng)
    expected = Reference(problem, method, max_value, plain).threads
    assert [(thread.parent, steps(language, thread), thread.solved) for thread in trace] == expected
    assert rng.getstate() == plain.getstate()


def test_values_up_to_sixty_bits_are_exact():
    problem = Problem("p", (22_000, 22_001, 22_003, 22_005), 50)
    method = Solver(solver="sos_plus", beam=(99, 99), promising=1.0)
    trace = solve(LANGUAGE, problem, method, None, derive_rng(0))
    assert [(thread.parent, steps(LANGUAGE, thread), thread.solved) for thread in trace] == Reference(
        problem, method, None, derive_rng(0)
    ).threads
    assert str(22_000 * 22_001 * 22_003 * 22_005) in " ".join(map(text, trace))


LINE = re.compile(r":(\d+) (\d+) (\S) (\d+) = (\d+)((?: \d+)*)")


@pytest.mark.parametrize("name", METHODS)
def test_traces_follow_the_rules_and_their_solutions_verify(name):
    solved, task = 0, open_task(PARAMS)
    for problem in PROBLEMS:
        trace = solve(LANGUAGE, problem, METHODS[name], 100, derive_rng(1, problem.id))
        for thread in trace:
            assert "<unk>" not in text(thread) and LANGUAGE.vocabulary.encode(text(thread)) == thread.ids
            assert thread.ends[-1] == len(thread.ids)
            assert LANGUAGE.syntax.sampled(thread.ids)[-1]  # the stop token is the model's own
            _check_arithmetic(steps(LANGUAGE, thread), problem)
        assert task.verify(problem, trace[0].ids).strict == trace[0].solved
        solved += trace[0].solved
    assert solved > len(PROBLEMS) * 0.25


def _check_arithmetic(said, problem):
    """Every line and leaf follows from the state it stands under."""
    states = {0: list(problem.numbers)}
    for step in said[:-1]:
        if found := re.fullmatch(r"(\S) (\d+) ([<!>])", step):
            op, result, comparison = found[1], int(found[2]), found[3]
            assert (op, result) in [(o.op, o.result) for o in legal_operations(*states[max(states)], 100)]
            assert comparison == "<!>"[(result >= problem.target) + (result > problem.target)]
        if step.startswith(("spawn", "joined")):
            continue
        for depth, left, op, right, result, rest in LINE.findall(step):
            depth, operation = int(depth), Operation(int(left), op, int(right), int(result))
            assert operation in list(legal_operations(operation.left, operation.right, 100))
            parent = list(states[depth - 1])
            parent.remove(operation.left)
            parent.remove(operation.right)
            assert [*map(int, rest.split())] == parent
            states = {d: state for d, state in states.items() if d < depth} | {
                depth: [*parent, operation.result]
            }


def test_a_full_beam_finds_every_solvable_problem():
    everything = Solver(solver="sos_plus", beam=(99, 99), promising=1.0)
    queued = Solver(solver="sos_plus", beam=(99, 99), promising=0.0)
    parallel = Solver(solver="apr", beam=(99, 99), child_beam=99, promising=1.0)
    language = Language(Vocabulary(100, words_of(4), 99))
    for problem in PROBLEMS[:12]:
        assert problem.target in reachable(problem.numbers, 100)
        for method in (everything, queued, parallel):
            assert solve(language, problem, method, 100, derive_rng(0))[0].solved


def test_solutions_are_solutions():
    found = solve(LANGUAGE, Problem("p", (2, 2, 4), 6), METHODS["sos_plus"], None, derive_rng(0))[0]
    said = re.findall(r"(\d+) (\S) (\d+) = (\d+)", text(found).split("answer")[1])
    path = [Operation(int(left), op, int(right), int(result)) for left, op, right, result in said]
    assert verify(Problem("p", (2, 2, 4), 6), path).strict == found.solved


def test_without_a_compiler_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with pytest.raises(CompilerError, match=r"^search\.c: no C compiler here; install gcc, or name .* \$CC$"):
        solver.load_search.__wrapped__()


def test_the_middle_of_its_beams_can_be_the_mode():
    method = METHODS["apr"].model_copy(update={"middle_share": 0.25, "promising": 1.0})
    wide = Problem("p", (3, 7, 11, 19), 50)  # the root has more than ten successors
    spawned = Counter(len(solve(LANGUAGE, wide, method, None, derive_rng(seed))) - 1 for seed in range(2000))
    assert spawned.pop(5) == pytest.approx(2000 * (0.25 + 0.75 / 10), rel=0.1)
    assert sum(spawned.values()) / 9 == pytest.approx(2000 * 0.075, rel=0.1)
