"""Where results lie: one folder per run, never changed once written.

A folder of runs holds experiments, and an experiment the strategies that were run under one protocol::

    <out>/<benchmark>-<model>-<8 hex>/<strategy>-<8 hex>/run.json
                                                        /arrays.safetensors
                                                        /learners.safetensors

The digits are the start of a SHA-256 over what the name stands for, so the same run finds its folder again and two
different ones never share it. A folder is written beside its place and renamed into it: it is there whole, or not at
all. ``run.json`` holds checksums of the record and of the other files, and reading verifies them. The third is there
where a run keeps what its seeds have learnt, and is read when it is asked for: tables can do without.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from continual import files
from continual.errors import BadFolder, counted
from continual.options import typed
from continual.results import notebook
from continual.results.checks import check_arrays, check_record, check_types
from continual.results.metrics import ACCURACIES, Array, Measured, metric, summarise
from continual.results.plots import Plot

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
RECORD, ARRAYS, LEARNERS = "run.json", "arrays.safetensors", "learners.safetensors"


# ---- what a run gave


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a run gave; R seeds learnt T tasks.

    Attributes:
        record: what was run and how, as JSON has it: ``strategy`` (a list of parts, each a name and options) and
            ``protocol`` (``benchmark``, ``model``, ``training`` and ``seeds``, which the runs of an experiment share),
            and further keys such as ``title``, ``tasks`` (their names, where they have some), ``versions``, ``time``,
            ``size`` and ``stopped`` (the seeds that ended early: seed, task, step, why).
        arrays: ``accuracy`` (R, T+1, T), and where they were measured ``task_aware_accuracy``, ``training_accuracy``
            and ``validation_accuracy`` of the same shape, ``trace`` (R, E, T) with ``trace_step`` and ``trace_task``
            (E,), ``loss`` and others (R, ...). Accuracies are fractions; a seed that was stopped has NaN from there on,
            and a task that was put off (``joint:every=false``) is a row of NaN.
        learners: what was kept of the seeds (``keep_learners``), tensors under ``SEED/LEARNT/theta`` and
            ``SEED/LEARNT/memory/NAME``, where so many tasks were learnt; of a stored run they are read, and verified,
            as they are asked for. :func:`continual.trained.learner` makes a network of them that answers.

    Raises:
        ValueError: where a part is missing or has the wrong type or shape, or values that it cannot have.
    """

    record: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    learners: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_record(self.record)
        check_arrays(self.arrays, len(self.seeds))

    @property
    def name(self) -> str:
        """The strategy as a table names it: the record's ``title``, or all parts with all their options."""
        return str(self.record["title"]) if "title" in self.record else "+".join(map(_spelled, self.record["strategy"]))

    @property
    def seeds(self) -> list[int]:
        """The R seeds."""
        return list(self.record["protocol"]["seeds"])

    @property
    def accuracy(self) -> Array:
        """Test accuracy (R, T+1, T) on task j after learning task i; row 0 is the untrained network."""
        return np.asarray(self.arrays["accuracy"], np.float64)

    def lines(self) -> list[dict[str, Any]]:
        """Every accuracy as a line of a long table, which pandas takes: ``pandas.DataFrame(result.lines())``.

        ``strategy``, ``seed``, ``learnt`` (so many tasks; 0: untrained), ``task`` (from 1) and ``accuracy``, a fraction
        or None, and beside it those of the other matrices that were measured, such as ``training_accuracy``.
        """
        matrices = {name: self.arrays[name] for name in ACCURACIES if name in self.arrays}
        return [
            {"strategy": self.name, "seed": seed, "learnt": learnt, "task": task + 1}
            | {name: plain(float(values[r, learnt, task])) for name, values in matrices.items()}
            for r, seed in enumerate(self.seeds)
            for learnt, task in np.ndindex(*self.accuracy.shape[1:])
        ]

    @property
    def task_aware_accuracy(self) -> Array | None:
        """As :attr:`accuracy`, with the outputs of each test's own task alone (``task_aware``)."""
        return self._accuracies("task_aware_accuracy")

    @property
    def training_accuracy(self) -> Array | None:
        """As :attr:`accuracy`, on training rows, by default at most 200 of each task (``train_samples``)."""
        return self._accuracies("training_accuracy")

    @property
    def validation_accuracy(self) -> Array | None:
        """As :attr:`accuracy`, on the rows set aside for validation."""
        return self._accuracies("validation_accuracy")

    @property
    def trace(self) -> Array | None:
        """Accuracies while learning, (R, E, T)."""
        return self._accuracies("trace")

    @property
    def training_trace(self) -> Array | None:
        """As :attr:`trace`, on training rows."""
        return self._accuracies("training_trace")

    @property
    def validation_trace(self) -> Array | None:
        """As :attr:`trace`, on the rows set aside for validation."""
        return self._accuracies("validation_trace")

    @property
    def trace_task(self) -> NDArray[np.int64] | None:
        """The task (counted from 0) that was being learnt at each evaluation of the trace, (E,)."""
        return np.asarray(self.arrays["trace_task"], np.int64) if "trace" in self.arrays else None

    @property
    def trace_step(self) -> NDArray[np.int64] | None:
        """The step, counted over the whole stream, of each evaluation of the trace, (E,)."""
        return np.asarray(self.arrays["trace_step"], np.int64) if "trace" in self.arrays else None

    def _accuracies(self, name: str) -> Array | None:
        return np.asarray(self.arrays[name], np.float64) if name in self.arrays else None

    @property
    def plot(self) -> Plot:
        """Pictures of this result as Matplotlib axes: ``result.plot.matrix()``, ``.curves()``, ``.trace()`` ..."""
        return Plot(self)

    def __repr__(self) -> str:
        """A line; ``record`` and ``arrays`` have it all."""
        count, _, tasks = self.accuracy.shape
        benchmark = _name(self.record["protocol"]["benchmark"])
        found = summarise(100 * self.average_accuracy)
        error = f" ± {found.sd:.2f}" if found.n > 1 else ""
        return (f"<Result of {self.name} on {benchmark}: {counted(count, 'seed')}, {tasks} tasks, average accuracy "
                f"{found.mean:.2f}{error} %>")  # fmt: skip

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return notebook.html(self)

    def metric(self, name: str, joint: Measured | None = None) -> Array:
        """A metric by its name, one value per seed, (R,); UnknownName, or BadOption where it needs what is not here."""
        return metric(name)(self, joint)

    @property
    def average_accuracy(self) -> Array:
        """See :func:`continual.results.metrics.average_accuracy`, (R,)."""
        return self.metric("average-accuracy")

    @property
    def average_incremental_accuracy(self) -> Array:
        """See :func:`continual.results.metrics.average_incremental_accuracy`, (R,)."""
        return self.metric("average-incremental-accuracy")

    @property
    def learning_accuracy(self) -> Array:
        """See :func:`continual.results.metrics.learning_accuracy`, (R,)."""
        return self.metric("learning-accuracy")

    @property
    def forgetting(self) -> Array:
        """See :func:`continual.results.metrics.forgetting`, as in its paper, (R,)."""
        return self.metric("forgetting")

    @property
    def backward_transfer(self) -> Array:
        """See :func:`continual.results.metrics.backward_transfer`, (R,)."""
        return self.metric("backward-transfer")

    @property
    def forward_transfer(self) -> Array:
        """See :func:`continual.results.metrics.forward_transfer`, (R,)."""
        return self.metric("forward-transfer")


