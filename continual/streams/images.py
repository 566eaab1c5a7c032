"""Images in class folders, ``FOLDER/<class>/*.jpg``, decoded in parallel into one array of ``uint8``.

They may lie deeper in a class's folder. Or they lie anywhere in the folder, with a class for each in a file
``<folder>_annotations.txt``: so are Tiny-ImageNet's tests.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from continual.errors import BadData, BadFolder, Notice, counted, listed, one_line
from continual.files import read_bytes, read_text
from continual.progress import waited

if TYPE_CHECKING:
    import numpy.typing as npt

    from continual.streams.data import Room

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ``ImageFolder``."""


@dataclass(frozen=True)
class Images:
    """Decoded images ``x`` (N, 3, H, W) and labels ``y`` (N,); files that were ``skipped``, and why."""

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.int64]
    skipped: dict[str, str]


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, or of the classes of its list, sorted; none where it is not there.

    Raises :class:`~continual.errors.BadFolder` where it cannot be read.
    """
    found = sorted(map(os.path.basename, _entries(str(folder))[0]))
    return sorted(set(_annotated(folder).values())) or found


def class_names(folder: Path) -> list[str]:
    """The names of the class folders, sorted; :class:`~continual.errors.BadData` where there are none."""
    names = class_folders(folder)
    if not names:
        raise BadData(
            f"{_shown(folder)} has no class folders that can be read; it takes {one_line(folder.name)}/<class>/*.jpg"
        )
    for name in names:
        if name != os.fsencode(name).decode(errors="replace"):
            raise BadData(
                f"{_shown(folder)} has a class folder whose name is not UTF-8, {os.fsencode(name)!r}; rename it"
            )
    return names


def listing(folder: Path, classes: Sequence[str]) -> str:
    """A line for each image file of the classes, which tells whether it has changed.

    It has the folder's name, the class, the file's path in the folder, its size and its time.
    """
    return "\n".join(
        json.dumps([folder.name, name, file.removeprefix(str(folder)), _stamp(file)])
        for name, files in _images(folder, classes)[0].items()
        for file in files
    )


def _stamp(file: str) -> str:
    """The size and time of a file; of one that cannot be read, which is told when it is decoded, that."""
    try:
        found = os.stat(file)
    except OSError as error:
        return type(error).__name__
    return f"{found.st_size} {found.st_mtime_ns}"


def decoded(folder: Path, classes: Sequence[str], size: int | None, skip: bool, room: Room) -> Images:
    """The images of the given classes, in the order of classes and then of file names, in an array that ``room`` gives.

    ``size`` resizes the shorter side to it and cuts out the middle, a square; without it all images must be of one
    size. A file that cannot be decoded raises :class:`~continual.errors.BadData`, or with ``skip`` is left out; one
    that cannot be read raises :class:`~continual.errors.BadFolder`.
    """
    found = _found(folder, classes)
    files = [(Path(file), label) for label, name in enumerate(classes) for file in found[name]]
    first = _first([file for file, _ in files], size)
    x = room((len(files), *first))
    bad: dict[int, str] = {}

    def one(number: int) -> None:
        file = files[number][0]
        try:
            image = _image(file, size)
        except _Undecodable as error:
            bad[number] = str(error)
            if not skip:
                raise BadData(f"{_shown(file)} cannot be used: {error}; mend or delete it, or leave such files out "
                              "with skip=true") from None  # fmt: skip
            return
        if image.shape != first:
            raise BadData(f"{_shown(file)} has {image.shape[2]}x{image.shape[1]} pixels and the first image "
                          f"{first[2]}x{first[1]}; give size=N, and all are brought to it")  # fmt: skip
        x[number] = image

    # decoding releases the interpreter's lock; Pillow's warnings (of an EXIF, a palette) are nothing to a user
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            for _ in waited(pool.map(one, range(len(files))), len(files), f"decoding {_shown(folder)}"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    kept = [number for number in range(len(files)) if number not in bad]
    for label in set(range(len(classes))) - {files[number][1] for number in kept}:
        raise BadData(f"{_shown(folder / classes[label])}: none of its images can be decoded")
    for place, number in enumerate(kept):
        if place != number:
            x[place] = x[number]
    y = np.array([files[number][1] for number in kept], np.int64)
    skipped = {_readable(files[number][0].relative_to(folder.parent)): bad[number] for number in sorted(bad)}
    return Images(x[: len(kept)], y, skipped)


def _found(folder: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """The image files of each class, of which each has some; what is left out is told."""
    known = class_names(folder)
    if missing := [name for name in classes if name not in known]:
        raise BadData(f"{_shown(folder)} has no class folder {listed(map(repr, missing), 3)}; put it there, or leave "
                      f"the class out (it has {len(known)}: {listed(map(one_line, known), 10)})")  # fmt: skip
    found, others = _images(folder, classes)
    _tell_unlisted(folder)
    for name in classes:
        if not found[name]:
            ours = [file for file in others if file.startswith(f"{folder / name}{os.sep}")]
            more = f" and only {_otherwise(ours)}" if ours else ""
            raise BadData(f"{_shown(folder / name)} has no images that can be read ({', '.join(ENDINGS)}){more}; put "
                          "some there, delete the folder, or give a list of the classes that are wanted")  # fmt: skip
    if others:
        are = "is" if len(others) == 1 else "are"
        warnings.warn(Notice(f"{_shown(folder)}: {_otherwise(others)} {are} left out; images end in "
                             f"{', '.join(ENDINGS)}"), stacklevel=3)  # fmt: skip
    return found


def _readable(path: Path) -> str:
    """A file's name as it can be written to a record."""
    return os.fsencode(path).decode(errors="replace")


