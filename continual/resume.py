"""A run that was killed goes on: how it was begun, what of it is there, and when the next checkpoint is due."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from continual import plugins
from continual.config import EXECUTION, Plan
from continual.errors import BadFolder
from continual.execution import Way
from continual.learning.train import State
from continual.results.checkpoints import Checkpoints

if TYPE_CHECKING:
    from torch import Tensor

SHARE = 20
"""A checkpoint at a task's end is left out where the last one is not older than so many times what it took."""


def keeping(out: Path, record: dict[str, Any], plan: Plan, processes: bool) -> Kept | None:
    """The checkpoints of a run, by its record; none where they are not asked for, or its code is in no file."""
    training = plan.training
    if training.checkpoint_steps is training.checkpoint_minutes is None or None in record["code"].values():
        return None
    made = {
        "run": {"strategy": dict(enumerate(record["strategy"])), "protocol": record["protocol"]},
        "asked": {name: getattr(training, name) for name in (*EXECUTION, "keep_learners")} | {"processes": processes},
        "device": record["device"],
        "versions": record["versions"],
        "code": record["code"] | plugins.own_code(),
    }
    kept = Checkpoints.of(out, record, made)
    return Kept(kept, str(record["title"]), training.checkpoint_steps, training.checkpoint_minutes)


def begun(kept: Sequence[Kept | None]) -> Way | None:
    """How the first of some runs that was begun was begun, if one was."""
    return next((way for one in kept if one and (way := one.way())), None)


@contextlib.contextmanager
def tidied(kept: Sequence[Kept | None]) -> Iterator[None]:
    """Where an error ends it, runs of which nothing is done yet leave nothing behind."""
    try:
        yield
    except Exception:
        for one in filter(None, kept):
            one.checkpoints.tidy()
        raise


@dataclass
class Kept:
    """The checkpoints of one strategy's run, and how often they are kept.

    ``before``: the seconds that it took until it was killed, all times together; ``mark``: what no other run has, and
    this one keeps until it is stored, by which trackers know it again.
    """

    checkpoints: Checkpoints
    title: str
    steps: int | None
    minutes: float | None
    before: float = 0.0
    began: float = field(default_factory=time.time)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    told: bool = False

    def way(self) -> Way | None:
        """How the run was begun, if it was."""
        found = self.checkpoints.how()
        return Way(**found[0]) if found and found[0].keys() == Way.__annotations__.keys() else None

    def begin(self, way: Way) -> Way:
        """The run is done in this way, unless another process has begun it in another."""
        with contextlib.suppress(OSError):  # nor can checkpoints be written then, which is told
            how, self.mark = self.checkpoints.agree(asdict(way), self.mark)
            way = Way(**how)
        self.checkpoints = replace(self.checkpoints, settled=asdict(way))
        return way

    def look(self, tell: Callable[[str], None]) -> None:
        """Say what is there of the run; what was made by other code, or so, stays until the run is stored."""
        found = self.checkpoints.facts()
        self.began, self.before = time.time(), max((one["seconds"] for one in found.values()), default=0.0)
        if found:
            tell(f"{self.title}: goes on where it was interrupted ({'; '.join(_reached(found))})")
            return
        for folder, reason in self.checkpoints.others()[:1]:
            tell(f"{self.title}: the checkpoints in {folder} are not used, being of {reason}; it starts from the "
                 "beginning, and they stay until it is stored")  # fmt: skip

    def seconds(self) -> float:
        """What the run took so far."""
        return self.before + time.time() - self.began

    def group(self, seeds: Sequence[int], tell: Callable[[str], None]) -> Group:
        """The checkpoints of the seeds that are trained together."""
        return Group(self, list(seeds), tell)

    def write(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any], tell: Callable[[str], None]) -> bool:
        """Write a file; where that cannot be done, say so once and give False: the run itself is not in danger."""
        try:
            self.checkpoints.write(name, tensors, facts | {"seconds": self.seconds()})
            return True
        except OSError as error:
            if not self.told:
                tell(f"{self.title}: no checkpoint could be written to {self.checkpoints.folder} "
                     f"({error.strerror or error}); the run goes on without")  # fmt: skip
            self.told = True
            return False


def _reached(found: dict[str, dict[str, Any]]) -> list[str]:
    """How far the seeds are, in words, by the facts of their checkpoints."""
    finished = [seed for one in found.values() if "state" not in one for seed in one["seeds"]]
    furthest = {str(one["seeds"]): one for one in found.values() if "state" in one}  # sorted by name, so by step
    words = [f"{_seeds(finished)} finished"] if finished else []
    for one in furthest.values():
        if not set(one["seeds"]) & set(finished):
            task, done = one["state"]["task"], one["state"]["done"]
            words.append(
                f"{_seeds(one['seeds'])} after {f'step {done} of task {task + 1}' if done else f'task {task}'}"
            )
    return words


def _seeds(seeds: list[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


class Group:
    """The checkpoints of seeds that are trained together: what a :class:`~continual.learning.train.Watch` needs."""

    def __init__(self, kept: Kept, seeds: list[int], tell: Callable[[str], None]) -> None:
        self.kept, self.seeds, self.tell = kept, seeds, tell
        self.name = f"{seeds[0]}x{len(seeds)}"
        self.last, self.took = time.monotonic(), 0.0

    def finished(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The arrays and facts of seeds that are through, if these are."""
        path = self.kept.checkpoints.folder / f"{self.name}.finished.safetensors"
        return self._read([path] if path.exists() else [])

    def start(self) -> State | None:
        """The furthest state that can be gone on from; what is refused is told with the reason."""
        found = self._read(self.kept.checkpoints.of_group(self.name))
        return State(found[0], found[1]["state"]) if found else None

    def _read(self, paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        for number, path in enumerate(paths, start=1):
            try:
                return self.kept.checkpoints.read(path)
            except BadFolder as error:
                self.kept.checkpoints.set_aside(path)
                rest = "the one before it is used" if number < len(paths) else "these seeds start from the beginning"
                self.tell(f"{self.kept.title}: {error}; {rest}")
        return None

    def due(self, done: int) -> bool:
        """Whether a checkpoint is due after ``done`` steps of a task, or (0) at a task's end."""
        since = time.monotonic() - self.last
        if not done:
            return since > SHARE * self.took
        asked, minutes = self.kept.steps, self.kept.minutes
        return (asked is not None and done % asked == 0) or (minutes is not None and since >= 60 * minutes)

    def keep(self, state: State) -> None:
        """Write a checkpoint, and remove the last but one before it."""
        began = time.monotonic()
        name = f"{self.name}.task-{state.facts['task']:04}.step-{state.facts['done']:09}"
        self.kept.write(name, state.tensors, {"seeds": self.seeds, "state": state.facts}, self.tell)
        self.kept.checkpoints.keep_last(self.name)
        self.last = time.monotonic()
        self.took = self.last - began

    def finish(self, arrays: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """The seeds are through: what they gave is kept, and their checkpoints go."""
        if self.kept.write(f"{self.name}.finished", arrays, facts | {"seeds": self.seeds}, self.tell):
            self.kept.checkpoints.clear(self.name)
