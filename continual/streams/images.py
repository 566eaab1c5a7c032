"""Images in class folders, ``FOLDER/<class>/*.jpg``, decoded in parallel into one array of ``uint8``.

They may lie deeper in a class's folder. Or they lie anywhere in the folder, with a class for each in a file
``<folder>_annotations.txt``: so are Tiny-ImageNet's tests.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from continual.errors import BadData, Notice, counted, listed
from continual.files import read_text

if TYPE_CHECKING:
    import numpy.typing as npt

    from continual.streams.data import Room

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ``ImageFolder``."""


@dataclass(frozen=True)
class Images:
    """Decoded images ``x`` (N, 3, H, W) and labels ``y`` (N,); the names of files that were ``skipped``."""

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.int64]
    skipped: tuple[str, ...]


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, or of the classes of its list, sorted; none where it cannot be read."""
    if listed := _annotated(folder):
        return sorted(set(listed.values()))
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    return []


def class_names(folder: Path) -> list[str]:
    """The names of the class folders, sorted; :class:`~continual.errors.BadData` where there are none."""
    names = class_folders(folder)
    if not names:
        raise BadData(f"{folder} has no class folders that can be read; it takes {folder.name}/<class>/*.jpg")
    for name in names:
        if name != os.fsencode(name).decode(errors="replace"):
            raise BadData(f"{folder} has a class folder whose name is not UTF-8, {os.fsencode(name)!r}; rename it")
    return names


def listing(folder: Path, classes: Sequence[str]) -> str:
    """The name, size and time of each image file of the classes: what tells whether they have changed."""
    paths = _paths(folder, classes)
    files = [Path(path) for name in classes for path in paths[name]]
    return "\n".join(f"{file.relative_to(folder)} {_stamp(file)}" for file in files)


def _stamp(file: Path) -> str:
    """The size and time of a file; of one that cannot be read, which is told when it is decoded, that."""
    try:
        found = file.stat()
    except OSError as error:
        return type(error).__name__
    return f"{found.st_size} {found.st_mtime_ns}"


def decoded(folder: Path, classes: Sequence[str], size: int | None, skip: bool, progress: bool, room: Room) -> Images:
    """The images of the given classes, in the order of classes and then of file names, in an array that ``room`` gives.

    ``size`` resizes the shorter side to it and cuts out the middle, a square; without it all images must be of one
    size. A file that cannot be decoded raises :class:`~continual.errors.BadData`, or with ``skip`` is left out.
    """
    from tqdm import tqdm

    known = class_names(folder)
    if missing := [name for name in classes if name not in known]:
        raise BadData(f"{folder} has no class folder {listed(map(repr, missing), 3)}; put it there, or leave the class "
                      f"out (it has {len(known)}: {listed(known, 10)})")  # fmt: skip
    paths = _paths(folder, classes)
    _tell_unlisted(folder)
    for name in classes:
        if not paths[name]:
            raise BadData(f"{folder / name} has no images that can be read ({', '.join(ENDINGS)}); put some there, "
                          "delete the folder, or give a list of the classes that are wanted")  # fmt: skip
    files = [(Path(path), label) for label, name in enumerate(classes) for path in paths[name]]
    first = _first(files, size)
    x = room((len(files), *first))
    bad: dict[int, str] = {}

    def one(number: int) -> None:
        try:
            image = _decode(files[number][0], size)
        except Exception as error:  # a decoder may raise anything for a damaged file, which is then named
            bad[number] = _readable(f"{files[number][0]} cannot be used: {error}")
            if not skip:
                raise BadData(f"{bad[number]}; mend or delete it, or leave such files out with skip=true") from None
            return
        if image.shape != first:
            raise BadData(f"{files[number][0]} has {image.shape[2]}x{image.shape[1]} pixels and the first image "
                          f"{first[2]}x{first[1]}; give size=N, and all are brought to it")  # fmt: skip
        x[number] = image

    # decoding releases the interpreter's lock; Pillow's warnings (of an EXIF, a palette) are nothing to a user
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        done = pool.map(one, range(len(files)))
        try:
            for _ in tqdm(done, total=len(files), desc=f"decoding {folder}", leave=False,
                          disable=None if progress else True, delay=1):  # fmt: skip
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    kept = [number for number in range(len(files)) if number not in bad]
    for label in set(range(len(classes))) - {files[number][1] for number in kept}:
        raise BadData(f"{folder / classes[label]}: none of its images can be decoded")
    for place, number in enumerate(kept):
        if place != number:
            x[place] = x[number]
    if bad:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        warnings.warn(Notice(f"{bad[min(bad)]}; left out{more}, as skip=true says"), stacklevel=2)
    y = np.array([files[number][1] for number in kept], np.int64)
    left_out = (files[number][0].relative_to(folder.parent) for number in sorted(bad))
    return Images(x[: len(kept)], y, tuple(map(_readable, left_out)))


def _readable(text: str | Path) -> str:
    """A file's name, or what has one in it, as it can be shown and written to a record."""
    return os.fsencode(text).decode(errors="replace")