def _shown(path: str | Path) -> str:
    """A path in a message."""
    return one_line(str(path))


def _otherwise(files: Sequence[str]) -> str:
    """So many files whose names end otherwise than those of images, and how."""
    endings = Counter(os.path.splitext(file)[1].lower() for file in files)
    how = listed((one_line(ending) or "no ending" for ending, _ in endings.most_common()), 3)
    return f"{counted(len(files), 'file with another ending', 'files with other endings')} ({how})"


def _images(folder: Path, classes: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The image files of some classes, by name; and the other files among them."""
    found: dict[str, list[str]] = {name: [] for name in classes}
    others: list[str] = []
    of, known = _annotated(folder), set(class_folders(folder))
    if of:
        own = str(_list(folder))
        inside = [(of.get(os.path.basename(file), ""), file) for file in _within(folder) if file != own]
    else:
        inside = [(name, file) for name in classes if name in known for file in _within(folder / name)]
    for name, file in inside:
        if not file.lower().endswith(ENDINGS):
            others.append(file)
        elif name in found:
            found[name].append(file)
    return found, others


def _within(folder: Path) -> list[str]:
    """The files in a folder and in those in it, sorted; hidden ones, and links to a folder above, are left out."""
    above = {one for path in (folder.absolute(), folder.resolve()) for one in path.parents}
    return sorted(_below(str(folder), set().union(*map(_identity, above))))


def _below(folder: str, above: set[tuple[int, int]]) -> list[str]:
    """The files in a folder and in those in it, but for folders that are ``above``."""
    own = _identity(folder)
    if own & above:
        return []
    inner, found = _entries(folder)
    return found + [file for one in inner for file in _below(one, above | own)]


def _identity(folder: str | Path) -> set[tuple[int, int]]:
    """What tells a folder from others, however it is reached; nothing where that cannot be found out."""
    with contextlib.suppress(OSError):  # one that cannot be read is told when that is tried
        found = os.stat(folder)
        return {(found.st_dev, found.st_ino)} if found.st_ino else set()  # some file systems number nothing
    return set()


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """The folders and the files in a folder, but for hidden ones; none where it is not there."""
    folders: list[str] = []
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), _read(folder), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if _is_folder(entry) else found).append(entry.path)
    return folders, found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; a link to nothing is none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), _read(entry.path):
        return entry.is_dir()
    return False


@contextlib.contextmanager
def _read(path: str | Path) -> Iterator[None]:
    """Within it a path that is there and cannot be read is told as :class:`~continual.errors.BadFolder`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise BadFolder(f"{_shown(path)} cannot be read ({error.strerror or type(error).__name__}); mend that, or take "
                        "it out of the data set") from None  # fmt: skip


def _list(folder: Path) -> Path:
    """The file in a folder that may list files and their classes."""
    return folder / f"{folder.name}_annotations.txt"


def _annotated(folder: Path) -> dict[str, str]:
    """The class of each file, where a list in the folder says so: lines that begin with a file and its class."""
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError), _read(_list(folder)):
        lines = read_text(_list(folder)).splitlines()
    of: dict[str, str] = {}
    for file, label, *_ in (line.split("\t") for line in lines if "\t" in line):
        name = label.strip()
        if name and of.setdefault(file, name) != name:
            raise BadData(f"{_shown(_list(folder))} has {one_line(file)} in two classes, {one_line(of[file])} and "
                          f"{one_line(name)}; name it once")  # fmt: skip
    return {file: name for file, name in of.items() if name}


