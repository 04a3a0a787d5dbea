"""Typed events -> token ids, for solvers and prompts; the parser is in `apr.language.parse`.

A thread reads like this (root of four numbers that spawns two children, and its second child):

    <root> 27 :0 3 5 9 12 children 2 go spawn
        #2 27 :1 12 + 9 = 21 3 5 #1 27 :1 9 / 3 = 3 5 12 run
        joined none joined 9 / 3 = 3 , 5 * 3 = 15 , 15 + 12 = 27 resume
        answer 9 / 3 = 3 , 5 * 3 = 15 , 15 + 12 = 27 end

    <child> 27 :1 9 / 3 = 3 5 12 go :2 12 + 5 = 17 3 + 20 < - 14 < * 51 > ...
        :2 5 * 3 = 15 12 + 27 ! join 9 / 3 = 3 , 5 * 3 = 15 , 15 + 12 = 27 end
"""

from collections.abc import Iterable, Sequence

from apr.core.errors import DataError, quoted
from apr.core.params import Grammar, Problems
from apr.language import events as ev
from apr.language.operation import Operation
from apr.language.parse import Parser, parse_answer
from apr.language.thread_syntax import ThreadSyntax
from apr.language.vocabulary import BaseVocabulary, Vocabulary


class Language:
    """One vocabulary, and everything that is written in it."""

    def __init__(self, vocabulary: BaseVocabulary):
        self.vocabulary = vocabulary
        self.syntax = ThreadSyntax(vocabulary)
        self._ids = vocabulary.ids

    def prompt(self, numbers: Sequence[int], target: int, condition: ev.Condition | None) -> list[int]:
        """The root's prompt, up to and with `go`: the same for every order of the numbers."""
        return self.encode([ev.RootPrompt(target, tuple(sorted(numbers)), condition)])

    def require_depths(self, numbers: Sequence[int]) -> None:
        """Raises `DataError` if a problem has more numbers than there are depth markers."""
        if len(numbers) > self.vocabulary.depths:
            raise DataError(f"{len(numbers)} numbers, {quoted(numbers)}, in a problem; allowed: at most "
                            f"{self.vocabulary.depths}, as the language has depths")

    def answer(self, ids: Sequence[int]) -> list[Operation] | None | ev.Malformed:
        """The operations that a finished root answers; None if it declares no solution."""
        return parse_answer(self.vocabulary, ids)

    def parse(self, ids: Sequence[int]) -> list[ev.Event] | ev.Malformed:
        """The events of a whole thread, or where and why it breaks the grammar."""
        return Parser(self.vocabulary, ids).thread()

    def encode(self, events: Iterable[ev.Event]) -> list[int]:
        """The token ids of events."""
        ids: list[int] = []
        for event in events:
            self._write(event, ids)
        return ids

    def _write(self, event: ev.Event, ids: list[int]) -> None:
        words = self._ids
        match event:
            case ev.Leaf(op, result, comparison):
                ids.append(words[op])
                ids += self.vocabulary.number(result)
                ids.append(words[comparison])
            case ev.Line():
                self._write_line(event, ids)
            case ev.RootPrompt(target, numbers, condition):
                self.require_depths(numbers)
                ids.append(words["<root>"])
                ids += self.vocabulary.number(target)
                ids.append(self.vocabulary.depth_ids[0])
                self._write_numbers(numbers, ids)
                if condition is not None:
                    ids.append(words[condition.kind])
                    ids += self.vocabulary.number(condition.amount)
                ids.append(words["go"])
            case ev.ChildPrompt(node):
                ids.append(words["<child>"])
                self._write_node(node, ids)
                ids.append(words["go"])
            case ev.Listing():
                ids.append(words["list"])
            case ev.Goto(lines):
                ids.append(words["goto"])
                for line in lines:
                    self._write_line(line, ids)
                ids.append(words["go"])
            case ev.Spawn(nodes):
                ids.append(words["spawn"])
                for count, node in zip(range(len(nodes), 0, -1), nodes, strict=True):
                    ids.append(words[f"#{count}"])
                    self._write_node(node, ids)
                ids.append(words["run"])
            case ev.Joined(paths):
                ids += self.syntax.joined([self._path(path) for path in paths])
            case ev.Join(path):
                ids += [words["join"], *self._path(path), words["end"]]
            case ev.Answer(path):
                ids += [words["answer"], *self._path(path), words["end"]]

    def _write_numbers(self, numbers: Iterable[int], ids: list[int]) -> None:
        for number in numbers:
            ids += self.vocabulary.number(number)

    def _write_operation(self, operation: Operation, ids: list[int]) -> None:
        number = self.vocabulary.number
        ids += number(operation.left)
        ids.append(self._ids[operation.op])
        ids += number(operation.right)
        ids.append(self._ids["="])
        ids += number(operation.result)

    def _write_line(self, line: ev.Line, ids: list[int]) -> None:
        ids.append(self.vocabulary.depth_ids[line.depth])
        self._write_operation(line.operation, ids)
        self._write_numbers(line.rest, ids)

    def _write_node(self, node: ev.Node, ids: list[int]) -> None:
        ids += self.vocabulary.number(node.target)
        for line in node.lines:
            self._write_line(line, ids)

    def _path(self, path: ev.Path | None) -> list[int]:
        if path is None:
            return [self._ids["none"]]
        ids: list[int] = []
        for index, operation in enumerate(path):
            if index:
                ids.append(self._ids[","])
            self._write_operation(operation, ids)
        return ids


def build_language(grammar: Grammar, problems: Problems) -> Language:
    """The language of the given settings: one depth marker for each number of a problem."""
    return Language(Vocabulary(grammar.number_tokens, problems.numbers, grammar.max_children))
