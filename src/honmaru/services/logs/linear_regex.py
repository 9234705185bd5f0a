"""Regular expressions in linear time: users write them, so no expression may hold the enclave up.

Supported: literals, `.`, classes `[a-z]` `[^...]` with `\\d \\w \\s` and their opposites, `^` `$`, `*` `+` `?` `{m,n}`
and their lazy forms, `|`, groups `( )`, `(?: )`, named groups `(?<name> )`, escapes, and the leading flag `(?i)`.
Not supported, and refused: back references, look-around, word borders, possessive forms.

Invariants:
- A search looks at each character once. Its cost is at most the number of instructions (bounded) times the length.
- An expression whose program would be larger than `MAX_PROGRAM` is refused.

Method: Thompson's construction, run as a set of states (K. Thompson, CACM 11(6), 1968); captures by Pike's variant;
tests without captures use a table of sets that is filled while it runs, of bounded size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

MAX_PROGRAM = 1000
_MAX_TABLE = 2000
_MAX_DEPTH = 50

Test = Callable[[str], bool]


class Malformed(ValueError):
    """The expression is not of the supported language; the message says why."""


@dataclass(slots=True)
class _Instruction:
    """`kind` is "char", "split", "save", "start", "end" or "match"; `to` are the next instructions, preferred first."""

    kind: str
    to: tuple[int, ...] = ()
    test: Test | None = None
    slot: int = 0


_CLASSES: Mapping[str, Test] = {
    "d": lambda c: c.isdigit(),
    "D": lambda c: not c.isdigit(),
    "w": lambda c: c.isalnum() or c == "_",
    "W": lambda c: not (c.isalnum() or c == "_"),
    "s": str.isspace,
    "S": lambda c: not c.isspace(),
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class Expression:
    """A compiled expression. Thread-safe."""

    def __init__(self, text: str) -> None:
        self.names: dict[str, int] = {}
        self.groups = 0
        compiler = _Compiler(text, self)
        self._program, self._entry = compiler.program, compiler.compile()
        self._table: dict[tuple[frozenset[int], str], tuple[frozenset[int], bool]] = {}
        self._begin: frozenset[int] = frozenset(self._closure({self._entry}, at_start=True))
        self._again: frozenset[int] = frozenset(self._closure({self._entry}, at_start=False))

    def search(self, text: str) -> bool:
        """Whether the expression matches anywhere in the text."""
        states = self._begin
        if self._matched(states):
            return True
        for character in text:
            key = (states, character)
            following = self._table.get(key)
            if following is None:
                after = self._step(states, character)
                following = (after, self._matched(after))
                if len(self._table) >= _MAX_TABLE:
                    self._table = {}
                self._table[key] = following
            states, matched = following
            if matched:
                return True
        return self._matched(self._closure(states, at_start=not text, at_end=True))

    def _matched(self, states: Collection[int]) -> bool:
        return any(self._program[state].kind == "match" for state in states)

    def groups_of(self, text: str) -> list[str | None] | None:
        """Group 0 (the whole match) and every group of the leftmost match, preferring as Perl does; None without."""
        width = 2 * (self.groups + 1)
        threads: list[tuple[int, tuple[int, ...]]] = []
        found: tuple[int, ...] | None = None
        for at in range(len(text) + 1):
            if found is None:
                threads.append((self._entry, (-1,) * width))
            queue: list[tuple[int, tuple[int, ...]]] = []
            seen: set[int] = set()
            for state, slots in threads:
                self._follow(state, slots, at, len(text), queue, seen)
            threads = []
            for state, slots in queue:
                instruction = self._program[state]
                if instruction.kind == "match":
                    found = slots
                    break  # every thread after this one is less preferred
                if at < len(text) and instruction.test is not None and instruction.test(text[at]):
                    threads.append((instruction.to[0], slots))
            if found is not None and not threads:
                break
        if found is None:
            return None
        return [
            text[found[slot] : found[slot + 1]] if found[slot] >= 0 and found[slot + 1] >= 0 else None
            for slot in range(0, width, 2)
        ]

    def _follow(
        self,
        state: int,
        slots: tuple[int, ...],
        at: int,
        length: int,
        queue: list[tuple[int, tuple[int, ...]]],
        seen: set[int],
    ) -> None:
        stack = [(state, slots)]
        while stack:
            state, slots = stack.pop()
            if state in seen:
                continue
            seen.add(state)
            instruction = self._program[state]
            if instruction.kind == "split":
                stack += [(each, slots) for each in reversed(instruction.to)]
            elif instruction.kind == "save":
                slot = instruction.slot
                stack.append((instruction.to[0], (*slots[:slot], at, *slots[slot + 1 :])))
            elif instruction.kind == "start":
                if at == 0:
                    stack.append((instruction.to[0], slots))
            elif instruction.kind == "end":
                if at == length:
                    stack.append((instruction.to[0], slots))
            else:
                queue.append((state, slots))

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        following = {
            instruction.to[0]
            for instruction in (self._program[state] for state in states)
            if instruction.test is not None and instruction.test(character)
        }
        return frozenset(self._closure(following, at_start=False)) | self._again

    def _closure(self, states: set[int] | frozenset[int], *, at_start: bool, at_end: bool = False) -> set[int]:
        seen: set[int] = set()
        stack = list(states)
        while stack:
            state = stack.pop()
            if state in seen:
                continue
            seen.add(state)
            instruction = self._program[state]
            if (
                instruction.kind in ("split", "save")
                or (instruction.kind == "start" and at_start)
                or (instruction.kind == "end" and at_end)
            ):
                stack += instruction.to
        return seen


@functools.lru_cache(maxsize=256)
def linear(text: str) -> Expression:
    """The compiled expression. Raises Malformed."""
    return Expression(text)


class _Compiler:
    """Recursive descent over an expression, writing instructions from the end to the beginning."""

    def __init__(self, text: str, expression: Expression) -> None:
        self._text = text
        self._at = 0
        self._expression = expression
        self._fold = False
        self._copies = 0
        self.program: list[_Instruction] = []

    def compile(self) -> int:
        if self._text.startswith("(?i)"):
            self._fold, self._at = True, 4
        node = self._alternatives(0)
        if self._at < len(self._text):
            raise Malformed(f"unexpected {self._text[self._at]!r} at {self._at}")
        end = self._add(_Instruction("match"))
        return self._group_of(node, 0)(end)

    def _add(self, instruction: _Instruction) -> int:
        if len(self.program) >= MAX_PROGRAM:
            raise Malformed("the expression is too large")
        self.program.append(instruction)
        return len(self.program) - 1

    # A node is a function: given the instruction that follows, it writes its own and returns their entry.

    def _alternatives(self, depth: int) -> Callable[[int], int]:
        if depth > _MAX_DEPTH:
            raise Malformed("groups are nested too deeply")
        branches = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence(depth))
        if len(branches) == 1:
            return branches[0]
        return lambda after: self._add(_Instruction("split", tuple(branch(after) for branch in branches)))

    def _sequence(self, depth: int) -> Callable[[int], int]:
        items: list[Callable[[int], int]] = []
        while self._peek() not in ("", "|", ")"):
            items.append(self._repeated(self._atom(depth)))

        def write(after: int) -> int:
            for item in reversed(items):
                after = item(after)
            return after

        return write

    def _repeated(self, node: Callable[[int], int]) -> Callable[[int], int]:
        bounds = self._bounds()
        if bounds is None:
            return node
        least, most = bounds
        lazy = self._peek() == "?"
        if lazy:
            self._at += 1
        if self._peek() == "+" or self._bounds() is not None:
            raise Malformed("a repetition of a repetition is not supported")

        def choice(more: int, after: int) -> tuple[int, int]:
            return (after, more) if lazy else (more, after)

        def write(after: int) -> int:
            self._copies += least + 1  # repetitions of nothing write nothing, and must end too
            if self._copies > 10 * MAX_PROGRAM:
                raise Malformed("the expression is too large")
            if most is None:
                loop = self._add(_Instruction("split"))
                self.program[loop].to = choice(node(loop), after)
                after = loop
            else:
                last = after
                for _ in range(most - least):
                    entry = node(after)
                    after = self._add(_Instruction("split", choice(entry, last)))
            for _ in range(least):
                after = node(after)
            return after

        return write

    def _bounds(self) -> tuple[int, int | None] | None:
        sign = self._peek()
        if sign in ("*", "+", "?") and sign:
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        if sign != "{":
            return None
        end = self._text.find("}", self._at)
        parts = self._text[self._at + 1 : end].split(",") if end > 0 else []
        if not 1 <= len(parts) <= 2 or not parts[0].isdecimal() or not (parts[-1].isdecimal() or parts[-1] == ""):
            raise Malformed("a repetition is written {m}, {m,} or {m,n}")
        self._at = end + 1
        least = int(parts[0])
        most = None if parts[-1] == "" else int(parts[-1])
        if least > 1000 or (most is not None and not least <= most <= 1000):
            raise Malformed("a repetition counts up to 1000")
        return least, most

    def _atom(self, depth: int) -> Callable[[int], int]:
        character = self._take()
        if character == "(":
            return self._group(depth)
        if character == "[":
            return self._one(self._class())
        if character == ".":
            return self._one(lambda c: c != "\n")
        if character in "^$":
            kind = "start" if character == "^" else "end"
            return lambda after: self._add(_Instruction(kind, (after,)))
        if character in "*+?{":
            raise Malformed(f"nothing to repeat before {character!r}")
        if character == "\\":
            return self._one(self._escape())
        return self._one(self._literal(character))

    def _one(self, test: Test) -> Callable[[int], int]:
        return lambda after: self._add(_Instruction("char", (after,), test))

    def _literal(self, wanted: str) -> Test:
        if self._fold:
            lower = wanted.lower()
            return lambda c: c.lower() == lower
        return lambda c: c == wanted

    def _group(self, depth: int) -> Callable[[int], int]:
        number = 0
        if self._text.startswith("?:", self._at):
            self._at += 2
        elif self._text.startswith("?", self._at):
            start = self._at + (3 if self._text.startswith("?P<", self._at) else 2)
            end = self._text.find(">", start)
            name = self._text[start:end] if end > 0 else ""
            if self._text[start - 1 : start] != "<" or not name.isidentifier() or name in self._expression.names:
                raise Malformed("only ( ), (?: ) and (?<name> ) are supported as groups")
            self._at = end + 1
            number = self._number()
            self._expression.names[name] = number
        else:
            number = self._number()
        node = self._alternatives(depth + 1)
        if self._take() != ")":
            raise Malformed("a group is not closed")
        return self._group_of(node, number) if number else node

    def _number(self) -> int:
        self._expression.groups += 1
        return self._expression.groups

    def _group_of(self, node: Callable[[int], int], number: int) -> Callable[[int], int]:
        def write(after: int) -> int:
            inner = node(self._add(_Instruction("save", (after,), slot=2 * number + 1)))
            return self._add(_Instruction("save", (inner,), slot=2 * number))

        return write

    def _escape(self) -> Test:
        character = self._take()
        if character in _CLASSES:
            return _CLASSES[character]
        return self._literal(self._escaped(character))

    def _escaped(self, character: str) -> str:
        if character in _CONTROLS:
            return _CONTROLS[character]
        if character == "x":
            digits = self._text[self._at : self._at + 2]
            self._at += 2
            try:
                return chr(int(digits, 16))
            except ValueError:
                raise Malformed("\\x is followed by two hexadecimal digits") from None
        if character.isalnum():
            raise Malformed(f"\\{character} is not supported")
        return character

    def _class(self) -> Test:
        opposite = self._peek() == "^"
        if opposite:
            self._at += 1
        tests: list[Test] = []
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._take()
            if low == "\\":
                kind = self._take()
                if kind in _CLASSES:
                    tests.append(_CLASSES[kind])
                    continue
                low = self._escaped(kind)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._take()
                high = self._escaped(self._take()) if high == "\\" else high
                if high < low:
                    raise Malformed(f"the range {low}-{high} is empty")
                tests.append(self._range(low, high))
            else:
                tests.append(self._literal(low))
        self._at += 1
        return lambda c: any(test(c) for test in tests) is not opposite

    def _range(self, low: str, high: str) -> Test:
        if self._fold:
            return lambda c: low <= c <= high or low <= c.lower() <= high or low <= c.upper() <= high
        return lambda c: low <= c <= high

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise Malformed("the expression ends too soon")
        self._at += 1
        return character
