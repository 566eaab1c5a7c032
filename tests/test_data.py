"""Data sets: what is refused, what is packed, and that damage is always found."""

from __future__ import annotations

import builtins
import contextlib
import errno
import gzip
import hashlib
import os
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from continual import progress
from continual.errors import BadData, BadFolder, Notice, UnknownName
from continual.progress import quietly
from continual.streams.data import Data
from continual.streams.sets import SETS, data_root, load

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PARTS = ("x", "y", "x_test", "y_test")


def same(a: Data, b: Data) -> bool:
    return (a.name, a.classes, a.top) == (b.name, b.classes, b.top) and all(
        torch.equal(getattr(a, part), getattr(b, part)) for part in PARTS
    )


def no_network(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the network was asked")


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A tiny Fashion-MNIST that torchvision takes for the published one; no test of it gets to the network."""
    import torchvision.datasets

    numbers = np.random.default_rng(0)
    shapes = ((40, 6, 5), (40,), (20, 6, 5), (20,))
    arrays = [
        numbers.integers(0, 256, shape, dtype=np.uint8) if len(shape) == 3 else np.arange(shape[0], dtype=np.uint8) % 10
        for shape in shapes
    ]
    files = {name: idx(array) for name, array in zip(NAMES, arrays, strict=True)}
    zipped = {name: gzip.compress(content, mtime=0) for name, content in files.items()}
    md5 = [(f"{name}.gz", hashlib.md5(content).hexdigest()) for name, content in zipped.items()]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", md5)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return files | {f"{name}.gz": content for name, content in zipped.items()}


def raw(root: Path, contents: dict[str, bytes], suffix: str = ".gz") -> Path:
    """A data root with the published files in it, and their folder."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}{suffix}").write_bytes(contents[f"{name}{suffix}"])
    return folder


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


# from_arrays


def test_arrays_lists_and_tensors_give_the_same() -> None:
    x, y = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4), np.array([0, 1])
    data = Data.from_arrays(x, y, x, y)
    assert data.x.dtype == torch.uint8 and data.y.dtype == torch.int64
    assert (data.name, data.classes, data.top) == ("arrays", ("0", "1"), 255.0)
    assert same(data, Data.from_arrays(x.tolist(), y.tolist(), x.tolist(), y.tolist()))
    assert same(data, Data.from_arrays(torch.tensor(x), torch.tensor(y), list(torch.tensor(x)), torch.tensor(y)))
    assert same(data, Data.from_arrays(x.astype(np.int16), y, x[::-1], y[::-1])) is False
    assert "2 + 2 test samples (3, 4, 4) uint8, 2 classes" in repr(data)


def test_floats_are_float32_with_top_one_and_of_any_shape() -> None:
    data = Data.from_arrays(np.ones((3, 7)), [0, 1, 2], np.ones((1, 7)), [2])
    assert data.x.dtype == torch.float32 and data.x.shape == (3, 7) and data.top == 1.0
    assert Data.from_arrays(np.ones((3, 7)), [0, 1, 2], np.ones((1, 7)), [2], top=2).top == 2.0


def test_grey_images_get_a_channel_and_views_are_read_rightly() -> None:
    x = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
    x.setflags(write=False)
    data = Data.from_arrays(x[::-1], [0, 1], x, [0, 1])
    assert data.x.shape == (2, 1, 4, 5) and data.x.is_contiguous()
    assert torch.equal(data.x.flip(0), data.x_test)


def test_labels_with_gaps_are_numbered_and_named_by_the_old() -> None:
    x = np.zeros((4, 1, 2, 2), dtype=np.uint8)
    data = Data.from_arrays(x, [7, 3, -1, 7], x[:2], [3, 7])
    assert (data.y.tolist(), data.y_test.tolist(), data.classes) == ([2, 1, 0, 2], [1, 2], ("-1", "3", "7"))


def test_classes_name_the_labels_as_they_are() -> None:
    x = np.zeros((2, 1, 2, 2), dtype=np.uint8)
    data = Data.from_arrays(x, [2, 0], x, [0, 2], classes=["a", "b", "c"])
    assert (data.y.tolist(), data.classes) == ([2, 0], ("a", "b", "c"))