def _spelled(part: dict[str, Any]) -> str:
    """A part of a strategy with its options, ``ewc:strength=600,decay=1.0``."""
    options = ",".join(f"{name}={typed(value)}" for name, value in part.items() if name != "name")
    return f"{part['name']}:{options}" if options else str(part["name"])


def why_stopped(one: dict[str, Any]) -> str:
    """Why and where a seed ended early, of what a record has under ``stopped``."""
    return f"{one['why']} at task {one['task']}, step {one['step']}"


# ---- the name of its folder


def experiment(record: dict[str, Any]) -> str:
    """The name of the folder that the runs of one experiment share."""
    protocol = record["protocol"]
    return _slug([_name(protocol["benchmark"]), _name(protocol["model"])], protocol)


def folder(out: Path, record: dict[str, Any]) -> Path:
    """Where under ``out`` the run of this record lies, or will; nothing is read or written."""
    names = [part["name"] for part in record["strategy"]]
    return Path(out) / experiment(record) / _slug(names, record["strategy"])


def _name(described: Any) -> str:
    return str(described["name"]) if isinstance(described, dict) and "name" in described else str(described)


def _slug(names: list[str], described: Any) -> str:
    """A safe file name: what is readable of the names, and 8 digits that tell apart what they stand for."""
    return f"{slug(' '.join(names), 48)}-{digest(canonical(described))[:8]}"


