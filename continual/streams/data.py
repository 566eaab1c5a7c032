"""A data set as verified tensors: read once from where it is published, then packed and checksummed on disk.

``load("mnist")`` reads the published files the first time, checks them, and packs them into one file of the data root;
later calls read that file only and check it every time. A damaged file is an error that names it: it is never trained
on, never silently replaced, and never a reason to go to the network.
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
import operator
import os
import sys
import tempfile
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from continual.errors import BadData, BadFolder, Notice, unknown

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch.utils.data import Dataset

FORMAT = "continual packed data 1"
PARTS = ("x", "y", "x_test", "y_test")
PATIENCE = 3.0  # seconds before a progress bar appears
AGAIN = "put a good one there or let it be downloaded"
REPACKED = "the next use packs it anew"


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A training set and a test set, on the CPU.

    Make one with :meth:`from_arrays`, :meth:`from_datasets` or :func:`load`, which check what they are given.
    """

    name: str
    x: Tensor
    """Training images, (N, C, H, W) ``uint8``; or a user's own samples, (N, ...) ``float32``."""
    y: Tensor
    """Training labels, (N,) ``int64`` in 0..len(classes)-1."""
    x_test: Tensor
    """Test images, in the type and sample shape of ``x``."""
    y_test: Tensor
    """Test labels, (M,) ``int64``; every one occurs in training too."""
    classes: tuple[str, ...]
    """The name of each label."""
    top: float = 255.0
    """The pixel value that stands for 1.0: 255 for most images, 16 for the digits, 1 for ``float32`` data."""

    def __repr__(self) -> str:
        kind, shape = str(self.x.dtype).removeprefix("torch."), tuple(self.x.shape[1:])
        rows = f"{len(self.y)} + {len(self.y_test)} test samples"
        return f"Data({self.name!r}: {rows} {shape} {kind}, {len(self.classes)} classes)"

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 over all samples and labels, in hexadecimal."""
        return _digest({}, {part: getattr(self, part) for part in PARTS})

    def pad(self, pixels: int) -> Data:
        """The same images with ``pixels`` zeros added on each side, (N, C, H + 2 pixels, W + 2 pixels).

        Raises :class:`~continual.errors.BadData` for a negative number, or for samples that are not images.
        """
        if pixels < 0:
            raise BadData(f"{self.name}: pad was given {pixels}; it takes 0 or more pixels")
        if self.x.ndim != 4:
            raise BadData(f"{self.name}: samples {tuple(self.x.shape[1:])} cannot be padded; only (C, H, W) images can")
        grown = functools.partial(torch.nn.functional.pad, pad=(pixels,) * 4)
        return replace(self, x=grown(self.x), x_test=grown(self.x_test))

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        x_test: Any,
        y_test: Any,
        name: str = "arrays",
        classes: Sequence[str] | None = None,
        top: float | None = None,
    ) -> Data:
        """Data from tensors, numpy arrays or lists.

        Args:
            x: training samples, (N, ...): integers in 0..255 become ``uint8``, floats ``float32``. Integers of shape
                (N, H, W) are grey images and become (N, 1, H, W). Not copied where the type is right already.
            y: training labels, (N,) integers.
            x_test: test samples, as ``x``.
            y_test: test labels, each of which must occur in ``y``.
            name: what the data is called in messages and records.
            classes: the names of the labels 0, 1, ...; without them, the labels that occur (say 3 and 7) are
                numbered from 0 in ascending order and named "3" and "7".
            top: the value that stands for 1.0; default: 255 for integers, 1 for floats.

        Raises:
            BadData: lengths, shapes, types or labels that do not fit, no samples, or a value that is not finite.
        """
        x, x_test = _samples(x, f"{name}: training samples"), _samples(x_test, f"{name}: test samples")
        y, y_test = _labels(y, f"{name}: training labels"), _labels(y_test, f"{name}: test labels")
        for part, samples, labels in (("training", x, y), ("test", x_test, y_test)):
            if len(samples) != len(labels):
                raise BadData(f"{name}: {len(samples)} {part} samples, but {len(labels)} {part} labels; give one each")
        if (x.shape[1:], x.dtype) != (x_test.shape[1:], x_test.dtype):
            raise BadData(
                f"{name}: training samples are {_kind(x[0])} and test samples {_kind(x_test[0])}; they must be alike"
            )
        y, y_test, names = _numbered(y, y_test, classes, name)
        usual = 255.0 if x.dtype == torch.uint8 else 1.0
        return cls(name, x, y, x_test, y_test, names, _checked_top(usual if top is None else top, name))

    @classmethod
    def from_datasets(
        cls,
        train: Dataset[Any],
        test: Dataset[Any],
        name: str = "datasets",
        classes: Sequence[str] | None = None,
        top: float | None = None,
    ) -> Data:
        """Data from two map-style datasets whose samples are pairs (x, y).

        Every sample is read once, in order, so a random augmentation is drawn once and for all: leave it out here.

        Args:
            train: gives x as a PIL image (becomes ``uint8`` (1, H, W) where grey, else (3, H, W)), or as a tensor or
                numpy array that is taken as it is (so images must be (C, H, W)), and y as an integer.
            test: as ``train``.
            name: what the data is called in messages and records.
            classes: see :meth:`from_arrays`.
            top: see :meth:`from_arrays`.

        Raises:
            BadData: a sample that cannot be read or differs from the first in shape or type (named by its index), or
                what :meth:`from_arrays` refuses.
        """
        x, y = _collected(train, f"{name}: training set")
        x_test, y_test = _collected(test, f"{name}: test set")
        return cls.from_arrays(x, y, x_test, y_test, name, classes, top)


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


def load(name: str, root: str | Path | None = None, download: bool = True, progress: bool = True) -> Data:
    """A registered data set: read from its published files the first time, from the packed file ever after.

    The tensors are memory-mapped from ``<root>/packed/<name>.safetensors`` and their checksum is verified at every
    call. torchvision and scikit-learn are imported only where there is no packed file yet. Where the root cannot be
    written the data is read anew each time, which a :class:`~continual.errors.Notice` says.

    Args:
        name: one of :data:`SETS`.
        root: the data root, see :func:`data_root`; torchvision's files are ``<root>/MNIST/raw/*`` and so on.
        download: whether published files that are missing may be downloaded.
        progress: whether a download shows its progress bars (on standard error).

    Raises:
        UnknownName: no such data set.
        BadData: files that are missing and cannot be downloaded, or that are damaged (named in the message).
        BadFolder: a folder or file that cannot be made, read or written.
    """
    if name not in SETS:
        raise unknown("data set", name, SETS)
    root = data_root(root)
    file = root / "packed" / f"{name}.safetensors"
    if os.path.exists(file):
        return _unpack(name, file)
    data = SETS[name](name, root, download, progress)
    try:
        _pack(data, file)
    except BadFolder as error:
        if isinstance(error.__cause__, (FileExistsError, NotADirectoryError)):
            raise  # it is no folder
        warnings.warn(Notice(f"{error}; until then {name} is read anew at every start"), stacklevel=2)
        return data
    return _unpack(name, file)


# Arrays


def _kind(sample: Tensor) -> str:
    return f"{tuple(sample.shape)} {str(sample.dtype).removeprefix('torch.')}"


def _tensor(given: Any, what: str) -> Tensor:
    """What a user gave as a tensor on the CPU; numpy's wide integers become ``int64`` and its floats ``float32``."""
    try:
        if isinstance(given, Tensor):
            return given.detach().cpu()
        if isinstance(given, (list, tuple)) and given and isinstance(given[0], Tensor):
            return torch.stack(list(given)).detach().cpu()
        array = np.asarray(given)
        wide = {"b": np.bool_, "u": np.int64, "i": np.int64, "f": np.float32}.get(array.dtype.kind)
        if wide is None:
            raise TypeError(f"its dtype is {array.dtype}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is named by its row
            # torch shares memory with what is in C order and writable, and complains of anything else
            return torch.from_numpy(np.require(array, array.dtype if array.dtype == np.uint8 else wide, ["C", "W"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadData(f"{what} cannot be read as one array of numbers: {error}") from None


def _samples(given: Any, what: str) -> Tensor:
    """Samples as ``uint8`` or finite ``float32``, (N, ...)."""
    x = _tensor(given, what)
    if x.numel() == 0:
        raise BadData(f"{what} are empty (shape {tuple(x.shape)})")
    if x.ndim < 2:
        raise BadData(f"{what} have shape {tuple(x.shape)}; they take (N, C, H, W) or (N, features)")
    if x.is_complex():
        raise BadData(f"{what} are complex; they take integers in 0..255 or floats")
    if x.is_floating_point() or x.dtype == torch.bool:
        x = x.float()
        _every(x.isfinite(), x, what, "is not finite")
        return x.contiguous()
    if x.dtype != torch.uint8:
        x = x.long()
        _every((x >= 0) & (x <= 255), x, what, "is not in 0..255, where integers must be; give float32 for others")
    return (x.to(torch.uint8).unsqueeze(1) if x.ndim == 3 else x.to(torch.uint8)).contiguous()


def _every(good: Tensor, x: Tensor, what: str, fault: str) -> None:
    """:class:`BadData` naming the first row and value where ``good`` does not hold."""
    if not good.all():
        first = tuple(int(i) for i in (~good).nonzero()[0])
        raise BadData(f"{what}: the value {x[first].item()} in row {first[0]} {fault}")


def _labels(given: Any, what: str) -> Tensor:
    """Labels as ``int64``, (N,)."""
    y = _tensor(given, what)
    if y.numel() == 0:
        raise BadData(f"{what} are empty (shape {tuple(y.shape)})")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise BadData(f"{what} are {str(y.dtype).removeprefix('torch.')}; they must be integers")
    if y.ndim != 1:
        raise BadData(f"{what} have shape {tuple(y.shape)}; they must be (N,), one integer for each sample")
    return y.long().contiguous()


def _numbered(
    y: Tensor, y_test: Tensor, classes: Sequence[str] | None, name: str
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Training and test labels numbered from 0, and the classes' names."""
    known: Tensor = torch.unique(y)  # ascending
    fault = f"is no label of the training set ({_few(known)})"
    _every(torch.isin(y_test, known), y_test, f"{name}: test labels", fault)
    if classes is None:
        return torch.searchsorted(known, y), torch.searchsorted(known, y_test), tuple(map(str, known.tolist()))
    if not isinstance(classes, (list, tuple)) or not all(isinstance(text, str) for text in classes):
        raise BadData(f"{name}: classes was given {classes!r}; it takes a list of names")
    fault = f"has no name: classes names the labels 0..{len(classes) - 1}"
    _every((y >= 0) & (y < len(classes)), y, f"{name}: training labels", fault)
    return y, y_test, tuple(classes)


def _few(values: Tensor) -> str:
    """The values in one line, the first ten of them."""
    return ", ".join(map(str, values[:10].tolist())) + (", ..." if len(values) > 10 else "")


def _checked_top(top: float, name: str) -> float:
    if not (math.isfinite(top) and top > 0):
        raise BadData(f"{name}: top was given {top}; it takes the value that stands for 1.0, finite and above 0")
    return float(top)


# Datasets


def _collected(dataset: Any, what: str) -> tuple[Tensor, Tensor]:
    """All samples of a map-style dataset, (N, ...), and their labels, (N,)."""
    from tqdm import tqdm

    try:
        count = len(dataset)
    except TypeError:
        raise BadData(f"{what} has no length; it takes a map-style torch.utils.data.Dataset") from None
    if count == 0:
        raise BadData(f"{what} is empty")
    x, y = torch.empty(0), torch.empty(count, dtype=torch.int64)
    for row in tqdm(range(count), desc=what, delay=PATIENCE, leave=False, disable=None):
        sample, y[row] = _sample(dataset, row, what)
        if row == 0:
            x = sample.new_empty((count, *sample.shape))
        if (sample.shape, sample.dtype) != (x.shape[1:], x.dtype):
            raise BadData(f"{what}: sample {row} is {_kind(sample)}, but sample 0 is {_kind(x[0])}; they must be alike")
        x[row] = sample
    return x, y


def _sample(dataset: Any, row: int, what: str) -> tuple[Tensor, int]:
    """One sample and its label."""
    try:
        sample, label = dataset[row]
    except Exception as error:
        raise BadData(f"{what}: sample {row} is no pair (x, y): {type(error).__name__}: {error}") from error
    try:
        label = operator.index(label)
    except TypeError:
        raise BadData(f"{what}: the label of sample {row} is {label!r}; it must be an integer") from None
    return _pixels(sample, f"{what}: x of sample {row}"), label


def _pixels(sample: Any, what: str) -> Tensor:
    """A PIL image as ``uint8`` (C, H, W); tensors and arrays as they are."""
    if not hasattr(sample, "getbands"):
        return _tensor(sample, what)
    if sample.mode[0] in "IF":
        raise BadData(f"{what} is a PIL image of mode {sample.mode}; it takes images of 8 bits, or tensors")
    image = np.array(sample.convert("L" if sample.mode in ("1", "L") else "RGB"))
    return torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)


# The packed file


def _digest(facts: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """The SHA-256 over all that a packed file says and holds, in hexadecimal."""
    shapes = [[part, str(tensors[part].dtype), list(tensors[part].shape)] for part in PARTS]
    digest = hashlib.sha256(json.dumps([facts, shapes], sort_keys=True).encode())
    for part in PARTS:
        digest.update(tensors[part].reshape(-1).view(torch.uint8).numpy().data)  # the buffer itself: no copy
    return digest.hexdigest()


def _pack(data: Data, file: Path) -> None:
    """Write the packed file in one piece, or leave nothing; who packs at the same time writes the same."""
    from safetensors.torch import save

    tensors = {part: getattr(data, part) for part in PARTS}
    facts = {"format": FORMAT, "name": data.name, "classes": json.dumps(data.classes), "top": repr(data.top)}
    content = save(tensors, {**facts, "sha256": _digest(facts, tensors)})
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(file.parent, "written", error) from error


def _unpack(name: str, file: Path) -> Data:
    """The data of a packed file, memory-mapped, its checksum verified."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as packed:
            facts = dict(packed.metadata() or {})
            parts = packed.keys()
            tensors = {part: packed.get_tensor(part) for part in parts}
    except PermissionError as error:
        raise _unusable(file, "read", error) from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise _damaged(file, f"is damaged ({error})", REPACKED) from None
    if (facts.get("format"), facts.get("name"), set(tensors)) != (FORMAT, name, set(PARTS)):
        raise _damaged(file, f"is not '{name}' as this version packs it", REPACKED)
    if facts.pop("sha256", "") != _digest(facts, tensors):
        raise _damaged(file, "is damaged (its SHA-256 is not the one it was written with)", REPACKED)
    return Data(name=name, **tensors, classes=tuple(json.loads(facts["classes"])), top=float(facts["top"]))


def _damaged(file: Path, fault: str, then: str) -> BadData:
    return BadData(f"{file} {fault}; delete this file, and {then}")


def _unusable(path: Path, verb: str, error: OSError) -> BadFolder:
    reason = error.strerror or error
    return BadFolder(f"{path} cannot be {verb} ({reason}); give another data root with --data or $CONTINUAL_DATA")


# The registered sets


def _digits(name: str, root: Path, download: bool, progress: bool) -> Data:
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


def _idx(name: str, root: Path, download: bool, progress: bool, *, source: str) -> Data:
    """One of torchvision's data sets in MNIST's format; ``source`` is the name of its class."""
    import torchvision.datasets

    published = getattr(torchvision.datasets, source)
    folder = root / source / "raw"
    arrays = {gz: _raw(folder / gz, md5) for gz, md5 in published.resources}
    missing = {gz: md5 for gz, md5 in published.resources if arrays[gz] is None}
    if missing:
        _fetch(name, published, folder, missing, download, progress)
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
            raise _damaged(file.with_suffix(""), fault, "the other is read")
        return _parsed(file.with_suffix(""), content)
    if zipped is None:
        return None
    if found != md5:
        raise _damaged(file, f"is damaged ({len(zipped)} bytes with MD5 {found}; expected MD5 {md5})", AGAIN)
    return _parsed(file, gzip.decompress(zipped))


def _bytes(file: Path) -> bytes | None:
    """What a file holds; none where it is not there."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(file, "read", error) from None


def _parsed(file: Path, content: bytes) -> npt.NDArray[np.uint8]:
    """The array in an idx file: 0, 0, 8 (``uint8``), the number of dimensions, each as 4 bytes, then the values."""
    rank = 3 if "idx3" in file.name else 1
    start = 4 + 4 * rank
    if len(content) < start or content[:4] != bytes((0, 0, 8, rank)):
        raise _damaged(file, f"is no idx file of {rank} dimension(s)", AGAIN)
    shape = np.frombuffer(content, ">u4", rank, offset=4).tolist()
    expected = start + math.prod(shape)
    if len(content) != expected:
        fault = f"has the wrong size ({len(content)} bytes, where its header says {expected})"
        raise _damaged(file, fault, AGAIN)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _fetch(name: str, published: Any, folder: Path, missing: dict[str, str], download: bool, progress: bool) -> None:
    """Download through torchvision into a folder of its own, so that ``folder`` only ever gets whole, checked files."""
    if not download:
        raise _missing(name, published, folder, missing, "downloading is off")
    whole = {"resources": list(missing.items()), "_load_data": lambda self: (None, None)}
    partial = type(published.__name__, (published,), whole)  # the class, for the missing files only
    root = folder.parent.parent
    bars = sys.stderr if progress else io.StringIO()
    try:
        with _folder(root), tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            try:
                with contextlib.redirect_stdout(bars), contextlib.redirect_stderr(bars):
                    partial(temporary, download=True)
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                raise _missing(name, published, folder, missing, " ".join(str(error).split())) from None
            folder.mkdir(parents=True, exist_ok=True)
            for file in (Path(temporary) / published.__name__ / "raw").iterdir():
                os.replace(file, folder / file.name)
    except OSError as error:
        raise _unusable(root, "written", error) from None


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Within it the folder is there; what had to be made for it goes again where nothing was put into it."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # it holds something now
                one.rmdir()


def _missing(name: str, published: Any, folder: Path, missing: dict[str, str], reason: str) -> BadData:
    return BadData(
        f"{name} is not there and was not downloaded ({reason}).\n"
        f"Put {', '.join(missing)} (from {published.mirrors[0]}) into {folder}"
    )


SETS: dict[str, Callable[[str, Path, bool, bool], Data]] = {
    "digits": _digits,
    "mnist": functools.partial(_idx, source="MNIST"),
    "fashion-mnist": functools.partial(_idx, source="FashionMNIST"),
    "kmnist": functools.partial(_idx, source="KMNIST"),
}
"""Each registered set's reader, called as ``reader(name, root, download, progress)`` where no packed file is there."""
