"""The solvers once more, as plainly as can be: what `search.c` has to write, in words."""

from heapq import heappop, heappush
from itertools import combinations
from math import floor
from statistics import fmean


def factor_distance(number, target):
    """The least distance to a factor of the target but 1."""
    factors = [f for f in range(2, target + 1) if target % f == 0]
    return min((abs(number - f) for f in factors), default=abs(number - target))


HEURISTICS = {
    "multiply": lambda said, state, target: sum(factor_distance(number, target) for number in state),
    "result": lambda said, state, target: factor_distance(state[-1], target),
    "shrink": lambda said, state, target: shrink_rank(*said.split()),
}


def shrink_rank(left, op, right, _, result):
    return (0, int(result)) if op in "-/" else (1, -int(left) - int(right))


def legal(x, y, max_value):
    """Operations on two numbers, the larger first, and their results."""
    x, y = max(x, y), min(x, y)
    found = [(f"{x} {op} {y} =", op, value) for op, value in zip("+-*", (x + y, x - y, x * y), strict=True)]
    found += [(f"{x} / {y} =", "/", x // y)] if y and x % y == 0 else []
    bound = float("inf") if max_value is None else max_value
    return [(f"{text} {value}", op, value) for text, op, value in found if value <= bound]


def expand(state, target, beam, max_value, heuristic):
    """The best successors: what is said of each operation, and the numbers after it."""
    found = {}
    for i, j in combinations(range(len(state)), 2):
        rest = [number for k, number in enumerate(state) if k not in (i, j)]
        for text, _, value in legal(state[i], state[j], max_value):
            found.setdefault(tuple(sorted([*rest, value])), (text, (*rest, value)))
    successors = list(found.values())
    best = sorted(successors, key=lambda successor: HEURISTICS[heuristic](*successor, target))[:beam]
    return [successor for successor in successors if successor in best]


class Reference:
    """`threads` of one trace, level by level: parent, steps of text, and whether it solves."""

    def __init__(self, problem, method, max_value, rng):
        self.target, self.method, self.rng = problem.target, method, rng
        bounds = [bound for bound in (max_value, method.max_value) if bound is not None]
        self.max_value = min(bounds, default=None)
        middle = method.middle_share and rng.random() < method.middle_share
        beam = floor(fmean(method.beam)) if middle else rng.randint(*method.beam)
        promising = float(rng.random() < 0.5) if method.solver == "sos" else method.promising
        self.outer = self.inner = beam, promising
        self.depth = 0
        if method.solver == "apr":
            own = method.child_beam
            own = own if isinstance(own, tuple) else (beam, max(beam, own))
            self.inner, self.depth = (rng.randint(*own), method.child_promising), method.depth
        numbers = " ".join(map(str, problem.numbers))
        prompt = f"<root> {self.target} :0 {numbers} go"
        tree = self.thread(prompt, "answer", 0, [], [], problem.numbers)
        self.threads, level = [], [(-1, tree)]
        while level:
            first = len(self.threads)
            self.threads += [(parent, *tree[:2]) for parent, tree in level]
            level = [(first + place, child) for place, (_, tree) in enumerate(level) for child in tree[2]]

    def thread(self, prompt, word, level, lines, said, state):
        """Its steps, whether it solves, the threads below it, and what it returns."""
        steps, below = [prompt], []
        answer = self.search(steps, below, level, lines, said, state)
        return [*steps, f"{word} {answer} end"], answer != "none", below, answer

    def search(self, steps, below, level, lines, said, state):
        """Below a state, which `lines` and the operations `said` lead to; the answer."""
        spawns = level < self.depth
        beam, promising = self.outer if spawns or level == 0 else self.inner
        spawn_depth = len(lines) + self.method.spawn_depth if spawns else -1
        queue, queued = [(0, 0, lines, said, state)], 0
        while queue:
            _, order, lines, said, state = heappop(queue)
            if order:
                steps.append(f"goto {' '.join(lines)} go")
            answer = "none"
            if len(state) == 2:
                answer = self.leaves(steps, said, state)
            else:
                children = self.children(lines, said, state, beam)
                if self.rng.random() >= promising:
                    steps.append("list")
                    for child in children:
                        steps.append(child[0][-1])
                        queued += 1
                        rank = HEURISTICS[self.method.heuristic](child[1][-1], child[2], self.target)
                        heappush(queue, (rank if self.method.solver != "sos" else 0, queued, *child))
                elif len(lines) <= spawn_depth and len(children) >= 2:
                    answer = self.spawn(steps, below, level, children)
                else:
                    answer = self.depth_first(steps, children, beam)
            if answer != "none":
                return answer
        return "none"

    def children(self, lines, said, state, beam):
        found = expand(state, self.target, beam, self.max_value, self.method.heuristic)
        depth = f":{len(lines) + 1}"
        return [([*lines, " ".join([depth, text, *map(str, after[:-1])])], [*said, text], after)
                for text, after in found]  # fmt: skip

    def depth_first(self, steps, children, beam):
        for lines, said, state in children:
            steps.append(lines[-1])
            if len(state) == 2:
                answer = self.leaves(steps, said, state)
            else:
                answer = self.depth_first(steps, self.children(lines, said, state, beam), beam)
            if answer != "none":
                return answer
        return "none"

    def leaves(self, steps, said, state):
        for text, op, value in legal(*state, self.max_value):
            comparison = "!" if value == self.target else "<" if value < self.target else ">"
            steps.append(f"{op} {value} {comparison}")
            if comparison == "!":
                return " , ".join([*said, text])
        return "none"

    def spawn(self, steps, below, level, children):
        nodes = [f"{self.target} {' '.join(lines)}" for lines, _, _ in children]
        *shared, last = children[0][0]
        depth = last.split()[0]
        ends = [lines[-1].removeprefix(f"{depth} ") for lines, _, _ in children]
        counted = [f"#{count} {end}" for count, end in zip(range(len(ends), 0, -1), ends, strict=True)]
        steps.append(" ".join(["spawn", str(self.target), *shared, depth, *counted, "run"]))
        answers = []
        for node, (lines, said, state) in zip(nodes, children, strict=True):
            below.append(self.thread(f"<child> {node} go", "join", level + 1, lines, said, state))
            answers.append(below[-1][3])
        steps.append(" ".join([*(f"joined {answer}" for answer in answers), "resume"]))
        return next((answer for answer in answers if answer != "none"), "none")
