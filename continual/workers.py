"""Work in processes of its own, which end when this one does, however that ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.synchronize import Event
from typing import Any

from continual.errors import Mistake, OutOfMemory
from continual.progress import is_quiet, stay_quiet


def each(
    count: int, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], done: Callable[[int, Any], None],
    help: str,
) -> None:  # fmt: skip
    """Do every call in one of ``count`` processes; ``done`` is told of the number and the outcome of each, as it comes.

    The processor's cores are shared among them: threads of PyTorch's that are more than cores wait for each other.
    Where a call raises, or this process is interrupted, the others are ended at once.

    Raises:
        Mistake: where no process could begin, or one was ended by what it did.
        OutOfMemory: where a process was killed from outside, mostly as the system takes its memory back;
            ``help`` says what to do then.
    """
    context, waiting = _Spawn(), iter(enumerate(calls))
    begun, threads = context.Event(), share(count)
    # a pool for each process: one of several may not see that one of them dies while it begins another (Python 3.11)
    pools = [
        ProcessPoolExecutor(1, context, _begin, (begun, threads, is_quiet())) for _ in range(min(count, len(calls)))
    ]
    at_work: dict[Future[Any], tuple[int, ProcessPoolExecutor]] = {}

    def give(pool: ProcessPoolExecutor) -> None:
        if (following := next(waiting, None)) is not None:
            number, call = following
            at_work[pool.submit(_called, function, *call)] = number, pool

    try:
        with _unsignalled():
            for pool in pools:
                give(pool)
        while at_work:
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                number, pool = at_work.pop(future)
                outcome = future.result()
                give(pool)
                done(number, outcome)
    except BaseException as error:
        for process in context.started:
            if process.is_alive():
                process.terminate()
        for pool in pools:
            pool.shutdown()  # waits for its process: how each ended is known
        if not isinstance(error, BrokenProcessPool):
            raise
        # of those that were not ended by a signal, as the system and this process do it
        statuses = [one.exitcode for one in context.started if one.exitcode is not None and one.exitcode >= 0]
        if statuses and begun.is_set():
            raise Mistake(f"one of {count} processes was ended by what it did, with status {statuses[0]} (os._exit in "
                          "a hook, or a library's)") from error  # fmt: skip
        if statuses:  # each begins by reading the script that was started
            raise Mistake("no process could begin; in a script, what starts them is written under "
                          "if __name__ == '__main__':, as each of them reads the script again") from error  # fmt: skip
        raise OutOfMemory(f"one of {count} processes was killed from outside, as the system does when its memory is "
                          f"full; {help}") from error  # fmt: skip
    for pool in pools:
        pool.shutdown()


class _Spawn(SpawnContext):
    """Begins each process anew, and knows all that it began: Python's own list leaves out those that have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        self.started.append(SpawnProcess(*args, **kwargs))
        return self.started[-1]


@contextlib.contextmanager
def _unsignalled() -> Iterator[None]:
    """Processes that are started within it are left to this one by Ctrl-C, which a terminal sends to all of them."""
    signals = {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(count: int, among: int | None = None) -> int:
    """The cores that each of ``count`` processes has ``among`` so many (none: those that there are), one at least."""
    return max(1, (among or cores()) // count)


def _called(function: Callable[..., Any], *given: Any) -> Any:
    """What the function gives; what it raises, in words where it would not come out of the process as it is."""
    try:
        return function(*given)
    except BaseException as error:
        if _passes(error):
            raise
        told = RuntimeError("".join(traceback.format_exception(error)).strip())
        raise told from None


def _passes(error: BaseException) -> bool:
    """Whether another process can raise an error, and does not end by it in silence."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does when it is copied
        return False
    return not isinstance(error, SystemExit)


def _begin(begun: Event, threads: int, quiet: bool) -> None:
    """Begin a process: it ends when the one that started it is no more, has so many threads, and is as ``quiet``."""
    begun.set()
    stay_quiet(quiet)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        connection.wait([parent.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))  # of which the user may have asked for fewer