GOOD: dict[str, Any] = {
    "x": np.zeros((3, 1, 2, 2), dtype=np.uint8),
    "y": [0, 1, 1],
    "x_test": np.zeros((2, 1, 2, 2), dtype=np.uint8),
    "y_test": [0, 1],
}
FLOATS = {"x": np.zeros((3, 2)), "x_test": np.zeros((2, 2))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": [0, 1]}, "mine: 3 training samples, but 2 training labels"),
        ({"y_test": [0, 1, 1]}, "mine: 2 test samples, but 3 test labels"),
        ({"y": [0.0, 1.0, 1.0]}, "training labels are float32; they must be integers"),
        ({"y": [True, False, True]}, "training labels are bool"),
        ({"y": [[0], [1], [1]]}, r"training labels have shape \(3, 1\)"),
        ({"y": ["cat", "dog", "dog"]}, "training labels cannot be read"),
        ({"y": [], "x": np.zeros((0, 1, 2, 2))}, "training samples are empty"),
        ({"x_test": [], "y_test": []}, "test samples are empty"),
        ({"y_test": []}, "test labels are empty"),
        ({"x": [1, 2, 3]}, r"training samples have shape \(3,\)"),
        ({"x": [[1], [1, 2], [3]]}, "training samples cannot be read"),
        ({"x": None}, "training samples cannot be read"),
        ({"x": np.zeros((3, 1, 2, 3), dtype=np.uint8)}, r"\(1, 2, 3\) uint8 and test samples \(1, 2, 2\) uint8"),
        ({"x": np.zeros((3, 1, 2, 2))}, r"\(1, 2, 2\) float32 and test samples \(1, 2, 2\) uint8"),
        ({"x": np.full((3, 1, 2, 2), 256)}, "value 256 in row 0 is not in 0..255"),
        ({"x": np.full((3, 1, 2, 2), -1)}, "value -1 in row 0 is not in 0..255"),
        ({"x": np.zeros((3, 2), dtype=complex)}, "training samples cannot be read"),
        ({"x": torch.zeros((3, 2), dtype=torch.complex64)}, "are complex"),
        ({"x": np.zeros((3, 8, 8, 3), np.uint8)}, "with the channels last; they take"),
        (FLOATS | {"x": [[0, 0.0], [0, 0], [0, np.nan]]}, "value nan in row 2 is not finite"),
        (FLOATS | {"x_test": [[0, 0.0], [1e300, 0]]}, "test samples: the value inf in row 1 is not finite"),
        ({"y_test": [0, 5]}, r"test labels: the value 5 in row 1 is no label of the training set \(0, 1\)"),
        ({"classes": ["a"]}, r"training labels: the value 1 in row 1 has no name: classes names the labels 0..0"),
        ({"classes": "ab"}, "takes a list of names"),
        ({"classes": [0, 1]}, "takes a list of names"),
        ({"top": 0}, "top was given 0"),
    ],
)
def test_what_from_arrays_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadData, match=message):
        Data.from_arrays(**{**GOOD, "name": "mine", **changes})


def test_pad() -> None:
    data = Data.from_arrays(np.full((2, 3, 4, 5), 9, dtype=np.uint8), [0, 1], np.ones((2, 3, 4, 5), np.uint8), [0, 1])
    padded = data.pad(2)
    assert padded.x.shape == (2, 3, 8, 9) and padded.x_test.shape == (2, 3, 8, 9) and padded.x.dtype == torch.uint8
    assert torch.equal(padded.x[:, :, 2:-2, 2:-2], data.x) and padded.x.sum() == data.x.sum()
    assert same(data.pad(0), data)
    with pytest.raises(BadData, match="pad was given -1"):
        data.pad(-1)
    with pytest.raises(BadData, match=r"only \(C, H, W\) images"):
        Data.from_arrays(np.ones((2, 3)), [0, 1], np.ones((2, 3)), [0, 1]).pad(1)


# from_datasets


