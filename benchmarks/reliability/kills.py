"""Kill runs at random moments, type them again, and hold what they store against runs that were left alone.

    python benchmarks/reliability/kills.py --minutes 10
    python benchmarks/reliability/kills.py --strategies "finetune ewc+replay" --rounds 1

A run is ``continual run`` of one strategy on a small stream, its options drawn at random. It is left alone once; then
the same is started again and again in another folder and killed (SIGKILL) after a random part of the time that the
first one took, until it was killed ``--kills`` times or is through. Both must have stored the same bits. Processes are
forked from this one, which has PyTorch imported already, so that kills meet a run at work and not its imports.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: its threads would not survive a fork

import contextlib
import importlib
import itertools
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import torch

from continual import cli, config, plugins, runner
from continual.errors import BadChain
from continual.results import store
from continual.streams.sets import data_root

CHAINS = ("ewc+replay", "si+replay:fill=reservoir,capacity=6", "ewc:terms=each+si+l2", "hat+replay:capacity=9")
STREAM = "split-digits:limit=30,scenario="
OPTIONS = {
    "seeds-as": ("loop", "map"),
    "program": ("eager", "captured"),
    "checkpoint-steps": ("none", "1", "3", "10"),
    "optimizer": ("adam", "sgd:lr=0.1,momentum=0.9", "adagrad"),
    "optimizer-state": ("keep", "reset"),
    "evaluate-every": ("none", "7"),
    "epochs": ("2", "4", "20"),
}
POLL = 0.001
PATIENCE = 300
"""Seconds after which a run is said to hang."""


def scenario(strategy: str) -> str:
    """The first scenario that suits a strategy."""
    made, net = config.make_strategy(strategy), config.plan({"model": "mlp:layers=12"}).model
    for name in ("class", "task", "domain"):
        stream = config.make_benchmark(f"{STREAM}{name}").stream(0, data_root(None))
        with contextlib.suppress(BadChain):
            made.suits(stream, net.build(stream.shape, stream.units, len(stream.tasks)))  # type: ignore[attr-defined]
            return name
    raise BadChain(f"no scenario suits {strategy}")


def started(words: list[str], log: Path) -> int:
    """The number of a process that does what a command line says, its words going to the log."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        cli.main(words, standalone_mode=False)
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def warm() -> None:
    """Import here what a run imports, which is found out by doing one elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "names")
        number = os.fork()
        if not number:
            try:
                runner.run(f"{STREAM}class", "ewc", seeds=2, seeds_as="map", model="mlp:layers=8", out=folder)
                names.write_text("\n".join(sys.modules))
            finally:
                os._exit(0)
        os.waitpid(number, 0)
        for name in names.read_text().split():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def ended(number: int, after: float) -> int | None:
    """The exit status of a process; none if it had to be killed after so many seconds."""
    limit = time.monotonic() + after
    while time.monotonic() < limit:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL)
    os.kill(number, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    return None if status == -signal.SIGKILL else status


def contents(folder: Path) -> list[tuple[str, dict[str, bytes], list[object]]]:
    """What the runs in a folder hold, but for when they were done."""
    return [
        (one.name, {name: array.tobytes() for name, array in one.arrays.items()}, list(one.record["stopped"]))
        for one in store.find(folder)
    ]


def one_run(strategy: str, chance: random.Random, kills: int, folder: Path) -> Counter[str]:
    """Do a run twice, once with kills; what happened."""
    options = [word for name, values in OPTIONS.items() for word in (f"--{name}", chance.choice(values))]
    words = ["run", f"{STREAM}{scenario(strategy)}", strategy, "--seeds", "2", "--batch", "16", "--model",
             "mlp:layers=20", "--device", "cpu", *options]  # fmt: skip
    log, counts = folder / "log.txt", Counter(runs=1)
    began = time.monotonic()
    if ended(started([*words, "--out", str(folder / "alone")], log), PATIENCE) != 0:
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text()}")
    took = time.monotonic() - began
    log.unlink()
    for killed in range(kills + 1):
        limit = chance.uniform(0, 0.6 * took) if killed < kills else PATIENCE
        status = ended(started([*words, "--out", str(folder / "killed")], log), limit)
        if status is not None:
            break
        counts["kills"] += 1
        counts["kills after a checkpoint"] += bool(list(folder.glob("killed/*/.checkpoints-*/*/*.safetensors")))
    said = log.read_text() if log.exists() else ""
    counts["starts that went on"] += said.count(": goes on where it was interrupted")
    if status != 0 or contents(folder / "alone") != contents(folder / "killed"):
        print(f"DIFFERS (status {status}): continual {' '.join(words)}\n{said}", flush=True)
        counts["runs that differ"] += 1
    counts["folders left behind"] += len(list((folder / "killed").glob("*/.checkpoints-*")))
    return counts


def chosen(given: str) -> Iterator[str]:
    """The strategies over and over."""
    return itertools.cycle(given.split() or [*sorted(plugins.registered("strategies")), *CHAINS])


@click.command()
@click.option("--strategies", default="", help="names separated by spaces [default: all, and some chains]")
@click.option("--kills", default=8, help="at most so many kills of a run [default: 8]")
@click.option("--minutes", default=10.0, help="begin no run after so many minutes [default: 10]")
@click.option("--rounds", type=int, help="begin so many runs at most")
@click.option("--seed", default=0, help="of the moments and the options [default: 0]")
def main(strategies: str, kills: int, minutes: float, rounds: int | None, seed: int) -> None:
    """Kill runs at random moments and compare; the exit status is 1 where one differs."""
    torch.set_num_threads(1)
    warm()
    chance, began, counts = random.Random(seed), time.monotonic(), Counter[str]()
    seen = set()
    for strategy in itertools.islice(chosen(strategies), rounds):
        if time.monotonic() - began > 60 * minutes:
            break
        with tempfile.TemporaryDirectory() as folder:
            counts += one_run(strategy, chance, kills, Path(folder))
        seen.add(strategy)
        if sys.stderr.isatty():
            print(f"\r{time.monotonic() - began:6.0f} s, {dict(counts)}", end="", file=sys.stderr)
    found = {"strategies": len(seen), **{name: counts[name] for name in (
        "runs", "kills", "kills after a checkpoint", "starts that went on", "runs that differ", "folders left behind",
    )}}  # fmt: skip
    print("\n".join(f"{name:<26} {count}" for name, count in found.items()))
    print(", ".join(f"{name} {version}" for name, version in runner.versions().items()))
    raise SystemExit(bool(found["runs that differ"] or found["folders left behind"]))


if __name__ == "__main__":
    main()
