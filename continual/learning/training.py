"""The options of training: how learners are trained and measured, whatever the strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from continual.errors import BadOption
from continual.options import Configured, option

MOST_SEEDS = 10_000
MOST_STEPS = 5_000_000
"""Of one task, whose batches are laid down before the first."""


@dataclass(frozen=True)
class Training(Configured):
    """How learners are trained and measured, whatever the strategy."""

    seeds: int | tuple[int, ...] = option(
        5, "how many, counted from 0, or the seeds themselves as in 3-5-7 ('7-' for one)", ge=0
    )
    epochs: int = option(1, "times each task's rows are gone through", ge=1, le=MOST_STEPS)
    iterations: int | None = option(None, "steps of each task, instead of epochs", ge=1, le=MOST_STEPS)
    batch: int = option(128, "rows in a batch", ge=1)
    shuffle: bool = option(True, "each epoch goes through a task's rows in an order of its own; else in the data's")
    last: Literal["keep", "drop"] = option("keep", "what is done with an epoch's last partial batch")
    optimizer_state: Literal["keep", "reset"] = option("keep", "the optimiser's state at the start of a task")
    unused_outputs: Literal["move", "hold"] = option(
        "move",
        "what an optimiser with a memory or weight decay does with the weights of outputs that a step gives no "
        "gradient; hold: they stay, as in a loop with a module for each task's head (Adam's count of steps goes on)",
    )
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = option(
        "float32", "of the arithmetic; tf32: float32 whose products a GPU rounds; bfloat16: of the forward pass"
    )
    evaluate_every: int | Literal["epoch"] | None = option(
        None, "also measure every so many steps, or after each epoch, on the tasks seen", ge=1
    )
    evaluate_samples: int | None = option(200, "rows of each task that are measured between steps; none: all", ge=1)
    evaluate_precision: Literal["full", "training"] = option(
        "full", "what is measured in: float32 (float64 where that is the precision), or as the training is"
    )
    evaluate_rows: Literal["test", "all"] = option(
        "test", "whose rows are measured between steps: the tests', or those of training and validation too"
    )
    task_aware: bool = option(
        False, "also measure the tests with the outputs of each image's own task alone, as if its task were told"
    )
    train_samples: int = option(200, "training rows of each task that its training accuracy is measured on", ge=0)
    seeds_as: Literal["auto", "map", "loop", "processes"] = option(
        "auto",
        "seeds side by side, one after the other, or in processes; auto: what a few steps show "
        "to be fastest (with deterministic: one after the other)",
    )
    program: Literal["auto", "captured", "eager"] = option(
        "auto",
        "steps are recorded once and replayed (on a GPU as CUDA graphs), or done one by one; captured: what cannot be "
        "recorded is refused, but for tasks that are too short for it on a CPU; auto: it is done one by one",
    )
    compile: bool = option(
        False, "compile the forward pass with torch.compile: up to a minute more, for steps that may be faster"
    )
    deterministic: bool = option(
        False, "the same bits each time on a device: slower kernels where the fast ones differ from time to time"
    )
    threads: int | None = option(
        None, "processor threads; none: PyTorch's default, or one where a step is too small to share", ge=1, le=1024
    )
    pixels: Literal["auto", "device", "pinned", "mapped"] = option(
        "auto",
        "where images lie: on the device, in the host's memory, which a GPU reads from, or in their file; auto: the "
        "first of these that they fit into",
    )
    checkpoint_steps: int | None = option(None, "also keep a checkpoint every so many steps of a task", ge=1)
    checkpoint_minutes: float | None = option(
        10.0, "keep a checkpoint every so many minutes and at each task's end; none, and no steps: never", ge=0
    )
    keep_learners: Literal["none", "last", "all"] = option(
        "none",
        "keep what seeds have learnt (θ and memory): after the last task, or before the first and after "
        "each; see continual.learner",
    )

    def check(self) -> None:
        """There are seeds, none of them twice, and one measure of how long a task is."""
        if self.iterations and self.epochs != 1:
            raise BadOption(f"epochs={self.epochs} and iterations={self.iterations}: give one of the two")
        if self.evaluate_precision == "training" and self.precision not in ("tf32", "bfloat16"):
            raise BadOption(f"evaluate_precision=training does nothing with precision={self.precision}, which is full; "
                            "leave it out")  # fmt: skip
        if isinstance(self.seeds, int) and self.seeds > MOST_SEEDS:
            raise BadOption(f"seeds={self.seeds}: that many seeds are not run at once; give at most {MOST_SEEDS}")
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list) or max(self.seed_list) >= 2**31:
            given = self.seeds if isinstance(self.seeds, int) else "-".join(map(str, self.seeds))
            raise BadOption(f"seeds={given}: give at least one, each once, below 2147483648")

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def steps(self, rows: int) -> int:
        """The steps of a task of so many rows; none where there is nothing to go through.

        Raises :class:`~continual.errors.BadOption` for more of them than can be laid down.
        """
        steps = (self.iterations or self.epochs * self.epoch(rows)) if rows else 0
        if steps > MOST_STEPS:
            raise BadOption(f"epochs={self.epochs}: {steps} steps of {rows} rows are more than a task's {MOST_STEPS}")
        return steps

    def interval(self, rows: int) -> int:
        """The steps between two evaluations in a task of so many rows; 0 where there are none."""
        return self.epoch(rows) if self.evaluate_every == "epoch" else self.evaluate_every or 0

    def epoch(self, rows: int) -> int:
        """The steps of an epoch of so many rows."""
        whole, rest = divmod(rows, self.batch)
        return whole + (rest > 0 and (self.last == "keep" or whole == 0))
