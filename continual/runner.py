"""Do a plan: train every strategy on every seed, and keep what was measured."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from continual import config, execution, failures, plugins, resume
from continual.config import Plan
from continual.errors import BadOption, mistakes_of
from continual.execution import less_memory
from continual.learning.train import program_of
from continual.parts import in_groups, in_processes
from continual.progress import Progress
from continual.ready import Ready, prepare
from continual.results import store
from continual.results.pool import join
from continual.results.store import Result
from continual.streams.benchmark import look_again
from continual.streams.sets import data_root
from continual.tracking.follow import Follow, following

if TYPE_CHECKING:
    from continual.learning.strategy import Strategy


def run(
    benchmark: Any,
    strategy: Any = "finetune",
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    device: str | torch.device = "auto",
    again: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Run one strategy (or chain) on a benchmark or stream, and give what was measured.

    ``benchmark``: an object of :mod:`continual.benchmarks`, a :class:`~continual.streams.stream.Stream`, or text such
    as ``"split-mnist:scenario=class"``; ``strategy``: an object of :mod:`continual.strategies` or text;
    ``settings``: ``model``, ``optimizer``, ``schedule``, ``augment``, ``track`` and the options of training (``seeds``,
    ...).
    With ``out`` the result is stored there, a result that is there already is returned instead of run again (unless the
    user's own code may have changed, or learners are asked for that it has not), and a run that was interrupted goes
    on, unless ``again``. With ``keep_learners="last"`` it has what the seeds have learnt, of
    which :func:`~continual.trained.learner` makes a network again. Raises :class:`~continual.errors.Mistake` for
    whatever cannot be run as asked.
    """
    if isinstance(strategy, list | tuple) or "strategies" in settings:
        raise BadOption("run takes one strategy, or a chain, such as 'ewc+replay' or Chain((EWC(), Replay())); call it "
                        "for each of several")  # fmt: skip
    made = config.plan({"benchmark": benchmark, "strategies": [strategy], **settings})
    (result,) = run_plan(made, out=out, data=data, device=device, again=again, progress=progress)
    return result


def run_plan(
    plan: Plan,
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    device: str | torch.device = "auto",
    again: bool = False,
    progress: Progress | None = None,
    processes: bool = False,
    failed: Callable[[str, Exception, int], None] | None = None,
) -> list[Result]:
    """Every strategy of a plan in turn; see :func:`run`.

    With ``failed`` a strategy that raises something while it learns does not end the others: it is called with its
    title, the error, and how many others are left, and the strategy has no result.

    With ``processes`` seeds are run in several of them where that is found to be faster: for programs that may be
    started again, such as the command line. (A script has to begin with ``if __name__ == "__main__":`` for that.)
    """
    told, target = progress or Progress(), choose_device(device)
    folder = Path(out) if out is not None else None
    if folder is not None:
        store.check_writable(folder)
    root = data_root(data)
    look_again()
    jobs = [Job(strategy, new_record(plan, strategy, target, root)) for strategy in plan.strategies]
    for job in jobs:
        if folder is not None:
            job.kept = resume.keeping(folder, job.record, plan, processes)
            job.result = None if again else _stored(folder, job.record, told, plan.training.keep_learners)
        if job.kept and (again or job.result):
            job.kept.checkpoints.forget()
    there, missing = [job for job in jobs if job.result], [job for job in jobs if not job.result]
    for tracker in plan.trackers if missing else ():
        tracker.reach()
    for job in there if plan.trackers else ():
        told.say(f"{job.record['title']}: not tracked, as it is not run")
    with resume.tidied([job.kept for job in missing]):
        begun = _begun(plan, missing, root, target, told, processes)
        for number, (job, ready) in enumerate(zip(missing, begun, strict=True), start=1):
            try:
                job.result = _run_one(ready, job, told, folder, again)
            except Exception as error:
                if failed is None:
                    raise
                failed(job.record["title"], error, len(missing) - number)
                _let_go(error)
                if job.kept:
                    job.kept.checkpoints.tidy()
                continue
            if job.kept:
                job.kept.checkpoints.forget()
    done = [job.result for job in missing if job.result]
    if done:
        _tell_other_data(done[0], [job.result for job in there], told)
    return [job.result for job in jobs if job.result]


