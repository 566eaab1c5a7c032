"""What every comparison here is made of: contenders in processes of their own, who take turns.

Two pools of threads in one process slow each other down, so each library has a process of its own and all cores while
it works; the others wait. A machine's speed drifts, so contenders take turns, who begins changes from turn to turn, and
a ratio is the median of the ratios within a turn.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import statistics
import time
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal

Work = Callable[[], float]
"""Does a piece of work and gives what it took: seconds, or megabytes."""


@dataclass(frozen=True)
class Place:
    """Where and on what all contenders work."""

    root: str
    device: str = "cpu"
    threads: int = 2
    limit: int | None = None
    """Training images of each class of MNIST; none: all."""


@dataclass(frozen=True)
class Piece:
    """A piece of work of a module here: what its ``pieces(place)[kind](**options)`` makes."""

    module: str
    kind: str
    options: tuple[tuple[str, Hashable], ...] = ()

    @classmethod
    def of(cls, module: str, kind: str, **options: Hashable) -> Piece:
        """The piece with these options."""
        return cls(module, kind, tuple(options.items()))


class CannotRun(Exception):
    """Why a piece of work cannot be done here."""


def seconds(function: Callable[[], Any], device: str = "cpu", count: int = 1, ahead: int = 0) -> float:
    """Seconds of one of ``count`` calls, until the device has done what it was told.

    ``ahead``: so many calls before these, which are not counted: the first steps of a turn look for memory and find
    nothing near, which in a run happens once and here would in every turn.
    """
    for _ in range(ahead):
        function()
    wait(device)
    began = time.perf_counter()
    for _ in range(count):
        function()
    wait(device)
    return (time.perf_counter() - began) / count


def wait(device: str) -> None:
    """Until the device has done what it was told."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


class Crew:
    """The processes, one for each module, started when they are first needed; each keeps what it has loaded."""

    def __init__(self, place: Place) -> None:
        self.place, self.pipes = place, dict[str, Any]()

    def __call__(self, piece: Piece | Work) -> float:
        """What the piece took, or other work, which is done here; :class:`CannotRun` where it cannot be done."""
        if not isinstance(piece, Piece):
            return piece()
        if piece.module not in self.pipes:
            context = get_context("spawn")
            self.pipes[piece.module], other = context.Pipe()
            context.Process(target=_serve, args=(other, self.place, piece.module), daemon=True).start()
            other.close()  # so that a process that dies is noticed
        pipe = self.pipes[piece.module]
        try:
            pipe.send(piece)
            took = pipe.recv()
        except (EOFError, BrokenPipeError):
            del self.pipes[piece.module]
            raise CannotRun(f"the process of {piece.module} ended") from None
        if isinstance(took, str):
            raise CannotRun(took)
        return float(took)

    def forget(self) -> None:
        """A row is over: what was made for its pieces is let go, what was loaded is kept."""
        for pipe in self.pipes.values():
            pipe.send(None)

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes.values():
            pipe.close()
        self.pipes.clear()


def _serve(pipe: Any, place: Place, module: str) -> None:
    import torch

    torch.set_num_threads(place.threads)
    made: dict[Piece, Work] = {}
    kinds: dict[str, Callable[..., Work]] = {}
    with contextlib.suppress(EOFError, BrokenPipeError):  # whoever asked has ended
        while True:
            piece = pipe.recv()
            if piece is None:
                made.clear()
                continue
            try:
                kinds = kinds or importlib.import_module(module).pieces(place)
                if piece not in made:
                    made[piece] = kinds[piece.kind](**dict(piece.options))
                pipe.send(made[piece]())
            except Exception as error:  # told to whoever asked, who goes on with the others
                where = traceback.extract_tb(error.__traceback__)[-1]
                pipe.send(f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})")


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives in a new process, which ends with it: its memory is its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@dataclass(frozen=True)
class Target:
    """What is wanted of a contender.

    ``value``: what it took itself; ``of``: what the row's first took, as a part of that; ``times``: the reverse, so
    many times what the first took. ``bound`` is the most (``value``, ``of``) or the least (``times``), unless ``most``
    says otherwise; none: it is only told.
    """

    kind: Literal["value", "of", "times"]
    bound: float | None = None
    most: bool | None = None

    @property
    def at_most(self) -> bool:
        """Whether the bound is an upper one."""
        return self.kind != "times" if self.most is None else self.most

    def measured(self, own: list[float], first: list[float]) -> list[float]:
        """What is held against the bound, in each turn that both took part in."""
        pairs = [(a, b) for a, b in zip(own, first, strict=True) if not math.isnan(a) and not math.isnan(b)]
        return [{"value": a, "of": b / a if a else math.inf, "times": a / b if b else math.inf}[self.kind]
                for a, b in pairs]  # fmt: skip

    def met(self, measured: list[float]) -> bool | None:
        """Whether the median keeps to the bound."""
        if self.bound is None or not measured:
            return None
        middle = statistics.median(measured)
        return middle <= self.bound if self.at_most else middle >= self.bound


@dataclass(frozen=True)
class Contender:
    """Who does a row's work; ``every`` so many turns, which is for those that take long; ``times`` it counts."""

    work: Piece | Work
    target: Target | None = None
    every: int = 1
    times: int = 1


def in_turns(
    contenders: dict[str, Contender], turns: int, do: Callable[[Any], float], warm: bool = True
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """What each contender took in every turn (NaN where it did not take part), and why others could not.

    With ``warm`` there is a turn before these that is not counted, for those that take part in every one.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    missing: dict[str, str] = {}
    for turn in range(0 if warm else 1, turns + 1):
        names = list(contenders)
        for name in names if turn % 2 else reversed(names):
            one = contenders[name]
            part = one.every == 1 if turn == 0 else (turn - 1) % one.every == 0
            took = math.nan
            if part and name not in missing:
                try:
                    took = one.times * do(one.work)
                except CannotRun as why:
                    missing[name] = str(why)
            if turn:
                found[name].append(took)
    return {name: took for name, took in found.items() if name not in missing}, missing


def median(values: list[float]) -> float:
    """The median of those that are there."""
    return statistics.median([value for value in values if not math.isnan(value)])
