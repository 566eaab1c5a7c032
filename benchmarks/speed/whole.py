"""Whole processes: how long one takes, and the most memory that it had."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from turns import CannotRun, Work
from turns import seconds as timed

PROGRAM = (sys.executable, "-c", "from continual.cli import main; main()")
HAND = (sys.executable, str(Path(__file__).parent / "hand.py"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Modules are compiled once, as they are where a package is installed."""
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)
"""
"""A process's peak counts what its parent had when it began, so that a small one has to begin it."""


def seconds(command: Sequence[str], codes: tuple[int, ...] = (0,)) -> Work:
    """Seconds of the command, done in an empty folder; ``codes``: exit statuses that are well."""
    return lambda: timed(lambda: _run(command, codes))


def megabytes(command: Sequence[str]) -> Work:
    """The most memory that the command had, in MB."""
    return lambda: int(_run([sys.executable, "-S", "-c", MEASURE, *command], (0,))) / 1e6


def _run(command: Sequence[str], codes: tuple[int, ...]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotRun(f"exit status {done.returncode}: {said[-1] if said else 'it said nothing'}")
    return done.stdout
