"""TensorBoard: a folder of event files for each run."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from continual.options import option
from continual.results import store
from continual.tracking.tracker import Ended, Followed, Log, Point, Tracker


@dataclass(frozen=True)
class TensorBoard(Tracker):
    """TensorBoard: event files in DIR/EXPERIMENT/STRATEGY, which 'tensorboard --logdir DIR' shows.

    A run that is done again replaces its event files.
    """

    package: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "continual[tensorboard]"

    dir: str = option("tensorboard", "the folder of all event files, which --logdir names")

    def reach(self) -> None:
        """See :meth:`Tracker.reach`; the folder can be written."""
        super().reach()
        store.check_writable(Path(self.dir))

    def begin(self, followed: Followed) -> Log:
        """See :meth:`Tracker.begin`."""
        folder = Path(self.dir) / followed.path
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        return Events(folder, followed)


@functools.cache
def _told_once() -> None:
    """No traceback of the thread that writes event files: what it fails at is raised again by the next flush."""
    usual = threading.excepthook

    def told(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            usual(failed)

    threading.excepthook = told


class Events(Log):
    """The event file of one run."""

    def __init__(self, folder: Path, followed: Followed) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _told_once()
        self.flat = followed.flat
        self.writer: Any = SummaryWriter(str(folder))
        table = "\n".join(f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in self.flat.items())
        self.writer.add_text("configuration", f"| option | value |\n| --- | --- |\n{table}")
        self.writer.flush()

    def write(self, points: Sequence[Point]) -> None:
        """See :meth:`Log.write`."""
        for point in points:
            for name, value in point.values.items():
                self.writer.add_scalar(name, value, point.at)
        self.writer.flush()

    def end(self, ended: Ended) -> None:
        """See :meth:`Log.end`; the metrics stand beside the options in the page of hyper-parameters."""
        from torch.utils.tensorboard.summary import hparams

        summary = {f"summary/{name}": value for name, value in ended.metrics.items()}
        for part in hparams(self.flat, summary):
            self.writer.file_writer.add_summary(part)
        for name, value in summary.items():
            self.writer.add_scalar(name, value)
        for name, text in ended.facts.items():
            self.writer.add_text(name, text)
        self.writer.close()

    def fail(self) -> None:
        """See :meth:`Log.fail`."""
        self.writer.add_text("failed", "the run was broken off")
        self.writer.close()