def slug(text: str, most: int) -> str:
    """A safe part of a file's name, of ``most`` letters."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:most].strip("-") or "run"


def canonical(value: Any) -> bytes:
    """The one way to write a value as JSON that a checksum is taken of."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def plain(value: Any) -> Any:
    """The value in JSON's own types; numbers that JSON does not have (NaN, infinity) become null."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The values in nested mappings, and lists of some, that are none, by their paths; those of lists are counted."""
    if isinstance(value, list | tuple) and value and all(isinstance(one, dict) for one in value):
        value = dict(enumerate(value, start=1))
    if not isinstance(value, dict):
        return {path: value}
    parts = (leaves(item, f"{path}.{name}" if path else str(name)) for name, item in value.items())
    return {name: item for part in parts for name, item in part.items()}


def digest(content: bytes) -> str:
    """The SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


# ---- writing


def check_writable(out: Path) -> None:
    """BadFolder where nothing can be written into the folder for runs, or it cannot be made; it is not made yet."""
    try:
        there = next(folder for folder in (Path(out), *Path(out).absolute().parents) if folder.exists())
        probe = beside(there / "runs", "probe")
        probe.mkdir()
        probe.rmdir()
    except (OSError, ValueError) as error:  # a path with a NUL in it is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise BadFolder(f"cannot write into the folder {out}: {reason}") from error


def save(result: Result, out: Path, replace: bool = False) -> Path:
    """Writes a result into its folder under ``out``, which is given back.

    Where the same run is there already it stays, also if another process wrote it a moment ago; with ``replace`` it is
    replaced. Whatever goes wrong, nothing half-written stays.

    Raises:
        BadFolder: where the folder cannot be written, or what is there already is damaged.
        ValueError: where the record has something in it that could not be read again.
    """
    target = folder(out, result.record)
    with files.refused(f"cannot write the run to {target}"):
        with _temporary(target) as temporary:
            _write(result, temporary)
            placed = _place(temporary, target, replace)
            sync(target.parent)
        tidy(target.parent)
    if not placed:
        _check_same(load(target), result.record, target)
    return target


def beside(target: Path, purpose: str) -> Path:
    """A hidden name beside ``target`` that nobody else uses."""
    return target.with_name(f".{purpose}-{target.name}-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A new hidden folder beside ``target``, deleted in the end if it is still there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = beside(target, "writing")
    try:
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write(result: Result, temporary: Path) -> None:
    """The files of a run, on the disk when this returns."""
    from safetensors.numpy import save as packed

    arrays = packed({name: np.ascontiguousarray(array) for name, array in result.arrays.items()})
    record = plain({**result.record, "format": FORMAT, "written": datetime.now(UTC).isoformat(timespec="microseconds")})
    check_record(record)
    check_types(record)
    record["sha256"] = {"record": _record_digest(record), ARRAYS: digest(arrays)}
    if result.learners:
        from safetensors.torch import save as packed_tensors

        learners = packed_tensors(dict(result.learners))
        record["sha256"][LEARNERS] = digest(learners)
        write_file(temporary / LEARNERS, learners)
    write_file(temporary / ARRAYS, arrays)
    write_file(temporary / RECORD, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    sync(temporary)


def _record_digest(record: dict[str, Any]) -> str:
    return digest(canonical({name: value for name, value in record.items() if name != "sha256"}))


def write_file(path: Path, content: bytes) -> None:
    """Write a new file, on the disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(directory: Path) -> None:
    """Puts a directory's entries on the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _place(temporary: Path, target: Path, replace: bool) -> bool:
    """Renames the finished folder into its place; False where another is there and stays."""
    if replace and _exchanged(temporary, target):
        return True
    old = beside(target, "replaced")
    moved = replace and _moved(target, old)
    placed = True
    try:
        temporary.rename(target)
    except BaseException as error:
        if moved and not target.exists():
            old.rename(target)
            raise
        # a folder that is not empty cannot be renamed onto: another process was first
        if not (isinstance(error, OSError) and target.is_dir()):
            raise
        placed = False
    shutil.rmtree(old, ignore_errors=True)
    return placed


def _exchanged(one: Path, other: Path) -> bool:
    """Both change places in one step, so that a reader always finds one of them there; False where that cannot be.

    Linux can, on most file systems, and Python has no name for it.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(at, os.fsencode(one), at, os.fsencode(other), exchange) == 0


