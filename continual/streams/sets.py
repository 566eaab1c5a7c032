"""Published data sets: read once, then packed and checksummed on disk.

``load("mnist")`` reads the published files the first time, checks them, and packs them into one file of the data root;
later calls read that file only and check it every time. A damaged file is an error that names it: it is never trained
on, never silently replaced, and never a reason to go to the network. Some classes of a set, a set at another
resolution, and several sets joined into one are packed in files of their own. Class folders that have changed since
they were packed are packed anew, and so is what another version packed.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.client
import io
import json
import math
import os
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from continual import files
from continual.errors import BadData, BadFolder, Notice, UnknownName, choices, counted, listed, nearest, one_line
from continual.progress import is_quiet
from continual.streams import images, packed
from continual.streams.data import PARTS, Data, in_memory, joined, left_out

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = "continual packed data 5"
CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # the folders that torchvision unpacks into
TESTS = ("val", "test")  # what the folder of test images may be called
AGAIN = "put a good one there or let it be downloaded"
REPACKED = "the next use packs it anew"


def data_root(given: str | Path | None) -> Path:
    """The folder for data sets: ``given``, else ``$CONTINUAL_DATA``, else the user's cache folder; ``~`` is expanded.

    Raises :class:`~continual.errors.BadFolder` where ``~`` stands for a home folder that does not exist.
    """
    chosen = given or os.environ.get("CONTINUAL_DATA")
    if not chosen:
        import platformdirs

        chosen = platformdirs.user_cache_dir("continual", appauthor=False)
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise BadFolder(f"data root '{chosen}': {error}; give another with --data or $CONTINUAL_DATA") from None


@dataclass(frozen=True)
class Wanted:
    """What of a data set is wanted: its resolution, its classes in their order, and whether bad files are left out."""

    size: int | None = None
    classes: tuple[str, ...] | None = None
    skip: bool = False

    def file(self, name: str) -> str:
        """The packed file, in the folder of packed files."""
        parts = [str(self.size or "original")]
        if self.classes is not None:
            parts.append(hashlib.sha256("\n".join(self.classes).encode()).hexdigest()[:8])
        return f"{name}/{'-'.join(parts + (['skip'] if self.skip else []))}.safetensors"


Source = tuple[str, tuple[str, ...]]
"""What a set in class folders is made of: the SHA-256 of a list of its image files, and its classes."""


def load(
    name: str,
    root: str | Path | None = None,
    download: bool = True,
    wanted: Wanted | None = None,
    made_of: Source | None = None,
) -> Data:
    """A data set: read from its published files the first time, from the packed file ever after.

    The tensors are memory-mapped from ``<root>/packed/<name>/*.safetensors`` and their checksum is verified at every
    call. torchvision and scikit-learn are imported only where there is no packed file yet. Where the root cannot be
    written the data is read anew each time, which a :class:`~continual.errors.Notice` says.

    Args:
        name: one of :data:`SETS`, or a folder of the root with ``train/<class>/*.jpg`` and ``val/`` or ``test/``.
        root: the data root, see :func:`data_root`; torchvision's files are ``<root>/MNIST/raw/*`` and so on.
        download: whether published files that are missing may be downloaded.
        wanted: resolution and classes, where not all of it is wanted as it is.
        made_of: what :func:`files_of` gives, where that is known.

    Raises:
        UnknownName: no such data set.
        BadData: files that are missing and cannot be downloaded, or that are damaged (named in the message).
        BadFolder: a folder or file that cannot be made, read or written.
    """
    root, wanted = data_root(root), wanted or Wanted()
    if root.exists() and not root.is_dir():
        raise BadFolder(f"data root {root} is no folder; give another with --data or $CONTINUAL_DATA")
    file, changed = root / "packed" / wanted.file(name), ""
    if name not in SETS and _parts(root / name) is None and not os.path.exists(file):
        if images.class_folders(root / name / "train"):
            raise BadData(f"{root / name} has images to train on and none to test with: put them into "
                          f"{root / name}/val/<class>/ or {root / name}/test/<class>/")  # fmt: skip
        there = [one_line(folder) for folder in _sets(root)]
        raise UnknownName(f"no data set is named '{name}'{nearest(name, [*SETS, *there])} (known: "
                          f"{choices([*SETS, *there])}), and there are no class folders {root / name}/train/<class>/ "
                          "with val/<class>/ or test/<class>/")  # fmt: skip
    listed_as, classes = made_of or files_of(name, root, wanted)
    if os.path.exists(file):
        try:
            data, packed_of = _unpack(name, file)
        except packed.Outdated:
            changed = "it was packed by another version; it is"
        else:
            same = packed_of == listed_as and (not listed_as or data.classes == classes)
            if same or not (listed_as or _published(name, root)):  # what it was made of may be gone
                _tell_left_out(name, dict.fromkeys(data.skipped, ""))
                return data
            changed = _told(name, root, listed_as, packed_of)
    if changed:
        warnings.warn(Notice(f"{name}: {changed} read anew"), stacklevel=2)
    data = SETS.get(name, _folders)(name, root, wanted, download)
    if wanted.classes is not None:
        data = data.only(wanted.classes)
    if wanted.size is not None:
        data = data.resized(wanted.size)
    return _packed(data, file, listed_as)


def _tell_left_out(name: str, skipped: dict[str, str]) -> None:
    """Say how many files are left out, with ``skip=true``; and why the first, where that is known."""
    if skipped:
        file, why = next(iter(skipped.items()))
        example = one_line(file) + (f": {why}" if why else "") + ("; ..." if len(skipped) > 1 else "")
        files = counted(len(skipped), "file was", "files were")
        warnings.warn(Notice(f"{name}: {files} left out, which cannot be used ({example}); a run's record has the "
                             "names"), stacklevel=3)  # fmt: skip


def _told(name: str, root: Path, files: str, packed_of: str) -> str:
    """Why what was packed of some files (``packed_of``) is read anew from others."""
    if not files:
        return f"it was packed from class folders, and {root / CIFAR[name]} is there now; that is"
    folders = f"the class folders in {root / name}"
    if not packed_of:
        return f"it was packed from other files, and {folders} are there now; they are"
    return f"{folders} have changed since they were packed; they are"


def load_joined(parts: Sequence[Data], size: int, root: str | Path | None = None) -> Data:
    """Several data sets as one, see :func:`~continual.streams.data.joined`; packed, as :func:`load` does it."""
    pairs = zip(parts, left_out(parts), strict=True)
    said = [(part.name, part.sha256, part.top, part.classes, files) for part, files in pairs]
    key = hashlib.sha256(json.dumps([size, *said]).encode()).hexdigest()[:16]
    name = "+".join(part.name for part in parts)
    root = data_root(root)
    file = root / "packed" / "joined" / f"{key}.safetensors"
    if os.path.exists(file):
        with contextlib.suppress(packed.Outdated):
            return _unpack(name, file)[0]
    return _packed(joined(parts, size, functools.partial(_room, root)), file, "")


def _packed(data: Data, file: Path, source: str) -> Data:
    """The data, packed; as it is where that is not possible."""
    try:
        _pack(data, file, source)
    except BadFolder as error:
        if isinstance(error.__cause__, (FileExistsError, NotADirectoryError)):
            raise  # it is no folder
        warnings.warn(Notice(f"{error}; until then {data.name} is read anew at every start"), stacklevel=3)
        return data
    return _unpack(data.name, file)[0]


def files_of(name: str, root: Path, wanted: Wanted) -> Source:
    """The SHA-256 over the image files that a set is made of, and its classes; see :func:`images.listing`.

    A class folder without an image is not among the files. Nothing for sets that are not read from class folders.
    """
    found = _parts(root / name) if name in CIFAR or name not in PUBLISHED else None
    if found is None or not _from_folders(name, root):
        return "", ()
    classes = wanted.classes or tuple(images.class_names(found[0]))
    lines = "\n".join(images.listing(folder, classes) for folder in found)
    return hashlib.sha256(lines.encode()).hexdigest(), classes


# The packed file


def _pack(data: Data, file: Path, source: str) -> None:
    """Write the packed file, images with their channels last; see :func:`~continual.streams.packed.write`."""
    facts = {"format": FORMAT, "name": data.name, "classes": json.dumps(data.classes), "top": repr(data.top)}
    facts |= {"skipped": json.dumps(data.skipped), "joined": json.dumps(data.joined), "source": source}
    facts |= {"data": data.sha256}
    tensors = {part: getattr(data, part) for part in PARTS}
    packed.write(file, {part: x.movedim(1, -1) if x.ndim == 4 else x for part, x in tensors.items()}, facts)


def _unpack(name: str, file: Path) -> tuple[Data, str]:
    """The data of a packed file, memory-mapped, its checksum verified; and what it was made of."""
    tensors, facts = packed.read(file, {"format": FORMAT, "name": name}, PARTS, REPACKED)
    try:
        classes, skipped, counts = (tuple(json.loads(facts[fact])) for fact in ("classes", "skipped", "joined"))
        tensors = {part: x.movedim(-1, 1) if x.ndim == 4 else x for part, x in tensors.items()}
        data = Data(name=name, **tensors, classes=classes, top=float(facts["top"]), skipped=skipped, joined=counts,
                    packed=True)  # fmt: skip
        # the cached property, which was known when it was packed: in the file images lie otherwise
        source, vars(data)["sha256"] = facts["source"], facts["data"]
        data.check()
    except (BadData, ValueError, TypeError, KeyError, RecursionError) as error:  # its checksum is right, it is not
        raise packed.damaged(file, f"is not what this version packs ({error})", REPACKED) from None
    return data, source


# The registered sets


def _digits(name: str, root: Path, wanted: Wanted, download: bool) -> Data:
    """scikit-learn's bundled digits: 1797 grey images of 8 x 8 pixels, 0..16, with no split of their own.

    The test set is every fifth sample of each class (the 5th, the 10th, ...) in file order: 355 samples, against 1442
    to train on.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target
    test = np.zeros(len(y), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    return Data.from_arrays(x[~test], y[~test], x[test], y[test], name, [str(label) for label in range(10)], top=16.0)


def _parts(folder: Path) -> tuple[Path, Path] | None:
    """The folders of training and test images, where they are there and hold class folders."""
    found = [folder / part for part in ("train", *TESTS) if images.class_folders(folder / part)]
    return (found[0], found[1]) if len(found) > 1 and found[0].name == "train" else None


def _sets(root: Path) -> list[str]:
    """The folders of a root that are data sets of class folders; without those that cannot be read."""
    found: list[str] = []
    with contextlib.suppress(BadFolder):
        for name in images.class_folders(root):
            with contextlib.suppress(BadFolder):
                found += [name] if name not in SETS and _parts(root / name) else []
    return found


def _folders(name: str, root: Path, wanted: Wanted, download: bool) -> Data:
    """Images in class folders, ``train/<class>/`` and ``val/<class>/`` or ``test/<class>/``; nothing is downloaded."""
    parts = _parts(root / name)
    if parts is None:
        raise BadData(f"{name} is not there: put its images into {root / name}/train/<class>/ and "
                      f"{root / name}/val/<class>/, as *.jpg or *.png")  # fmt: skip
    train, test = parts
    known = images.class_names(train)
    if more := sorted(set(images.class_names(test)) - set(known)):
        shown, other = one_line(str(test)), one_line(str(train))
        warnings.warn(Notice(f"{shown}: left out, as {other} has no such class: {listed(map(one_line, more), 5)}"),
                      stacklevel=3)  # fmt: skip
    classes = wanted.classes or tuple(known)
    one, two = (
        images.decoded(part, classes, wanted.size, wanted.skip, functools.partial(_room, root)) for part in parts
    )
    data = Data.from_arrays(one.x, one.y, two.x, two.y, name, classes)
    skipped = one.skipped | two.skipped
    _tell_left_out(name, skipped)
    return replace(data, skipped=tuple(skipped))


def _room(folder: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An array for images, on a disk if there is one to write to: they may be more than fits into memory."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, math.prod(shape)))  # a disk that is full is told of here
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError:  # that it cannot be written is told of when it is packed
        return in_memory(shape)


def _cifar(name: str, root: Path, wanted: Wanted, download: bool, *, source: str) -> Data:
    """CIFAR-10 or CIFAR-100 as torchvision unpacks them, or as class folders where those are there instead."""
    import torchvision.datasets

    if _from_folders(name, root):
        return _folders(name, root, wanted, download)
    published = getattr(torchvision.datasets, source)
    folder = root / published.base_folder
    if not folder.is_dir():
        _fetch_cifar(name, published, root, download)
    listed = [*published.train_list, *published.test_list, [published.meta["filename"], published.meta["md5"]]]
    for file, md5 in listed:
        content = _bytes(folder / file)
        found = "" if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            fault = "is missing" if content is None else f"is damaged (MD5 {found}; expected {md5})"
            raise BadData(f"{folder / file} {fault}; delete the folder {folder} to begin anew")
    one, two = (published(str(root), train=train, download=False) for train in (True, False))
    x, x_test = (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)) for part in (one, two))
    return Data.from_arrays(x, one.targets, x_test, two.targets, name, list(one.classes))


def _from_folders(name: str, root: Path) -> bool:
    """Whether a set is read from class folders: where they are there, and the published files are not."""
    return not _published(name, root) and _parts(root / name) is not None


def _published(name: str, root: Path) -> bool:
    """Whether there is the folder of CIFAR's published files."""
    return name in CIFAR and (root / CIFAR[name]).is_dir()


def _fetch_cifar(name: str, published: Any, root: Path, download: bool) -> None:
    """Download and unpack through torchvision into a folder of its own, which is then put in its place."""
    instead = (f"Unpack {published.filename} (from {published.url}) into {root}, or put images into "
               f"{root / name}/train/<class>/ and {root / name}/test/<class>/")  # fmt: skip
    with _downloading(name, root, download, instead) as temporary:
        published(str(temporary), download=True)
        os.replace(temporary / published.base_folder, root / published.base_folder)


def _idx(name: str, root: Path, wanted: Wanted, download: bool, *, source: str) -> Data:
    """One of torchvision's data sets in MNIST's format; ``source`` is the name of its class."""
    import torchvision.datasets

    published = getattr(torchvision.datasets, source)
    folder = root / source / "raw"
    arrays = {gz: _raw(folder / gz, md5) for gz, md5 in published.resources}
    missing = {gz: md5 for gz, md5 in published.resources if arrays[gz] is None}
    if missing:
        _fetch(name, published, folder, missing, download)
        arrays |= {gz: _raw(folder / gz, md5) for gz, md5 in missing.items()}
    x, y, x_test, y_test = arrays.values()  # torchvision lists them in this order
    classes = [text.split(" - ")[0] for text in published.classes]  # MNIST's are "0 - zero" and so on
    try:
        return Data.from_arrays(x, y, x_test, y_test, name, classes)
    except BadData as error:
        raise BadData(f"the files of {folder} do not fit together: {error}; delete them to begin anew") from None


def _raw(file: Path, md5: str) -> npt.NDArray[np.uint8] | None:
    """The array of one published file, extracted or as ``.gz`` (``file``); none where neither is there.

    A ``.gz`` is checked against its published MD5. An extracted file is checked against the ``.gz`` where a good one
    lies beside it; alone, it can only be checked for its size.
    """
    zipped, content = _bytes(file), _bytes(file.with_suffix(""))
    found = "" if zipped is None else hashlib.md5(zipped, usedforsecurity=False).hexdigest()
    if content is not None:
        if zipped and found == md5 and zlib.crc32(content) != int.from_bytes(zipped[-8:-4], "little"):  # gzip's trailer
            fault = f"is damaged (it is not what {file.name} beside it holds)"
            raise packed.damaged(file.with_suffix(""), fault, "the other is read")
        return _parsed(file.with_suffix(""), content)
    if zipped is None:
        return None
    if found != md5:
        raise packed.damaged(file, f"is damaged ({len(zipped)} bytes with MD5 {found}; expected MD5 {md5})", AGAIN)
    return _parsed(file, gzip.decompress(zipped))


def _bytes(file: Path) -> bytes | None:
    """What a file holds; none where it is not there."""
    try:
        return files.read_bytes(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise packed.unusable(file, "read", error) from None


def _parsed(file: Path, content: bytes) -> npt.NDArray[np.uint8]:
    """The array in an idx file: 0, 0, 8 (``uint8``), the number of dimensions, each as 4 bytes, then the values."""
    rank = 3 if "idx3" in file.name else 1
    start = 4 + 4 * rank
    if len(content) < start or content[:4] != bytes((0, 0, 8, rank)):
        raise packed.damaged(file, f"is no idx file of {rank} dimension(s)", AGAIN)
    shape = np.frombuffer(content, ">u4", rank, offset=4).tolist()
    expected = start + math.prod(shape)
    if len(content) != expected:
        fault = f"has the wrong size ({len(content)} bytes, where its header says {expected})"
        raise packed.damaged(file, fault, AGAIN)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _fetch(name: str, published: Any, folder: Path, missing: dict[str, str], download: bool) -> None:
    """Download through torchvision into a folder of its own, so that ``folder`` only ever gets whole, checked files."""
    instead = f"Put {', '.join(missing)} (from {published.mirrors[0]}) into {folder}"
    whole = {"resources": list(missing.items()), "_load_data": lambda self: (None, None)}
    partial = type(published.__name__, (published,), whole)  # the class, for the missing files only
    with _downloading(name, folder.parent.parent, download, instead) as temporary:
        partial(str(temporary), download=True)
        folder.mkdir(parents=True, exist_ok=True)
        for file in (temporary / published.__name__ / "raw").iterdir():
            os.replace(file, folder / file.name)


@contextlib.contextmanager
def _downloading(name: str, root: Path, download: bool, instead: str) -> Iterator[Path]:
    """A folder in the root for what is downloaded within; where that is not to be, or fails, what to do ``instead``."""

    def refused(reason: str) -> BadData:
        return BadData(f"{name} is not there and was not downloaded ({reason}).\n{instead}")

    if not download:
        raise refused("downloading is off")
    bars = io.StringIO() if is_quiet() else sys.stderr
    try:
        with packed.folder(root), tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            try:
                with contextlib.redirect_stdout(bars), contextlib.redirect_stderr(bars):
                    yield Path(temporary)
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                raise refused(" ".join(str(error).split())) from None
    except OSError as error:
        raise packed.unusable(root, "written", error) from None


SETS: dict[str, Callable[[str, Path, Wanted, bool], Data]] = {
    "digits": _digits,
    "mnist": functools.partial(_idx, source="MNIST"),
    "fashion-mnist": functools.partial(_idx, source="FashionMNIST"),
    "kmnist": functools.partial(_idx, source="KMNIST"),
    "cifar10": functools.partial(_cifar, source="CIFAR10"),
    "cifar100": functools.partial(_cifar, source="CIFAR100"),
    "imagenet": _folders,
}
"""Each registered set's reader, called as ``reader(name, root, wanted, download)`` if nothing is packed."""
PUBLISHED = tuple(name for name, reader in SETS.items() if reader is not _folders)
"""Those that are not just class folders of their name."""