@dataclass
class Job:
    """A strategy of a plan: the record of its run, its checkpoints where they are kept, and its result, once there."""

    strategy: Strategy
    record: dict[str, Any]
    kept: resume.Kept | None = None
    result: Result | None = None


def _begun(
    plan: Plan, jobs: Sequence[Job], root: Path, device: torch.device, told: Progress, processes: bool
) -> list[Ready]:
    """What each strategy is run on.

    Each is begun before the first is trained, so that all are done alike also if the process is killed.
    """
    if not jobs:
        return []
    other = "; images that do not fit can stay in their file (--pixels mapped)"
    way = resume.begun([job.kept for job in jobs])
    with failures.memory(f"preparing on {device.type}", less_memory(plan.training.seeds_as) + other):
        ready = prepare(plan, [job.strategy for job in jobs], root, device, told, processes, way)
        return [ready.begun(job.strategy, job.kept, told, processes) for job in jobs]


def _run_one(ready: Ready, job: Job, told: Progress, folder: Path | None, again: bool) -> Result:
    """Train one strategy, followed by the plan's trackers, and store what it gave."""
    learners, record, kept = ready.plan.training.keep_learners, job.record, job.kept
    with following(ready.plan.trackers, record, told.say, kept.mark if kept else "") as follow:
        result, place = run_strategy(ready, job.strategy, record, told, kept, follow), None
        if folder is not None:
            anew = again or bool(record["code"]) or learners != "none"
            if learners == "none" and store.has_learners(store.folder(folder, record)):
                told.say(f"{record['title']}: what its seeds had learnt was kept before, and now is not "
                         "(--keep-learners)")  # fmt: skip
            place = store.save(result, folder, replace=anew)
        follow.end(result, place)
    return result


def _let_go(error: BaseException | None) -> None:
    """Let go what the functions had that an error came through: its learners, whose memory the others need."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _tell_other_data(done: Result, there: Sequence[Result | None], told: Progress) -> None:
    """Say which stored runs are of other data than one that was done now: their benchmark has no ``facts``."""
    for one in there:
        if one is not None and one.record.get("data", {}).get("sha256") not in (None, done.record["data"]["sha256"]):
            told.say(f"{one.record['title']}: stored, of other data than there are now; --again runs it anew")


def _stored(folder: Path, record: dict[str, Any], told: Progress, learners: str) -> Result | None:
    """The same run, if it was stored, with the ``learners`` that are asked for."""
    stored = store.lookup(folder, record)
    if stored is not None and not _has(stored, learners):
        told.say(f"{record['title']}: there, but without the learners of keep_learners={learners}; run again")
        return None
    if stored is not None:
        told.say(f"{record['title']}: already there, not run again (--again runs it)")
    elif (place := store.folder(folder, record)).exists():
        code, before = record["code"], store.load(place).record.get("code", {})
        other = [name for name in sorted({*code, *before}) if code.get(name) is None or code[name] != before.get(name)]
        told.say(f"{record['title']}: there, but {', '.join(other)} may have changed since; run again")
    return stored


def _has(stored: Result, learners: str) -> bool:
    """Whether a run has the learners that ``keep_learners`` asks for, but for those of seeds that were stopped."""
    tasks, lost = stored.accuracy.shape[2], {one["seed"] for one in stored.record.get("stopped", ())}
    after = {"none": range(0), "last": range(tasks, tasks + 1), "all": range(tasks + 1)}[learners]
    needed = [f"{seed}/{learnt}/theta" for seed in stored.seeds if seed not in lost for learnt in after]
    return not needed or set(needed) <= set(stored.learners)


def choose_device(name: str | torch.device) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for a GPU if there is one; or PyTorch's own."""
    name = str(name)
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise BadOption(f"device '{name}': it takes cpu, cuda, cuda:N or auto")
    if kind == "cuda" and (not available or int(number or 0) >= torch.cuda.device_count()):
        raise BadOption(f"device '{name}': PyTorch finds {torch.cuda.device_count()} GPUs here; use cpu or auto")
    return torch.device(name)


