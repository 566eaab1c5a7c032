"""A full disk, no permission, no memory, Ctrl-C: a clear message, the exit status, and what was finished stays."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner, Result

from continual import failures, parts, progress, workers
from continual.cli import main
from continual.errors import Mistake, OutOfMemory
from continual.results import store

COMMAND = (sys.executable, "-P", "-m", "continual")
TINY = ("--seeds", "1", "--model", "mlp:layers=4", "--iterations", "1", "--quiet")
TWO = ("run", "split-digits:limit=5", "finetune", "ewc", *TINY)
root_only = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="for root alone")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(said: Result) -> str:
    """The one message of a command that could not be done."""
    assert isinstance(said.exception, SystemExit) and said.exit_code == 2, (said.output, said.exception)
    assert said.stderr.count("continual: ") == 1 and "Traceback" not in said.output
    return said.stderr


def names(out: Path) -> list[str]:
    return sorted(one.name for one in store.find(out))


def hidden(out: Path) -> list[Path]:
    """What is half-written; the folders of checkpoints, from which a run goes on, are whole."""
    found = [path for path in out.rglob("*") if path.name.startswith(".")]
    return [path for path in found if not path.name.startswith(".checkpoints-")]


# ---- disks


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@root_only
def test_a_full_disk(small: Path) -> None:
    assert invoke("run", "split-digits:limit=5", "finetune", *TINY, "--out", small).exit_code == 0
    (small / "filled").write_bytes(b"x" * (os.statvfs(small).f_bavail - 1) * 4096)
    assert "No space left on device" in refused(invoke(*TWO, "--out", small))
    assert names(small) == ["finetune"] and not hidden(small)
    (small / "filled").unlink()
    assert invoke(*TWO, "--out", small).exit_code == 0
    assert names(small) == ["ewc", "finetune"]


@root_only
def test_a_full_disk_under_checkpoints_is_told_once(small: Path) -> None:
    (small / "filled").write_bytes(b"x" * (os.statvfs(small).f_bavail - 1) * 4096)
    said = invoke(*TWO[:3], *TINY, "--checkpoint-steps", "1", "--out", small)
    assert said.stderr.count("no checkpoint could be written") == 1, said.stderr


@root_only
def test_a_full_disk_leaves_no_half_of_a_report_or_picture(small: Path, tmp_path: Path) -> None:
    assert invoke(*TWO, "--out", tmp_path / "runs").exit_code == 0
    for command in (("report", tmp_path / "runs", "--out", small / "page.html"),
                    (*TWO, "--out", tmp_path / "runs", "--picture", small / "page.png")):  # fmt: skip
        (small / "filled").write_bytes(b"x" * (os.statvfs(small).f_bavail - 2) * 4096)
        assert f"{command[-1]} cannot be written: No space left on device" in refused(invoke(*command))
        assert [one.name for one in small.iterdir()] == ["filled"]
        (small / "filled").unlink()


@root_only
def test_a_full_disk_under_a_tracker_is_told_in_one_message(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (small / "filled").write_bytes(b"x" * os.statvfs(small).f_bavail * 4096)
    words = [*TWO, "--out", str(tmp_path / "runs"), "--track", f"tensorboard:dir={small}"]
    said = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
    assert said.returncode == 2 and "No space left on device" in said.stderr
    assert "Traceback" not in said.stderr and len(said.stderr.splitlines()) == 1, said.stderr


@root_only
def test_a_full_disk_under_the_data_root(small: Path, tmp_path: Path) -> None:
    """What cannot be packed is read anew, as is said, and nothing half-packed is left."""
    (small / "filled").write_bytes(b"x" * (os.statvfs(small).f_bavail - 1) * 4096)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = invoke(*TWO, "--data", small, "--out", tmp_path / "runs")
    assert said.exit_code == 0, said.output
    assert "No space left on device" in said.stderr and said.stderr.count("\n") == 1
    assert [path.name for path in small.rglob("*")] == ["filled"]


def test_a_file_that_may_grow_no_further(tmp_path: Path) -> None:
    """What a limit on file sizes (or a quota) does to the second of two runs."""
    invoke(*TWO[:3], *TINY, "--out", tmp_path)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, allowed[1]))
    try:
        said = invoke(*TWO, "--out", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert "cannot write the run to" in refused(said) and "File too large" in said.stderr
    assert names(tmp_path) == ["finetune"] and not hidden(tmp_path)


@contextmanager
def nobody() -> Iterator[None]:
    """Within it this process has no rights but everybody's."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@root_only
