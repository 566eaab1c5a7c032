"""How the seeds of a run are done: side by side, one after the other, or in processes, whichever is found fastest."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from continual import failures, workers
from continual.errors import BadOption, Mistake
from continual.learning.capture import least_of
from continual.learning.seeds import Learners, Recipe, all_equal
from continual.learning.step import Program
from continual.learning.train import captured, schedule, steps_of
from continual.learning.training import Training
from continual.products import fast_products, used
from continual.streams.placement import Where, free_memory, laid_out
from continual.streams.rng import pytorch_left_alone
from continual.streams.stream import Stream

if TYPE_CHECKING:
    from continual.learning.models import Net

How = Literal["map", "loop", "processes"]

SHARED = 10_000_000
"""Below so many multiplications in a step, threads cost more in waiting for each other than they save."""
WARM, TIMED = 3, 5
"""Steps that are done before some are timed, and those: the third is recorded."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""
START, START_ON_GPU = 6.0, 15.0
"""Seconds that a process takes until it learns."""
CONTEXT = 1e9
"""Bytes of a GPU's memory that a process takes before it has any tensor there."""


@dataclass(frozen=True)
class Choice:
    """How seeds are done, and why, where it was measured."""

    how: How
    why: str = ""
    inner: Literal["map", "loop"] = "loop"
    """How each process does its own."""


@dataclass(frozen=True)
class Way:
    """How a run is done, where nobody asked for it: what a run that goes on has to keep to.

    ``how`` and ``inner`` as in :class:`Choice`; ``where`` images lie; ``cores`` that processes share; ``threads`` of
    PyTorch's own choice; whether the ``features`` of what is not trained were computed once for all.
    """

    how: How
    inner: Literal["map", "loop"]
    where: Where
    cores: int
    threads: int
    features: bool


def choose(recipe: Recipe, training: Training, streams: Sequence[Stream], processes: bool) -> Choice:
    """As asked, else by the time of a few steps of the first task; ``processes`` may be chosen where that is safe.

    Raises :class:`~continual.errors.BadOption` for seeds that were asked to be mapped and whose tasks differ in size.
    """
    same = alike(training, streams)
    if training.seeds_as != "auto":
        return Choice("loop" if len(streams) == 1 else training.seeds_as)
    # a clock's choice may differ from time to time, and with it the last bits
    if len(streams) == 1 or recipe.strategy.trains_itself or training.deterministic:
        return Choice("loop")
    seconds: dict[How, float] = {"loop": len(streams) * step_seconds(recipe, training, streams[:1])}
    cannot = ""
    if same and classes_alike(streams) and recipe.strategy.can_be_captured:
        try:
            seconds["map"] = step_seconds(recipe, training, streams)
        except Mistake:
            raise
        except Exception as error:  # one by one it went well: a hook, or the network, does what cannot be mapped
            if not failures.is_memory(error):  # all at once they need more memory than there is
                cannot = f"; side by side they cannot be done: {failures.in_words(error)}"
    most = max(sum(training.steps(len(task.train)) for task in stream.tasks) for stream in streams)
    if processes:
        seconds |= seconds_in_processes(recipe, training, streams, most, seconds)
    told = {"loop": "one after the other", "map": "side by side", "processes": "in processes"}
    ordered = sorted(seconds, key=lambda how: seconds[how])
    listed = ", ".join(f"{told[one]} {1000 * seconds[one]:.1f}" for one in ordered)
    inner: Literal["map", "loop"] = "map" if seconds.get("map", math.inf) < seconds["loop"] else "loop"
    return Choice(
        ordered[0], f"{len(streams)} seeds {told[ordered[0]]} (a step of all, in ms: {listed}{cannot})", inner
    )


