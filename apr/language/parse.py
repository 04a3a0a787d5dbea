"""Token ids -> typed events, by recursive descent. Errors are values: the token's index and the reason."""

from collections.abc import Sequence
from typing import Literal, NoReturn, cast

from apr.language import events as ev
from apr.language.operation import Operation
from apr.language.vocabulary import COMPARISONS, OPERATORS, BaseVocabulary


class _Fault(Exception):
    """Unwinds the parser; never leaves this module."""

    def __init__(self, position: int, reason: str):
        self.malformed = ev.Malformed(position, reason)


class Parser:
    """Reads one thread from its first token."""

    def __init__(self, vocabulary: BaseVocabulary, ids: Sequence[int], position: int = 0):
        self.vocabulary = vocabulary
        self.ids = ids
        self.position = position
        self._depths = {token: depth for depth, token in enumerate(self.vocabulary.depth_ids)}

    def thread(self) -> list[ev.Event] | ev.Malformed:
        """All events up to the end of the ids. A thread that was cut short inside an event is malformed."""
        try:
            events: list[ev.Event] = [self._prompt()]
            while self.position < len(self.ids):
                if isinstance(events[-1], ev.Join | ev.Answer):
                    self._fail("text after the end")
                events.append(self._event())
            return events
        except _Fault as fault:
            return fault.malformed

    def answer(self) -> list[Operation] | None | ev.Malformed:
        """The operations of an answer that starts here and ends the ids."""
        try:
            self._expect("answer")
            path = self._path_or_none()
            self._expect("end")
            if self.position != len(self.ids):
                self._fail("text after the end")
            return None if path is None else list(path)
        except _Fault as fault:
            return fault.malformed

    def _event(self) -> ev.Event:
        word = self._word()
        if word.startswith(":"):
            return self._line()
        if word in OPERATORS:
            return self._leaf()
        match word:
            case "list":
                self.position += 1
                return ev.Listing()
            case "goto":
                self.position += 1
                lines = self._lines()
                self._expect("go")
                return ev.Goto(lines)
            case "spawn":
                return self._spawn()
            case "joined":
                return self._joined()
            case "join" | "answer":
                self.position += 1
                path = self._path_or_none()
                self._expect("end")
                return ev.Join(path) if word == "join" else ev.Answer(path)
        self._fail(f"{word!r} starts nothing")

    def _prompt(self) -> ev.Event:
        word = self._word()
        if word not in ("<root>", "<child>"):
            self._fail(f"a thread starts with <root> or <child>, not {word!r}")
        self.position += 1
        if word == "<child>":
            node = self._node()
            self._expect("go")
            return ev.ChildPrompt(node)
        target = self._number()
        self._expect(":0")
        numbers = self._numbers()
        condition = None
        kind = self._word()
        if kind in ("tokens", "children"):
            self.position += 1
            condition = ev.Condition(cast(Literal["tokens", "children"], kind), self._number())
        self._expect("go")
        return ev.RootPrompt(target, numbers, condition)

    def _leaf(self) -> ev.Leaf:
        op = self._take(OPERATORS)
        return ev.Leaf(op, self._number(), self._take(COMPARISONS))

    def _spawn(self) -> ev.Spawn:
        self._expect("spawn")
        left = self.vocabulary.count_of.get(self._token())
        if left is None:
            self._fail("spawn of nothing")
        nodes = []
        for count in range(left, 0, -1):
            self._expect(f"#{count}")
            nodes.append(self._node())
        self._expect("run")
        return ev.Spawn(tuple(nodes))

    def _joined(self) -> ev.Joined:
        paths = []
        while self._word() == "joined":
            self.position += 1
            paths.append(self._path_or_none())
        self._expect("resume")
        return ev.Joined(tuple(paths))

    def _node(self) -> ev.Node:
        return ev.Node(self._number(), self._lines())

    def _lines(self) -> tuple[ev.Line, ...]:
        lines = [self._line()]
        while self._word().startswith(":") and self._depths[self.ids[self.position]] == lines[-1].depth + 1:
            lines.append(self._line())
        return tuple(lines)

    def _line(self) -> ev.Line:
        token = self._token()
        if token not in self._depths:
            self._fail(f"expected a depth marker, found {self._word()!r}")
        self.position += 1
        return ev.Line(self._depths[token], self._operation(), self._numbers(least=0))

    def _operation(self) -> Operation:
        left = self._number()
        op = self._take(OPERATORS)
        right = self._number()
        self._expect("=")
        return Operation(left, op, right, self._number())

    def _path_or_none(self) -> ev.Path | None:
        if self._word() == "none":
            self.position += 1
            return None
        path = [self._operation()]
        while self._word() == ",":
            self.position += 1
            path.append(self._operation())
        return tuple(path)

    def _numbers(self, least: int = 1) -> tuple[int, ...]:
        numbers = [self._number() for _ in range(least)]
        while (found := self.vocabulary.read_number(self.ids, self.position)) is not None:
            numbers.append(found[0])
            self.position = found[1]
        return tuple(numbers)

    def _number(self) -> int:
        found = self.vocabulary.read_number(self.ids, self.position)
        if found is None:
            self._fail(f"expected a number, found {self._word()!r}")
        self.position = found[1]
        return found[0]

    def _token(self) -> int:
        return self.ids[self.position] if self.position < len(self.ids) else -1

    def _word(self) -> str:
        if self.position >= len(self.ids):
            return "nothing"
        return self.vocabulary.word(self.ids[self.position])

    def _take(self, allowed: Sequence[str]) -> str:
        word = self._word()
        if word not in allowed:
            self._fail(f"expected one of {' '.join(allowed)}, found {word!r}")
        self.position += 1
        return word

    def _expect(self, word: str) -> None:
        if self._word() != word:
            self._fail(f"expected {word!r}, found {self._word()!r}")
        self.position += 1

    def _fail(self, reason: str) -> NoReturn:
        raise _Fault(self.position, reason)


def parse_answer(vocabulary: BaseVocabulary, ids: Sequence[int]) -> list[Operation] | None | ev.Malformed:
    """The answer that ends a root thread; only its last `answer` counts."""
    token = vocabulary.ids["answer"]
    for position in range(len(ids) - 1, -1, -1):
        if ids[position] == token:
            return Parser(vocabulary, ids, position).answer()
    return ev.Malformed(len(ids), "no answer")