def test_no_permission(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert invoke(*TWO[:3], *TINY, "--out", out).exit_code == 0
    assert invoke("report", out).exit_code == 0  # what this imports may lie where nobody may read
    (out / "report.html").unlink()
    for folder in (out, *(one for one in out.rglob("*") if one.is_dir()), *tmp_path.parents[:-2], tmp_path):
        folder.chmod(0o755)
    with nobody():
        said = invoke(*TWO, "--out", out)
        shown = invoke("show", out)
        reported = invoke("report", out)
    assert f"cannot write into the folder {out}: Permission denied" in refused(said)
    assert shown.exit_code == 0, shown.output
    assert "report.html cannot be written: Permission denied" in refused(reported)
    out.chmod(0o700)
    with nobody():
        assert "Permission denied" in refused(invoke("show", out))
    assert names(out) == ["finetune"] and not hidden(out)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert "cannot write into the folder" in refused(invoke(*TWO, "--out", tmp_path / "runs"))
    assert "cannot write into the folder" in refused(invoke(*TWO, "--out", tmp_path / "runs" / "inner"))


# ---- memory


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried"),
])  # fmt: skip
@pytest.mark.parametrize(("how", "helps"), [
    ("map", ["--batch", "--seeds-as loop"]), ("loop", ["--batch", "--pixels mapped"]),
])  # fmt: skip
def test_no_memory_names_two_settings_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, how: str, helps: list[str]
) -> None:
    """The second strategy finds none; the first one's run stays."""
    usual = parts.train

    def short(learners: Any, *rest: Any) -> Any:
        if type(learners.strategy).__name__ == "EWC":
            raise error
        return usual(learners, *rest)

    monkeypatch.setattr(parts, "train", short)
    asked = ("run", "split-digits:limit=5", "finetune", "ewc", "--seeds", "2", *TINY[2:], "--seeds-as", how)
    said = refused(invoke(*asked, "--out", tmp_path))
    assert said.startswith("continual: ewc on cpu: not enough memory (")
    for setting in helps:
        assert setting in said
    assert names(tmp_path) == ["finetune"] and not hidden(tmp_path)


def test_memory_that_cannot_be_had_in_truth(tmp_path: Path) -> None:
    """A million stored samples in a step, 256 MB of images, where 200 MB are to be had; the first run stays."""
    asked = ("run", "split-digits:limit=5", "finetune", "replay:samples=1000000", *TINY, "--out", tmp_path)
    usual, allowed = psutil.Process().memory_info().vms, resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (usual + 200_000_000, allowed[1]))
    try:
        said = refused(invoke(*asked))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, allowed)
    assert "replay:samples=1000000 on cpu: not enough memory" in said and "--batch" in said
    assert names(tmp_path) == ["finetune"] and not hidden(tmp_path)


def test_a_network_that_is_larger_than_the_memory_is_not_begun(tmp_path: Path) -> None:
    said = refused(invoke(*TWO, "--model", "mlp:layers=1000000-1000000", "--out", tmp_path))
    assert "a network of 1,000,0" in said and "GB are free" in said


# ---- the end of it


