"""Weights & Biases: a run for each strategy, or for each of its seeds; without a network with ``mode=offline``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from continual.options import option
from continual.results import store
from continual.tracking.tracker import Ended, Followed, Log, Point, Tracker, Unreachable

OFFLINE = ("offline", "dryrun", "disabled")
SECONDS = 20  # that the service may take to answer


@dataclass(frozen=True)
class WandB(Tracker):
    """Weights & Biases: one run of the project for each strategy, grouped by what they share.

    Offline runs lie in DIR/wandb/, and 'wandb sync' sends them.
    """

    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "continual[wandb]"

    project: str = option("continual", "the project that runs are put into")
    entity: str | None = option(None, "the user or team; none: the usual one of who is logged in")
    mode: Literal["default", "online", "offline"] = option("default", "default: what $WANDB_MODE says, else online")
    dir: str = option(".", "the folder in which the folder wandb is made")

    def reach(self) -> None:
        """See :meth:`Tracker.reach`; the folder can be written, and online the service knows who it is."""
        super().reach()
        store.check_writable(Path(self.dir))
        mode = os.environ.get("WANDB_MODE", "online") if self.mode == "default" else self.mode
        if mode in OFFLINE:
            return
        import wandb

        advice = "run 'wandb login' or set $WANDB_API_KEY, or track with wandb:mode=offline"
        try:
            known = wandb.login(prompt=False, verify=True, timeout=SECONDS)
        except Exception as error:  # whatever its client raises
            said = " ".join(str(error).split())
            raise Unreachable(f"Weights & Biases cannot be reached: {said}; {advice}") from error
        if not known:
            raise Unreachable(f"Weights & Biases does not know who you are: {advice}")

    def begin(self, followed: Followed) -> Log:
        """See :meth:`Tracker.begin`."""
        import wandb

        run = wandb.init(
            project=self.project, entity=self.entity, dir=self.dir, name=followed.name, group=followed.experiment,
            job_type=followed.part, id=f"{followed.mark}-{followed.part}", resume="allow",
            config=followed.configuration, mode=None if self.mode == "default" else self.mode,
            reinit="create_new",  # the runs of several seeds are open at once
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        for axis in ("step", "task"):
            run.define_metric(axis, hidden=True)
        return WandBRun(run)


class WandBRun(Log):
    """One run there."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.known: set[str] = set()

    def write(self, points: Sequence[Point]) -> None:
        """See :meth:`Log.write`; each name is drawn over its own axis."""
        for point in points:
            for name in point.values.keys() - self.known:
                self.run.define_metric(name, step_metric=point.axis)
                self.known.add(name)
            self.run.log({point.axis: point.at, **point.values})

    def end(self, ended: Ended) -> None:
        """See :meth:`Log.end`."""
        self.run.summary.update({f"summary/{name}": value for name, value in ended.metrics.items()} | ended.facts)
        self.run.finish()

    def fail(self) -> None:
        """See :meth:`Log.fail`."""
        self.run.finish(exit_code=1)
