"""All interleavings of small programs with the store buffers of x86: what is stored becomes visible to the
other threads later, in order, and a load sees its own thread's newest store.

A program is a list of instructions; a string among them is a label.

    ("store", name, value)              into the thread's buffer
    ("load", register, name)
    ("cas", register, name, old, new)   a locked instruction: the register gets what was there
    ("fence",)                          goes on when the thread's buffer is empty
    ("barrier",)                        goes on when all buffers are: membarrier()
    ("set", register, value)
    ("choose", register, values)        each of them
    ("if", condition, label)            a condition is a function of the registers
    ("wait", names)                     goes on when one of them is not 0

Values may be functions of the registers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

Instruction = tuple[Any, ...] | str
Memory = dict[str, int]
Registers = dict[str, int]
Thread = tuple[int, tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]
State = tuple[tuple[tuple[str, int], ...], tuple[Thread, ...]]


class Threads:
    """Programs that run on one memory."""

    def __init__(self, *programs: list[Instruction]) -> None:
        self._programs: list[list[tuple[Any, ...]]] = []
        for program in programs:
            places: dict[str, int] = {}
            code: list[tuple[Any, ...]] = []
            for instruction in program:
                if isinstance(instruction, str):
                    places[instruction] = len(code)
                else:
                    code.append(instruction)
            self._programs.append([(*one[:2], places[one[2]]) if one[0] == "if" else one for one in code])

    def violation(
        self,
        memory: Memory,
        wrong: Callable[[Memory, list[Registers]], str],
        wrong_at_rest: Callable[[Memory, list[Registers]], str],
    ) -> tuple[str, int]:
        """What `wrong` says of the first state that it finds wrong, or `wrong_at_rest` of one in which
        nothing can move any more; "" where there is none. And how many states there are."""
        start: State = (tuple(sorted(memory.items())), tuple((0, (), ()) for _ in self._programs))
        seen, todo = {start}, deque([start])
        while todo:
            state = todo.popleft()
            registers = [dict(thread[1]) for thread in state[1]]
            following = list(self._following(state))
            check = wrong if following else wrong_at_rest
            if found := check(dict(state[0]), registers):
                return found, len(seen)
            for new in following:
                if new not in seen:
                    seen.add(new)
                    todo.append(new)
        return "", len(seen)

    def _following(self, state: State) -> Iterator[State]:
        memory, threads = dict(state[0]), state[1]

        def after(index: int, thread: Thread, memory: Memory) -> State:
            return tuple(sorted(memory.items())), (*threads[:index], thread, *threads[index + 1 :])

        for index, (place, registers, buffer) in enumerate(threads):
            if buffer:
                (name, value), *rest = buffer
                yield after(index, (place, registers, tuple(rest)), memory | {name: value})
            if place < len(self._programs[index]):
                others_are_empty = all(not thread[2] for thread in threads)
                for thread, new in _step(
                    self._programs[index][place], (place, registers, buffer), memory, others_are_empty
                ):
                    yield after(index, thread, new)


def _step(
    instruction: tuple[Any, ...], thread: Thread, memory: Memory, all_empty: bool
) -> Iterator[tuple[Thread, Memory]]:
    place, pairs, buffer = thread
    registers = dict(pairs)
    kind, *rest = instruction

    def value_of(value: Any) -> Any:
        return value(registers) if callable(value) else value

    def on(
        new: Registers | None = None, buffer: tuple[tuple[str, int], ...] = buffer, to: int = place + 1
    ) -> Thread:
        return to, tuple(sorted((registers | (new or {})).items())), buffer

    if kind == "store":
        yield on(buffer=(*buffer, (rest[0], value_of(rest[1])))), memory
    elif kind == "load":
        own = [value for name, value in buffer if name == rest[1]]
        yield on({rest[0]: own[-1] if own else memory[rest[1]]}), memory
    elif kind == "cas" and not buffer:
        register, name, old, new = rest
        found = memory[name]
        yield on({register: found}), memory | ({name: new} if found == old else {})
    elif kind == "set":
        yield on({rest[0]: value_of(rest[1])}), memory
    elif kind == "choose":
        for value in rest[1]:
            yield on({rest[0]: value}), memory
    elif kind == "if":
        yield on(to=rest[1] if rest[0](registers) else place + 1), memory
    elif (
        (kind == "fence" and not buffer)
        or (kind == "barrier" and all_empty)
        or (kind == "wait" and not buffer and any(memory[name] for name in rest[0]))
    ):
        yield on(), memory