def _moved(target: Path, old: Path) -> bool:
    """Moves the run that is there aside; False where there is none."""
    try:
        target.rename(old)
    except FileNotFoundError:
        return False
    return True


def tidy(experiment: Path) -> None:
    """Clear away what writers that were killed have left in the folder of an experiment, a day later.

    A run that one of them had moved aside, to replace it, comes back where nothing has taken its place.
    """
    for old in files.old(experiment, ".replaced-*"):
        target = old.with_name(old.name.removeprefix(".replaced-").rpartition("-")[0])
        if not target.exists():
            with contextlib.suppress(OSError):
                old.rename(target)
    files.clear(experiment, ".replaced-*", ".writing-*", ".probe-*")


# ---- reading


def load(path: Path) -> Result:
    """The result that lies in the folder of a run; its record has the time of writing too, as ``written``.

    Raises:
        BadFolder: where a file is missing, damaged, of another format, or was changed after it was written.
    """
    path, tries = Path(path), 10
    while True:
        before = _identity(path)
        try:
            return _load(path)
        except BadFolder:
            tries -= 1
            # replaced while it was read: the two files may have been of two runs
            if not tries or _identity(path) == before:
                raise


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells a folder from another that takes its place; none where there is no folder."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _load(path: Path) -> Result:
    record = _read_record(path / RECORD)
    content = _read_file(path / ARRAYS)
    sums = record.pop("sha256")
    if digest(content) != sums.get(ARRAYS):
        raise BadFolder(f"{path / ARRAYS} is damaged: its checksum is not the one in {RECORD}")
    from safetensors import SafetensorError
    from safetensors.numpy import load as unpacked

    kept = LEARNERS in sums and has_learners(path)  # they may be deleted
    learners = LearnersFile(path.absolute() / LEARNERS, str(sums[LEARNERS])) if kept else {}
    try:
        check_record(record)
        check_types(record)
        return Result(record, unpacked(content), learners)
    except (ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:  # a type that numpy has not
        raise BadFolder(f"{path} does not hold a run: {error}") from error


def has_learners(path: Path) -> bool:
    """Whether there is a file of what seeds have learnt in the folder of a run."""
    return (path / LEARNERS).exists()


class LearnersFile(Mapping[str, Any]):
    """The tensors in a file, each read when it is asked for; the file is verified before the first, and if it changed.

    Raises :class:`~continual.errors.BadFolder` where it is missing or damaged.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        self.path, self.sha256 = path, sha256
        self.verified: tuple[int, ...] | None = None

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        with self._opened() as file:
            return file.get_tensor(name).clone()  # it lies in the file otherwise, which may be replaced

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of the tensors."""
        with self._opened() as file:
            return list(file.keys())

    def _opened(self) -> Any:
        from safetensors import safe_open

        if self.verified is None or _identity(self.path) != self.verified:
            if not self.path.exists():
                raise BadFolder(f"there is no file {self.path}, which had what was learnt")
            with files.refused(f"cannot read {self.path}"):
                files.check_ordinary(self.path)
                identity = _identity(self.path)
                with self.path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self.sha256:
                raise BadFolder(f"{self.path} is damaged: its checksum is not the one in {RECORD}; delete it, or run "
                                "it again (--again)")  # fmt: skip
            self.verified = identity
        return safe_open(self.path, "pt")


def _read_file(path: Path) -> bytes:
    with files.refused(f"cannot read {path}"):
        try:
            return files.read_bytes(path)
        except FileNotFoundError:
            raise BadFolder(f"there is no file {path}; delete the folder, or run it again with --again") from None


def _read_record(path: Path) -> dict[str, Any]:
    """The record with its checksums, verified."""
    try:
        record = json.loads(_read_file(path))
    except (ValueError, RecursionError) as error:
        raise BadFolder(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("sha256"), dict):
        raise BadFolder(f"{path} is not the record of a run")
    if record.get("format") != FORMAT:
        raise BadFolder(f"{path} has format {record.get('format')!r}; this version reads format {FORMAT}")
    if record["sha256"].get("record") != _record_digest(record):
        raise BadFolder(f"{path} is damaged: it was changed after it was written")
    return record


def find(path: Path) -> list[Result]:
    """The results in the folder of a run, of an experiment or of many, by time of writing, then by folder.

    Raises:
        BadFolder: where there is no such folder, it holds no runs, or one of them is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        what = f"{path} is a file, and no folder of runs" if path.is_file() else f"there is no folder {path}"
        raise BadFolder(f"{what}; 'continual run' writes runs to the folder given by --out")
    folders = [one for one in _folders(path, 2) if any((one / name).exists() for name in (RECORD, ARRAYS))]
    if not folders:
        raise BadFolder(f"the folder {path} holds no runs; 'continual run' writes some (see 'continual run --help')")
    found = [(one, load(one)) for one in folders]
    return [
        result for _, result in sorted(found, key=lambda pair: (str(pair[1].record.get("written", "")), str(pair[0])))
    ]


def _folders(path: Path, depth: int) -> Iterator[Path]:
    """A folder and those in it, so many levels down; hidden ones, which are being written, are left out."""
    yield path
    if depth:
        try:
            inner = sorted(one.name for one in os.scandir(path) if one.is_dir() and not one.name.startswith("."))
        except FileNotFoundError:  # another process has taken it away
            return
        except OSError as error:
            raise BadFolder(f"cannot read the folder {path}: {error.strerror or error}") from error
        for name in inner:
            yield from _folders(path / name, depth - 1)


def lookup(out: Path, record: dict[str, Any]) -> Result | None:
    """The result of the same run (strategy and protocol) if it is under ``out``.

    Raises :class:`~continual.errors.BadFolder` where it is damaged, or is another run's that was put in its place.
    It is not the same where ``code``, the digests of files that are not the framework's own, differs or is not known.
    """
    path = folder(out, record)
    if not path.exists():
        return None
    found, code = load(path), record.get("code", {})
    _check_same(found, record, path)
    return found if None not in code.values() and found.record.get("code", {}) == code else None


def _check_same(found: Result, record: dict[str, Any], path: Path) -> None:
    """Raise BadFolder where what was found in a run's place is not of its strategy and protocol."""
    for part in ("strategy", "protocol"):
        if canonical(found.record[part]) != canonical(record[part]):
            raise BadFolder(f"{path} has another run, {found.name}, whose {part} is not the one that the folder's name "
                            "stands for; move it away")  # fmt: skip