class Listed(Dataset[Any]):
    """A map-style data set over a list; an exception in the list is raised."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.samples[index], Exception):
            raise self.samples[index]
        return self.samples[index]


def test_datasets_of_tensors() -> None:
    x, y = torch.rand(6, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    data = Data.from_datasets(TensorDataset(x, y), TensorDataset(x[:3], y[:3]), "mine", classes=["a", "b", "c"])
    assert same(data, Data.from_arrays(x, y, x[:3], y[:3], "mine", ["a", "b", "c"]))


def test_it_is_shown_how_far_datasets_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "BETWEEN", 0.0)
    one, two = (TensorDataset(torch.rand(count, 4), torch.arange(count)) for count in (3, 2))
    Data.from_datasets(one, two, "mine")
    assert "mine: training set: 2 of 3 after 0 s\n" in capsys.readouterr().err


def test_datasets_of_images() -> None:
    from torchvision.datasets import FakeData

    fake = FakeData(size=6, image_size=(3, 4, 5), num_classes=2)  # random RGB images
    data = Data.from_datasets(fake, fake)
    assert data.x.shape == (6, 3, 4, 5) and data.x.dtype == torch.uint8
    assert torch.equal(data.x[5], torch.tensor(np.array(fake[5][0])).permute(2, 0, 1))
    grey = Listed([(fake[i][0].convert("L"), np.int64(i)) for i in range(2)])
    assert torch.equal(Data.from_datasets(grey, grey).x[1, 0], torch.tensor(np.array(grey[1][0])))


ZERO = np.zeros((1, 2, 2), dtype=np.uint8)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "training set is empty"),
        ([(ZERO, 0), (ZERO[0], 1)], r"sample 1 is \(2, 2\) uint8, but sample 0 is \(1, 2, 2\) uint8"),
        ([(ZERO, 0), (ZERO.astype(float), 1)], r"sample 1 is \(1, 2, 2\) float32"),
        ([(ZERO, 0), (ZERO, 0.5)], "label of sample 1 is 0.5; it must be an integer"),
        ([(ZERO, 0), (ZERO, "cat")], "label of sample 1 is 'cat'"),
        ([(ZERO, 0), ZERO], "sample 1 is no pair"),
        ([(ZERO, 0), ("image", 0)], "x of sample 1 cannot be read"),
        ([(ZERO, 0), OSError("disk on fire")], "sample 1 is no pair .x, y.: OSError: disk on fire"),
        ([(np.zeros(2), 0), (np.array([0, np.inf]), 0)], "training samples: the value inf in row 1"),
    ],
)
def test_what_from_datasets_refuses(samples: list[Any], message: str) -> None:
    with pytest.raises(BadData, match=message):
        Data.from_datasets(Listed(samples), Listed(samples or [(ZERO, 0)]))


def test_images_of_more_than_8_bits_are_refused() -> None:
    from PIL import Image

    wide = Listed([(Image.new("I;16", (2, 2)), 0)])
    with pytest.raises(BadData, match="x of sample 0 is a PIL image of mode I;16"):
        Data.from_datasets(wide, wide)


def test_iterable_datasets_are_refused() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(BadData, match="takes a map-style"):
        Data.from_datasets(Endless(), Endless())


# The data root and the packed file


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONTINUAL_DATA", "~/here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root("~/there") == tmp_path / "there"
    assert data_root(None) == tmp_path / "here"
    monkeypatch.delenv("CONTINUAL_DATA")
    assert data_root(None).name == "continual"
    with pytest.raises(BadFolder, match="--data"):
        data_root("~nobody-of-this-name/data")


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no data set is named 'mnits'; did you mean 'mnist'"):
        load("mnits", tmp_path)


def test_digits(tmp_path: Path) -> None:
    data = load("digits", tmp_path)
    assert data.x.shape == (1442, 1, 8, 8) and data.x_test.shape == (355, 1, 8, 8) and data.x.dtype == torch.uint8
    assert data.top == 16.0 and data.x.max() == 16 and data.classes == tuple("0123456789")
    for label in range(10):
        assert (data.y_test == label).sum() == ((data.y == label).sum() + (data.y_test == label).sum()) // 5
    assert same(data, load("digits", tmp_path))
    assert [file.name for file in tmp_path.rglob("*")] == ["packed", "digits", "original.safetensors"]


def test_a_packed_set_needs_neither_torchvision_nor_sklearn_nor_a_writable_root(tmp_path: Path) -> None:
    load("digits", tmp_path)
    code = (
        "import sys; from continual.streams.sets import load; load('digits', sys.argv[1]); "
        "assert not {'torchvision', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    for folder in (tmp_path / "packed", tmp_path / "packed" / "digits"):
        folder.chmod(0o555)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    for folder in (tmp_path / "packed", tmp_path / "packed" / "digits"):
        folder.chmod(0o755)


def test_every_flipped_byte_of_the_header_and_any_of_the_data_is_found(
    tmp_path: Path, contents: dict[str, bytes]
) -> None:
    raw(tmp_path, contents)
    load("fashion-mnist", tmp_path)
    file = tmp_path / "packed" / "fashion-mnist" / "original.safetensors"
    good = file.read_bytes()
    (size,) = struct.unpack("<Q", good[:8])
    header = len(good[: 8 + size].rstrip())  # without the spaces that pad it
    for at in [*range(header), *range(8 + size, len(good), 97), len(good) - 1]:
        flip(file, at)
        with pytest.raises(BadData) as caught:
            load("fashion-mnist", tmp_path)
        assert str(file) in str(caught.value) and "delete this file" in str(caught.value), at
        file.write_bytes(good)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_packed_file_is_found_and_left_alone(tmp_path: Path, length: int) -> None:
    load("digits", tmp_path)
    file = tmp_path / "packed" / "digits" / "original.safetensors"
    damaged = file.read_bytes()[:length]
    file.write_bytes(damaged)
    with pytest.raises(BadData, match="delete this file") as caught:
        load("digits", tmp_path)
    assert str(file) in str(caught.value) and file.read_bytes() == damaged


def test_a_packed_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("digits", tmp_path)
    file, usual = tmp_path / "packed" / "digits" / "original.safetensors", builtins.open

    def refuse(path: Any, *given: Any, **more: Any) -> Any:
        if path == file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(path, *given, **more)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(BadFolder, match=r"original\.safetensors cannot be read \(Permission denied\); give another"):
        load("digits", tmp_path)


def test_a_foreign_packed_file_is_refused(tmp_path: Path, contents: dict[str, bytes]) -> None:
    from safetensors.torch import save_file

    load("digits", tmp_path)
    file = tmp_path / "packed" / "fashion-mnist" / "original.safetensors"
    file.parent.mkdir()
    for write in (
        lambda: file.write_bytes((tmp_path / "packed" / "digits" / "original.safetensors").read_bytes()),
        lambda: save_file({"x": torch.zeros(3)}, file),
        lambda: file.write_text("not a packed file"),
    ):
        write()
        with pytest.raises(BadData, match="delete this file") as caught:
            load("fashion-mnist", tmp_path)
        assert str(file) in str(caught.value)


def test_two_processes_pack_at_once(tmp_path: Path) -> None:
    code = "import sys; from continual.streams.sets import load; print(load('digits', sys.argv[1]).x.sum().item())"
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and said[0] == said[1]
    assert [file.name for file in (tmp_path / "packed" / "digits").iterdir()] == ["original.safetensors"]


def test_a_failure_while_packing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.warns(Notice, match=r"No space left on device.*--data .*digits is read anew at every start"):
            unpacked = load("digits", tmp_path)
    assert not (tmp_path / "packed").exists()
    assert same(unpacked, load("digits", tmp_path)) and list((tmp_path / "packed").iterdir())


def test_a_download_that_fails_leaves_no_folder_that_was_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    (tmp_path / "mine").mkdir()
    for root in (tmp_path / "mine" / "a" / "b", tmp_path / "mine"):
        with pytest.raises(BadData, match="mnist is not there and was not downloaded"):
            load("mnist", root)
        assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_root_that_cannot_be_made(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    (tmp_path / "file").touch()
    with pytest.raises(BadFolder, match=r"--data or \$CONTINUAL_DATA") as caught:
        load(name, tmp_path / "file" / "below")
    assert str(tmp_path / "file" / "below") in str(caught.value)


# Published files


def check_fashion(data: Data, contents: dict[str, bytes]) -> None:
    assert data.x.shape == (40, 1, 6, 5) and data.x_test.shape == (20, 1, 6, 5)
    assert data.x.numpy().tobytes() == contents[NAMES[0]][16:]
    assert data.y_test.tolist() == list(contents[NAMES[3]][8:])
    assert (data.name, data.classes[0], data.top) == ("fashion-mnist", "T-shirt/top", 255.0)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_published_files_are_packed_as_they_are(tmp_path: Path, contents: dict[str, bytes], suffix: str) -> None:
    folder = raw(tmp_path, contents, suffix)
    before = sorted(folder.iterdir())
    data = load("fashion-mnist", tmp_path)
    check_fashion(data, contents)
    assert sorted(folder.iterdir()) == before
    for file in before:
        file.unlink()
    assert same(data, load("fashion-mnist", tmp_path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_gz_is_named_and_never_downloaded(
    tmp_path: Path, contents: dict[str, bytes], name: str, cut: bool
) -> None:
    file = raw(tmp_path, contents) / f"{name}.gz"
    os.truncate(file, 20) if cut else flip(file, 30)
    with pytest.raises(BadData, match=r"expected MD5 [0-9a-f]{32}.*delete this file") as caught:
        load("fashion-mnist", tmp_path)
    assert str(file) in str(caught.value) and not (tmp_path / "packed").exists()


@pytest.mark.parametrize("length", [0, 3, 20, -1])
def test_a_truncated_raw_file_is_named(tmp_path: Path, contents: dict[str, bytes], length: int) -> None:
    file = raw(tmp_path, contents, "") / NAMES[2]
    file.write_bytes(contents[NAMES[2]][:length])
    with pytest.raises(BadData, match="delete this file") as caught:
        load("fashion-mnist", tmp_path)
    assert str(file) in str(caught.value) and not (tmp_path / "packed").exists()


def test_a_flipped_raw_file_is_found_where_its_gz_lies_beside_it(tmp_path: Path, contents: dict[str, bytes]) -> None:
    raw(tmp_path, contents)
    file = raw(tmp_path, contents, "") / NAMES[0]
    flip(file, 100)
    with pytest.raises(BadData, match=r"not what train-images-idx3-ubyte\.gz beside it holds") as caught:
        load("fashion-mnist", tmp_path)
    assert str(file) in str(caught.value)
    file.unlink()
    check_fashion(load("fashion-mnist", tmp_path), contents)


def test_files_that_do_not_belong_together(tmp_path: Path, contents: dict[str, bytes]) -> None:
    folder = raw(tmp_path, contents, "")
    (folder / NAMES[1]).write_bytes(contents[NAMES[3]])
    with pytest.raises(BadData, match="40 training samples, but 20 training labels") as caught:
        load("fashion-mnist", tmp_path)
    assert str(folder) in str(caught.value)
    (folder / NAMES[1]).write_bytes(idx(np.full(40, 200, dtype=np.uint8)))
    with pytest.raises(BadData, match="do not fit together"):
        load("fashion-mnist", tmp_path)


def test_without_a_network_the_message_says_what_to_put_where(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    folder = raw(tmp_path, contents)
    (folder / f"{NAMES[2]}.gz").unlink()
    with pytest.raises(BadData) as caught:
        load("fashion-mnist", tmp_path)
    message = str(caught.value)
    assert "fashion-mnist" in message and "Name or service not known" in message and message.count("\n") <= 2
    assert f"Put {NAMES[2]}.gz (from http" in message and message.endswith(f"into {folder}")
    assert capfd.readouterr().out == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["FashionMNIST"]
    with pytest.raises(BadData, match="downloading is off"):
        load("fashion-mnist", tmp_path / "empty", download=False)
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("progress", [False, True])
def test_only_what_is_missing_is_downloaded(
    tmp_path: Path,
    contents: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    progress: bool,
) -> None:
    import torchvision.datasets.utils

    asked = []

    def serve(url: str, filename: str, *args: Any) -> None:
        asked.append(url.rpartition("/")[2])
        sys.stdout.write("noise")
        Path(filename).write_bytes(contents[asked[-1]])

    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", serve)
    folder = raw(tmp_path, contents)
    (folder / f"{NAMES[0]}.gz").unlink()
    with quietly(not progress):
        check_fashion(load("fashion-mnist", tmp_path), contents)
    assert asked == [f"{NAMES[0]}.gz"] and (folder / asked[0]).exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["FashionMNIST", "packed"]
    out, err = capfd.readouterr()
    assert out == "" and ("noise" in err) == progress


def test_a_damaged_download_is_not_kept(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets.utils

    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(
        torchvision.datasets.utils, "_urlretrieve", lambda url, filename: Path(filename).write_bytes(b"half")
    )
    with pytest.raises(BadData, match="was not downloaded"):
        load("fashion-mnist", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_torchvision_lists_its_files_in_the_order_that_is_relied_on(name: str) -> None:
    import torchvision.datasets

    reader: Any = SETS[name]
    published = getattr(torchvision.datasets, reader.keywords["source"])
    assert [file for file, _ in published.resources] == [f"{name}.gz" for name in NAMES]


def test_the_real_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.environ.get("CONTINUAL_TEST_DATA")
    if not root:
        pytest.skip("CONTINUAL_TEST_DATA names no data root with MNIST/raw in it")
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "raw").symlink_to(Path(root).expanduser().resolve() / "MNIST" / "raw")
    data = load("mnist", tmp_path)
    assert data.x.shape == (60000, 1, 28, 28) and data.x_test.shape == (10000, 1, 28, 28)
    assert data.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.y_test[:5].tolist() == [7, 2, 1, 0, 4] and data.classes == tuple("0123456789")
    assert abs(data.x.float().mean().item() / 255 - 0.1307) < 1e-4  # the mean that everyone normalises by
    (tmp_path / "MNIST" / "raw").unlink()
    assert same(load("mnist", tmp_path), data), "from the packed file alone"
    with contextlib.suppress(OSError):
        (tmp_path / "packed" / "mnist" / "original.safetensors").unlink()  # 55 MB


Y4 = [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"x": np.ma.masked_equal(np.arange(16.0).reshape(4, 4), 3)}, "some of it is masked"),
        ({"y": np.ma.masked_equal([0, 1, 0, 1], 1)}, "some of it is masked"),
        ({"x": np.zeros((4, 8, 10, 3), np.uint8)}, "with the channels last"),
        ({"x": np.zeros((4, 8, 8, 4), np.uint8)}, "with the channels last"),
        ({"x": torch.zeros(4, 4).to_sparse()}, "sparse or nested"),
        ({"classes": ["a", "a"]}, "classes names 'a' twice"),
        ({"top": "a"}, "top was given a"),
    ],
)
def test_what_would_be_misread_is_refused(given: dict[str, Any], told: str) -> None:
    usual: dict[str, Any] = {"x": np.zeros((4, 4), np.float32), "y": Y4}
    with pytest.raises(BadData, match=told):
        named = usual | given
        Data.from_arrays(named["x"], named["y"], named["x"], named["y"], "mine", named.get("classes"), named.get("top"))


def test_signals_are_no_images_with_channels_last() -> None:
    for shape in ((4, 16, 100, 1), (4, 8, 25, 4)):
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        assert Data.from_arrays(x, Y4, x, Y4).x.shape == shape
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert Data.from_arrays(x, Y4, x, Y4, top=torch.tensor(8.5)).top == 8.5


def test_floats_that_look_like_levels_are_told_of() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (4, 1, 5, 5)).astype(np.float32)
    with pytest.warns(Notice, match=r"whole numbers from .* are shown as they are; give top=255"):
        assert Data.from_arrays(levels, Y4, levels, Y4).top == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Data.from_arrays(levels, Y4, levels, Y4, top=255).top == 255
        Data.from_arrays(levels / 255, Y4, levels / 255, Y4)
        Data.from_arrays(levels.round().reshape(4, -1), Y4, levels.reshape(4, -1), Y4)


def test_a_dataset_of_mappings_and_one_of_large_labels_are_refused() -> None:
    one = [{"x": torch.zeros(3), "y": 0}]
    with pytest.raises(BadData, match=r"sample 0 is no pair .*it is \{'x'"):
        Data.from_datasets(one, one)
    huge = [(torch.zeros(3), 2**70)]
    with pytest.raises(BadData, match=r"the label of sample 0 is .*; it takes one of 64 bits"):
        Data.from_datasets(huge, huge)