def _paths(folder: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """The image files of some classes, by name."""
    listed = _annotated(folder)
    if not listed:
        return {name: _within(str(folder / name)) for name in classes}
    found: dict[str, list[str]] = {name: [] for name in classes}
    for path in _within(str(folder)):
        found.get(listed.get(Path(path).name, ""), []).append(path)
    return found


def _within(folder: str, above: tuple[tuple[int, int], ...] = ()) -> list[str]:
    """The image files in a folder and in those in it; hidden ones, and links to a folder ``above``, are left out."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        own = os.stat(folder)
        if (own.st_dev, own.st_ino) in above:
            return []
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += _within(entry.path, (*above, (own.st_dev, own.st_ino)))
            elif entry.name.lower().endswith(ENDINGS):
                found.append(entry.path)
    return sorted(found)


def _annotated(folder: Path) -> dict[str, str]:
    """The class of each file, where a list in the folder says so: lines that begin with a file and its class."""
    try:
        lines = read_text(folder / f"{folder.name}_annotations.txt").splitlines()
    except (OSError, ValueError):
        return {}
    return {file: label for file, label, *_ in (line.split("\t") for line in lines if "\t" in line) if label}


def _tell_unlisted(folder: Path) -> None:
    """Say how a list of files and what is there differ, where there is such a list."""
    of = _annotated(folder)
    there = {Path(path).name for path in _within(str(folder))} if of else set()
    if of and there != of.keys():
        lacks, more = len(of.keys() - there), len(there - of.keys())
        warnings.warn(Notice(f"{folder}: of {counted(len(of), 'file')} in its list {lacks} are not there, and "
                             f"{counted(more, 'image')} there {'is' if more == 1 else 'are'} not in the list; they are "
                             "left out"), stacklevel=3)  # fmt: skip


def _first(files: list[tuple[Path, int]], size: int | None) -> tuple[int, int, int]:
    """The shape (3, H, W) of all images: the given size, or that of the first that can be decoded."""
    if size is not None:
        return 3, size, size
    for file, _ in files:
        with contextlib.suppress(Exception):  # the same file is named when all are decoded
            shape: tuple[int, int, int] = _decode(file, None).shape
            return shape
    raise BadData(f"none of the {len(files)} images beside {files[0][0]} can be decoded")


def _decode(file: Path, size: int | None) -> npt.NDArray[np.uint8]:
    """An image as (3, H, W)."""
    from PIL import Image

    with Image.open(file) as image:
        if image.mode[0] in "IF" or ";16" in str(image.tile):  # Pillow would cut off the lower 8 bits of a colour
            raise ValueError(f"it is of mode {image.mode}, with more than 8 bits for a channel; save it with 8")
        rgb = image.convert("RGB")
    if size is not None and rgb.size != (size, size):
        width, height = rgb.size
        scale = size / min(width, height)
        rgb = rgb.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BILINEAR)
        left, top = (rgb.width - size) // 2, (rgb.height - size) // 2
        rgb = rgb.crop((left, top, left + size, top + size))
    return np.asarray(rgb).transpose(2, 0, 1)