def seconds_in_processes(
    recipe: Recipe, training: Training, streams: Sequence[Stream], steps: int, seconds: dict[How, float]
) -> dict[How, float]:
    """The seconds of a step of all seeds in processes; nothing where they would take longer to begin than is gained.

    ``seconds``: without processes, in so many ``steps``. On a processor each has its share of the cores. On a GPU
    processes take turns: while one computes the others prepare what comes next, so they help where it often waits,
    which it does not where steps are recorded.
    """
    device, count = streams[0].samples.image.device, min(len(streams), workers.cores())
    start = START if device.type == "cpu" else START_ON_GPU
    if count < 2 or steps * min(seconds.values()) <= start:
        return {}
    turns = math.ceil(len(streams) / count)
    if device.type == "cpu":
        usual = min(torch.get_num_threads(), workers.share(count))
        return {"processes": turns * step_seconds(recipe, training, streams[:1], usual) + start / steps}
    recorded = recipe.strategy.can_be_captured and training.program != "eager"
    if recorded or not may_be_shared():
        return {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    at_work = step_seconds(recipe, training, streams[:1], spent=computed)
    held = torch.cuda.max_memory_reserved(device)
    torch.cuda.empty_cache()
    if not at_work or count * (CONTEXT + held) > free_memory(device):
        return {}
    return {"processes": max(turns * seconds["loop"] / len(streams), len(streams) * at_work) + start / steps}


def may_be_shared() -> bool:
    """Whether several processes may use a GPU at a time, which a cluster may have forbidden."""
    asked = ["nvidia-smi", "--query-gpu=compute_mode", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return False
    return set(said) == {"Default"}


def alike(training: Training, streams: Sequence[Stream]) -> bool:
    """Whether the seeds' tasks are of the same sizes; where they are not, what needs that is refused."""
    sizes = {tuple((len(t.train), len(t.test), len(t.validation)) for t in stream.tasks) for stream in streams}
    if len(sizes) == 1:
        return True
    if training.evaluate_every and (training.iterations is None or training.evaluate_every == "epoch"):
        raise BadOption("evaluate_every: the seeds' tasks differ in size (the class order is drawn by the seed), so "
                        "they are not measured at the same steps; give iterations, not epochs, and evaluate_every as "
                        "a number of steps")  # fmt: skip
    if training.seeds_as == "map":
        raise BadOption("seeds_as=map: the seeds' tasks differ in size (the class order is drawn by the seed), so "
                        "seeds can only be run one after the other; use seeds_as=loop or auto")  # fmt: skip
    return False


def classes_alike(streams: Sequence[Stream]) -> bool:
    """Whether a task's classes are of the same sizes for all seeds; of how many rows each is may be what is learnt."""
    if len({tuple(task.classes for task in stream.tasks) for stream in streams}) == 1:
        return True
    return all_equal([[stream.samples.y[task.train].bincount() for task in stream.tasks] for stream in streams])


Steps = Sequence[Callable[[], None]]


def passed(steps: Steps, device: torch.device) -> float:
    """The seconds that pass until a step is done, the median."""
    took = []
    for step in steps:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took or [0.0])


def computed(steps: Steps, device: torch.device) -> float:
    """The seconds in which a GPU computes a step, the mean."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        passed(steps, device)
    found: float = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return found / max(len(steps), 1)


def step_seconds(
    recipe: Recipe, training: Training, streams: Sequence[Stream], usual: int | None = None,
    spent: Callable[[Steps, torch.device], float] = passed,
) -> float:  # fmt: skip
    """The seconds of a step of some seeds together, of the first task, as it will be done; ``usual`` threads."""
    recipe = replace(recipe, compiled=False)
    device = streams[0].samples.image.device
    last = len(streams) == 1 and helps(recipe.net, streams[0].shape, device, recipe.precision)
    with at_speed(training, recipe.net, streams, usual), pytorch_left_alone(device):
        learners = Learners(recipe, laid_out(streams, last), list(range(len(streams))))
        rows = learners.begin(0)
        replayed = training.steps(rows.shape[-1]) - 2 >= least_of(recipe.strategy)  # nothing of a short task is
        recorder = captured(learners, training, 1 if replayed else None)
        batches = schedule(rows, training, learners.seed, 0)[: WARM + TIMED]
        losses = torch.zeros(*learners.theta.shape[:-1], len(batches), device=learners.device, dtype=recipe.dtype)
        steps = list(steps_of(Program(learners, 0, batches), batches, losses, recorder))
        warm = steps[:-1][:WARM]
        passed(warm, learners.device)
        return spent(steps[len(warm) :], learners.device)


def helps(net: Net, shape: tuple[int, ...], device: torch.device, precision: str) -> bool:
    """Whether images of a shape are better shown with their channels last, as the kernels of convolutions like them.

    A CPU's do, but for one that is wrong; a GPU's where its tensor cores are used. Mapped seeds have no such form, nor
    have vectors.
    """
    kernels_do = not net.skips if device.type == "cpu" else precision in ("tf32", "bfloat16")
    return net.convolves and len(shape) == 3 and kernels_do and not net.as_usual


@contextlib.contextmanager
def at_speed(training: Training, net: Net, streams: Sequence[Stream], usual: int | None = None) -> Iterator[str]:
    """Within it, steps of these seeds together are done as fast as they can; gives by whose products of matrices.

    ``usual`` as in :func:`threads`.
    """
    of_one = training.batch * net.work(streams[0].shape)
    fast = used(of_one, streams[0].samples.image.device, training.precision)
    with threads(training.threads, len(streams) * of_one, usual), prepared(fast):
        yield "oneDNN" if fast else "PyTorch"


@contextlib.contextmanager
def threads(asked: int | None, multiplications: int, usual: int | None = None) -> Iterator[None]:
    """Within it, PyTorch uses the threads that were asked for, or one where a step is too small to be shared.

    ``usual``: those of PyTorch's own choice; none: as they are.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(asked or ((usual or before) if multiplications > SHARED else 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def prepared(fast: bool = True) -> Iterator[None]:
    """Within it, a processor does steps as fast as it can; ``fast``: also by fast products of matrices."""
    ask_for_constants()
    with kept_memory(), usual_attention(), fast_products() if fast else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def usual_attention() -> Iterator[None]:
    """Within it, PyTorch's attention is the same operations whether they are noted or not.

    In a pass without a gradient it is one operation of its own, which rounds in another way, but not where operations
    are noted: a recorded step whose teacher is a transformer would do something else than the step itself.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def ask_for_constants() -> None:
    """Touch the constants that PyTorch's log1p and expm1 have for zeros below zero, so that their page is in memory.

    They load them at each call, under a mask that leaves them out where there is no such zero. Until one has been asked
    for, their page is not there, and a processor takes fifteen times as long for the whole call: a load that a mask
    leaves out is slow on a page that is missing. The losses of generative replay are made of log1p.
    """
    torch.log1p(torch.tensor([-0.0]))
    torch.expm1(torch.tensor([-0.0]))


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, the C library of Linux keeps what tensors leave free for the next ones, and gives it back at the end.

    It gives every tensor above 32 MB back to the system otherwise, and smaller ones by chance; the next one then costs
    the system a fault and a page of zeros for every 4 kB. Where there is another C library nothing is done.
    """
    library = _library()
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, 65_536)  # as they are where nobody asks
        library.mallopt(M_TRIM_THRESHOLD, 2**17)
        library.malloc_trim(0)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The GNU C library, if this process runs with it."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


@contextlib.contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Within it, where that is asked for, PyTorch uses nothing whose bits differ from time to time, or raises."""
    if not asked:  # nothing is touched: PyTorch imports its compiler where this is set
        yield
        return
    before, fastest = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = fastest


def less_memory(how: str) -> str:
    """The two settings that help where memory is short, by how seeds are done."""
    other = "seeds_as=loop (--seeds-as loop), which runs one seed at a time"
    if how == "loop":
        other = "pixels=mapped (--pixels mapped), which leaves images in their file"
    return f"a smaller batch (--batch) needs less, and so does {other}"