def test_nobody_reads_what_is_printed() -> None:
    piped = subprocess.run(
        ["bash", "-c", '"$@" list --json | true; echo "${PIPESTATUS[0]}"', "", *COMMAND],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (piped.stdout, piped.stderr) == ("141\n", "")


def test_a_full_disk_under_what_is_printed() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:
        said = subprocess.run([*COMMAND, "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert said.returncode == 2 and "No space left on device" in said.stderr and "Traceback" not in said.stderr


def test_other_errors_keep_their_traceback() -> None:
    for error in (RuntimeError("a fault"), OSError(errno.ENOENT, "of a plug-in"), ZeroDivisionError()):
        with pytest.raises(type(error)), failures.told():
            raise error


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_is_told_and_the_handlers_are_as_before(
    number: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)  # nohup
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    with pytest.raises(SystemExit) as left, failures.told():
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert left.value.code == status and "runs that were finished are stored" in capsys.readouterr().err
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before
    signal.signal(number, usual)


# ---- processes


def _answer(number: int, folder: Path) -> int:
    """One fails, one is killed, one takes its time."""
    (folder / f"{number}.pid").write_text(str(os.getpid()))
    if number == 1:
        raise Mistake("a mistake in a process")
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        time.sleep(300)
    return number * number


def gone(folder: Path, count: int) -> None:
    """The processes that have written their numbers there have ended."""
    pids = wait_for(lambda: [int(one.read_text() or 0) for one in folder.glob("*.pid")], count)
    end = time.monotonic() + 20
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < end, "a process goes on"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie too
        return ""


def wait_for(found: Callable[[], list[int]], count: int) -> list[int]:
    end = time.monotonic() + 60
    while len([pid for pid in found() if pid]) < count:
        assert time.monotonic() < end, "a process does not begin"
        time.sleep(0.05)
    return found()


def test_work_in_processes(tmp_path: Path) -> None:
    done: dict[int, int] = {}
    workers.each(2, _answer, [(4, tmp_path), (5, tmp_path)], done.__setitem__, "")
    assert done == {0: 16, 1: 25}


def test_processes_are_as_quiet(tmp_path: Path) -> None:
    for quiet in (True, False):
        done: dict[int, bool] = {}
        with progress.quietly(quiet):
            workers.each(1, progress.is_quiet, [()], done.__setitem__, "")
        assert done == {0: quiet}


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that are more than cores wait for each other: four jobs on sixteen cores hardly moved."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    done: dict[int, int] = {}
    for cores, asked, wanted in ((2, None, 1), (1, None, 1), (8, "1", 1)):
        monkeypatch.setattr(workers, "cores", lambda cores=cores: cores)
        if asked:
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
        workers.each(2, torch.get_num_threads, [(), ()], done.__setitem__, "")
        assert done == {0: wanted, 1: wanted}
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


EACH_IS_WAITED_FOR = """
from concurrent.futures import ProcessPoolExecutor
start = ProcessPoolExecutor._adjust_process_count

def wait(pool):
    start(pool)
    for process in list(pool._processes.values()):
        process.join()

ProcessPoolExecutor._adjust_process_count = wait
"""


@pytest.mark.parametrize("first", ["", EACH_IS_WAITED_FOR], ids=["", "the first ends before the second begins"])
def test_a_script_that_starts_processes_as_it_is_read_is_told_so(tmp_path: Path, first: str) -> None:
    (tmp_path / "mine.py").write_text(
        f"{first}\nimport continual as cl\ncl.run('split-digits:limit=5', 'finetune', seeds=2, iterations=2, "
        "seeds_as='processes')\n"
    )
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.endswith("as each of them reads the script again"), done.stderr
    assert "under if __name__ == '__main__':" in last


@pytest.mark.parametrize(("number", "error", "said"), [
    (1, Mistake, "a mistake in a process"),
    (2, OutOfMemory, "one of 2 processes was killed from outside.*; do less"),
])  # fmt: skip
def test_what_goes_wrong_in_a_process_ends_the_others(
    tmp_path: Path, number: int, error: type[Exception], said: str
) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=said):
        workers.each(2, _answer, [(3, tmp_path), (number, tmp_path)], lambda *_: None, "do less")
    assert time.monotonic() < began + 250, "the other one was waited for"
    gone(tmp_path, 1)


def _unlike(number: int) -> int:
    """A square; or what does not come out of a process as it is."""

    class Own(Exception):
        pass

    if number == 1:
        raise Own("of a class that no other process has")
    if number == 2:
        raise SystemExit(5)
    if number in (0, 3):
        os._exit(7 if number else 0)
    return number**2


@pytest.mark.parametrize(("number", "error", "said"), [
    (1, RuntimeError, r"_unlike(.|\n)*Own: of a class that no other process has$"),
    (2, RuntimeError, r"_unlike(.|\n)*SystemExit: 5$"),
    (3, Mistake, r"one of 2 processes was ended by what it did, with status 7"),
    (0, Mistake, r"one of 2 processes was ended by what it did, with status 0"),
])  # fmt: skip
def test_what_does_not_come_out_of_a_process_is_told(number: int, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        workers.each(2, _unlike, [(4,), (number,)], lambda *_: None, "do less")


def _dies(begun: Any, threads: int, quiet: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_as_it_begins_is_no_fault_of_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_begin", _dies)
    with pytest.raises(OutOfMemory, match=r"one of 2 processes was killed from outside.*; do less"):
        workers.each(2, abs, [(1,), (2,)], lambda *_: None, "do less")


LONG = ("run", "split-digits", "finetune", "ewc", "--seeds", "2", "--iterations", "1000000", "--seeds-as", "processes",
        "--model", "mlp:layers=4", "--threads", "1")  # fmt: skip


def end_and_watch(whole: subprocess.Popen[bytes], number: int, everybody: bool, status: int, said: Path) -> None:
    """Ends a run whose two processes are at work: they end too."""
    parent = psutil.Process(whole.pid)

    def at_work() -> list[psutil.Process]:
        return [one for one in parent.children(recursive=True) if "spawn_main" in command_of(one)]

    end = time.monotonic() + 120
    while len(at_work()) < 2 or any(sum(one.cpu_times()[:2]) < 1.0 for one in at_work()):
        assert time.monotonic() < end and whole.poll() is None, said.read_text()
        time.sleep(0.1)
    children = parent.children(recursive=True)
    os.killpg(whole.pid, number) if everybody else whole.send_signal(number)
    assert whole.wait(60) == status
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


@pytest.mark.parametrize(("number", "everybody", "status"), [
    (signal.SIGINT, True, 130),  # a terminal sends it to all processes
    (signal.SIGTERM, False, 143),
    (signal.SIGKILL, False, -9),
])  # fmt: skip
def test_processes_end_with_the_run(tmp_path: Path, number: int, everybody: bool, status: int) -> None:
    said = tmp_path / "said"
    # a job that a shell runs in the background is told to take no notice of Ctrl-C, and tells whom it starts
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with said.open("w") as file:
            whole = subprocess.Popen([*COMMAND, *LONG, "--out", tmp_path / "runs"], stdout=file, stderr=file,
                                     start_new_session=True)  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, usual)
    try:
        end_and_watch(whole, number, everybody, status, said)
    finally:
        whole.kill()
    text = said.read_text()
    assert "Traceback" not in text, text
    if status > 0:
        assert text.count("runs that were finished are stored") == 1
    assert not (tmp_path / "runs").exists() or not hidden(tmp_path / "runs")
