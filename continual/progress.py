"""Who is told what is going on during a run."""

from __future__ import annotations


class Progress:
    """Told of everything, and silent: a subclass shows it. No method may wait for the device."""

    def begin(self, title: str, group: int, groups: int, tasks: int, samples: int) -> None:
        """A strategy's next group of seeds begins; a step learns ``samples`` samples."""

    def step(self, task: int, step: int, steps: int) -> None:
        """A step of a task begins."""

    def end(self) -> None:
        """The group is through."""

    def say(self, line: str) -> None:
        """Something that the user should know."""

    def note(self, line: str) -> None:
        """How it is done, for those who wonder."""
