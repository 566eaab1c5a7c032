"""Hidden files and folders that writers make beside what they write; a writer that was killed leaves its own behind."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

AGE = 24 * 3600.0
"""Seconds after which nobody can be at work on one any more, on whatever machine: writing takes seconds."""


def clear(folder: Path, *patterns: str) -> None:
    """Delete the old ones of these names in a folder; what cannot be deleted stays, as it does no harm."""
    for path in old(folder, *patterns):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def old(folder: Path, *patterns: str) -> list[Path]:
    """The old ones of these names in a folder."""
    found = []
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):  # its writer has just taken it away
            if time.time() - path.stat().st_mtime > AGE:
                found.append(path)
    return found