def new_record(plan: Plan, strategy: Strategy, device: torch.device, root: Path) -> dict[str, Any]:
    """What is known of a run before it begins: everything that it will be recognised by, and the versions."""
    names = plan.benchmark.task_names() if hasattr(plan.benchmark, "task_names") else []
    return ({"tasks": names} if names else {}) | {
        "title": config.strategy_title(strategy),
        "strategy": [config.describe("strategies", part) for part in strategy.parts],
        "protocol": plan.protocol(root),
        "asked": plan.asked,
        "device": {"type": device.type, "name": device_name(device)},
        "versions": versions(*(name for part in strategy.parts for name in part.libraries)),
        "code": code_of(plan, strategy),
    }


def code_of(plan: Plan, strategy: Strategy) -> dict[str, str | None]:
    """The digests of the files that what is not the framework's own is written in."""
    streams = (plan.benchmark, *getattr(plan.benchmark, "members", ()))
    return {
        module: digest
        for made in (*strategy.parts, *streams, plan.model, plan.optimizer, plan.schedule, plan.augment)
        for module, digest in plugins.code_of(type(made)).items()
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def versions(*more: str) -> dict[str, str]:
    """The versions of what the numbers depend on."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("continual", "numpy", "torch", "torchvision", *more)}
    return found | {"python": platform.python_version(), "system": platform.system()}


def run_strategy(
    ready: Ready, strategy: Strategy, record: dict[str, Any], told: Progress, kept: resume.Kept | None = None,
    follow: Follow | None = None,
) -> Result:  # fmt: skip
    """Train one strategy on all seeds, with what was ``kept`` of it, if it was interrupted; ``follow`` is fed."""
    follow = follow or Follow((), record, told.say)
    began, clock = datetime.now(UTC), time.perf_counter()
    if kept:
        kept.look(told.say)
    do = in_processes if ready.way.how == "processes" else in_groups
    enough = failures.memory(f"{record['title']} on {ready.device.type}", less_memory(ready.way.how))
    with enough, execution.deterministic(ready.plan.training.deterministic):
        parts = do(ready, strategy, record, told, kept, follow)
    parts.sort(key=lambda part: ready.plan.training.seed_list.index(part.seeds[0]))  # processes end in any order
    seeds, stopped = ready.plan.training.seed_list, [one for part in parts for one in part.stopped]
    for one in stopped:
        others = "; the other seeds went on" if len(stopped) < len(seeds) else ""
        told.say(f"{record['title']}: seed {one['seed']} was stopped: {store.why_stopped(one)}{others}")
    seconds = time.perf_counter() - clock + (kept.before if kept else 0)
    data = ready.streams[0].data
    processes = {"seeds_as": "processes"} if ready.way.how == "processes" else {}
    full = record | parts[0].facts | processes | {
        "program": program_of(*(part.facts["program"] for part in parts)),
        "deterministic": ready.plan.training.deterministic,
        "pixels": ready.way.where,
        "features_once": ready.way.features,
        "data": {"sha256": data.sha256, "skipped": list(data.skipped), "classes": list(data.classes)},
        "time": {"began": began.isoformat(timespec="seconds"), "seconds": round(seconds, 3)},
        "stopped": stopped,
    }  # fmt: skip
    learners = {name: value for part in parts for name, value in part.learners.items()}
    with mistakes_of(record["title"]):
        return Result(full, join(parts, seeds), learners)