def _tell_unlisted(folder: Path) -> None:
    """Say how a list of files and what is there differ, where there is such a list."""
    of = _annotated(folder)
    there = {os.path.basename(file) for file in _within(folder) if file.lower().endswith(ENDINGS)} if of else set()
    if of and there != of.keys():
        lacks, more = len(of.keys() - there), len(there - of.keys())
        warnings.warn(Notice(f"{_shown(folder)}: of {counted(len(of), 'file')} in its list {lacks} are not there, and "
                             f"{counted(more, 'image')} there {'is' if more == 1 else 'are'} not in the list; they are "
                             "left out"), stacklevel=3)  # fmt: skip


def _first(files: Sequence[Path], size: int | None) -> tuple[int, int, int]:
    """The shape (3, H, W) of all images: the given size, or that of the first that can be decoded."""
    if size is not None:
        return 3, size, size
    for file in files:
        with contextlib.suppress(_Undecodable):  # the same file is named when all are decoded
            shape: tuple[int, int, int] = _image(file, None).shape
            return shape
    raise BadData(f"none of the {len(files)} images beside {_shown(files[0])} can be decoded")


class _Undecodable(Exception):
    """Why what a file holds is no image that can be used."""


def _image(file: Path, size: int | None) -> npt.NDArray[np.uint8]:
    """The image in a file, as (3, H, W).

    Raises:
        _Undecodable: of what it holds, or where it is a link to nothing.
        BadFolder: where the file cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with _read(file):
            content = read_bytes(file)
    except (FileNotFoundError, NotADirectoryError):
        raise _Undecodable("it is a link to nothing") from None
    try:
        return _decode(content, size)
    except MemoryError:
        raise MemoryError(f"decoding {_shown(file)}") from None
    except UnidentifiedImageError:
        raise _Undecodable("it is no image that can be read") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise _Undecodable(f"it has more pixels than the {most:,} that an image may have") from None
    except Exception as error:  # a decoder may raise anything for a damaged file
        raise _Undecodable(one_line(str(error)) or type(error).__name__) from None


def _decode(content: bytes, size: int | None) -> npt.NDArray[np.uint8]:
    """An image as (3, H, W)."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.mode[0] in "IF" or _is_deep(image.tile):  # Pillow would cut off the lower 8 bits of a colour
            raise ValueError(f"it is of mode {image.mode}, with more than 8 bits for a channel; save it with 8")
        rgb = image.convert("RGB")
    if size is not None and rgb.size != (size, size):
        width, height = rgb.size
        scale = size / min(width, height)
        rgb = rgb.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BILINEAR)
        left, top = (rgb.width - size) // 2, (rgb.height - size) // 2
        rgb = rgb.crop((left, top, left + size, top + size))
    return np.asarray(rgb).transpose(2, 0, 1)


def _is_deep(tiles: Sequence[Any]) -> bool:
    """Whether Pillow decodes colours of more than 8 bits: it says so by name, or for PPM by the largest value."""
    return ";16" in str(tiles) or any(
        decoder.startswith("ppm") and isinstance(args, tuple) and args[-1] > 255 for decoder, _, _, args in tiles
    )
