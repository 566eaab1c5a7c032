"""Images in class folders, CIFAR's files, lists of classes, and data sets in sequence."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pickle
import re
import shutil
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import continual as cl
from continual import config, parts, plugins, ready
from continual.benchmarks import CIFAR10ImageNet, SplitCIFAR10, SplitImageNet
from continual.cli import main
from continual.errors import BadData, BadFolder, BadOption, Mistake, Notice, UnknownName
from continual.learning.strategy import Strategy
from continual.progress import Progress, quietly
from continual.results import store
from continual.streams import benchmark, images, sets
from continual.streams.benchmark import Sequence, class_list, look_again
from continual.streams.data import Data, joined
from continual.streams.sets import Wanted, load

NAMES = ("cat", "dog", "emu")


def picture(number: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """A smooth picture, which a JPEG keeps nearly as it is."""
    height, width = size[1], size[0]
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 4
    colours = [(ramp + 40 * number + 30 * channel) % 200 for channel in range(3)]
    return Image.fromarray(np.stack(colours, -1).astype(np.uint8))


def folders(root: Path, name: str = "animals", each: int = 4, ending: str = "png", **options: Any) -> Path:
    """A data set of three classes in class folders; each file has a picture of its own number."""
    number = 0
    for part, count in (("train", each), ("val", 2)):
        for label in NAMES:
            folder = root / name / part / label
            folder.mkdir(parents=True)
            for index in range(count):
                picture(number, **options).save(folder / f"{index:02}.{ending}")
                number += 1
    return root


def array(number: int, size: tuple[int, int] = (8, 8)) -> np.ndarray[Any, Any]:
    return np.asarray(picture(number, size)).transpose(2, 0, 1)


# ---- class folders


def test_every_image_is_read_in_the_order_of_classes_and_names(tmp_path: Path) -> None:
    data = load("animals", folders(tmp_path))
    assert data.classes == NAMES and data.name == "animals" and data.x.shape == (12, 3, 8, 8)
    assert data.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and data.y_test.tolist() == [0, 0, 1, 1, 2, 2]
    for number, image in enumerate([*data.x.numpy(), *data.x_test.numpy()]):
        assert np.array_equal(image, array(number))


def test_the_second_time_it_is_read_from_the_packed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("animals", folders(tmp_path))
    monkeypatch.setattr(images, "decoded", lambda *given: pytest.fail("decoded again"))
    second = load("animals", tmp_path)
    assert torch.equal(first.x, second.x) and first.sha256 == second.sha256


@pytest.mark.parametrize("shown", [True, False])
def test_it_is_shown_how_far_decoding_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: bool
) -> None:
    monkeypatch.setattr("continual.progress.BETWEEN", 0.0)
    with quietly(not shown):
        load("animals", folders(tmp_path))
    told = capsys.readouterr().err
    assert (f"decoding {tmp_path}/animals/train: 11 of 12 after 0 s\n" in told) == bool(told) == shown


def test_images_are_resized_and_cut_as_torchvision_does(tmp_path: Path) -> None:
    from torchvision.transforms import functional

    data = load("animals", folders(tmp_path, size=(20, 12)), wanted=Wanted(size=6))
    for number in (0, 5, 11):
        small = functional.resize(picture(number, (20, 12)), [6])
        wanted = functional.center_crop(small, [6])
        got = data.x[number].numpy().transpose(1, 2, 0).astype(int)
        assert got.shape == (6, 6, 3) and np.abs(got - np.asarray(wanted)).max() <= 1
    assert (tmp_path / "packed" / "animals" / "6.safetensors").is_file()


def test_some_classes_in_another_order(tmp_path: Path) -> None:
    folders(tmp_path)
    data = load("animals", tmp_path, wanted=Wanted(classes=("emu", "cat")))
    assert data.classes == ("emu", "cat") and data.y.tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(data.x[0].numpy(), array(8)) and np.array_equal(data.x[4].numpy(), array(0))
    whole = load("animals", tmp_path)
    assert len(list((tmp_path / "packed" / "animals").iterdir())) == 2 and whole.only(("emu",)).x.shape[0] == 4
    with pytest.raises(
        BadData, match=r"no class folder 'emi'; put it there, or leave the class out \(it has 3: cat, dog, emu"
    ):
        load("animals", tmp_path, wanted=Wanted(classes=("emi",)))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_corrupt_image_is_named_or_left_out(tmp_path: Path, damage: str) -> None:
    folders(tmp_path, ending="jpg")
    file = tmp_path / "animals" / "train" / "dog" / "02.jpg"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[: len(content) // 2], "text": b"no image", "empty": b""}[damage])
    with pytest.raises(BadData, match=r"train/dog/02\.jpg cannot be used: .*skip=true") as told:
        load("animals", tmp_path)
    assert damage == "truncated" or "cannot be used: it is no image that can be read; mend" in str(told.value)
    assert "BytesIO" not in str(told.value) and not (tmp_path / "packed").exists()
    with pytest.warns(Notice, match=r"animals: 1 file was left out, which cannot be used \(train/dog/02\.jpg: \w+"):
        data = load("animals", tmp_path, wanted=Wanted(skip=True))
    assert data.skipped == ("train/dog/02.jpg",) and data.y.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert load("animals", tmp_path, wanted=Wanted(skip=True)).skipped == data.skipped, "packed too"


@pytest.mark.parametrize("target", ["nothing.png", "00.png/x"])
def test_a_link_to_nothing_is_a_corrupt_image(tmp_path: Path, target: str) -> None:
    folders(tmp_path)
    (tmp_path / "animals" / "train" / "dog" / "zz.png").symlink_to(target)
    with pytest.raises(BadData, match=r"train/dog/zz\.png cannot be used: it is a link to nothing; .*skip=true"):
        load("animals", tmp_path)
    for _ in range(2):
        assert load("animals", tmp_path, wanted=Wanted(skip=True)).skipped == ("train/dog/zz.png",)


REFUSED = [OSError(errno.EACCES, "Permission denied", "x"), OSError(errno.EMFILE, "Too many open files", "x"),
           OSError(errno.EIO, "Input/output error", "x")]  # fmt: skip


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("error", REFUSED)
def test_a_file_that_cannot_be_read_is_named_and_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, size: int | None, skip: bool
) -> None:
    file, usual = folders(tmp_path) / "animals" / "train" / "cat" / "00.png", images.read_bytes

    def read(path: Path) -> bytes:
        if path == file:
            raise error
        return usual(path)

    monkeypatch.setattr(images, "read_bytes", read)
    with pytest.raises(BadFolder) as told:
        load("animals", tmp_path, wanted=Wanted(size, skip=skip))
    assert str(told.value) == f"{file} cannot be read ({error.strerror}); mend that, or take it out of the data set"
    assert not (tmp_path / "packed").exists()


def test_no_memory_to_decode_with_leaves_no_image_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*given: object) -> None:
        raise MemoryError

    folders(tmp_path)
    monkeypatch.setattr(images, "_decode", none)
    for size in (None, 8):
        with pytest.raises(MemoryError):
            load("animals", tmp_path, wanted=Wanted(size, skip=True))
    asked = ["run", "split-imagenet:folder=animals,size=8,tasks=3,skip=true", "--data", str(tmp_path)]
    said = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "runs")])
    assert said.exit_code == 2 and said.stderr.startswith("continual: not enough memory (decoding "), said.output


@pytest.mark.parametrize(("error", "told"), [
    (EOFError(), "cannot be used: EOFError; mend or delete it"),
    (ValueError("two\nlines"), "cannot be used: two lines; mend or delete it"),
    (Image.DecompressionBombError("could be decompression bomb DOS attack."),
     f"cannot be used: it has more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} that an image may have; mend"),
])  # fmt: skip
def test_why_an_image_cannot_be_decoded_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def bad(*given: object) -> None:
        raise error

    monkeypatch.setattr(images, "_decode", bad)
    with pytest.raises(BadData, match=re.escape(told)):
        load("animals", folders(tmp_path), wanted=Wanted(8))


@pytest.mark.parametrize("part", ["train", "train/dog", "val/dog", "train/dog/more"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    folder, usual = folders(tmp_path) / "animals" / part, os.scandir
    folder.mkdir(exist_ok=True)

    def scan(path: str) -> Any:
        if str(path) == str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return usual(path)

    data = load("animals", tmp_path)
    monkeypatch.setattr(os, "scandir", scan)
    for wanted in (Wanted(), Wanted(8)):  # packed already, and not
        with pytest.raises(BadFolder) as told:
            load("animals", tmp_path, wanted=wanted)
        assert str(told.value).startswith(f"{folder} cannot be read (Permission denied); ")
    with pytest.raises(UnknownName, match="no data set is named 'plants'"):
        load("plants", tmp_path)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "animals")
    assert load("animals", tmp_path).sha256 == data.sha256, "what is gone is no folder that cannot be read"


def test_files_with_other_endings_are_told(tmp_path: Path) -> None:
    here = folders(tmp_path) / "animals" / "train" / "dog"
    for name in ("a.gif", "b.GIF", "c.txt", "d", ".hidden.gif"):
        (here / name).write_bytes(b"")
    with pytest.warns(Notice) as told:
        load("animals", tmp_path)
    assert [str(one.message).partition(" are left out; images end in .jpg, ")[0] for one in told] == [
        f"{here.parent}: 4 files with other endings (.gif, .txt, no ending)"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("animals", tmp_path)  # it is packed
        load("animals", tmp_path, wanted=Wanted(classes=("cat", "emu")))


@pytest.mark.parametrize("name", ["two\nlines.png", "two\nlines"])
def test_names_of_two_lines_are_shown_in_one(tmp_path: Path, name: str) -> None:
    file = folders(tmp_path) / "animals" / "val" / "dog" / name
    file.write_bytes(b"no picture") if file.suffix else file.mkdir()
    (file.parents[1] / name).mkdir()
    (file.parents[1] / name / "00.png").write_bytes(b"")
    with pytest.warns(Notice) as told, contextlib.suppress(BadData):
        load("animals", tmp_path, wanted=Wanted(skip=True))
    said = [str(one.message) for one in told]
    assert any("two lines" in one for one in said) and not any("\n" in one for one in said)


def test_names_need_not_be_utf_8_unless_they_are_of_classes(tmp_path: Path) -> None:
    folders(tmp_path)
    folder = os.fsencode(tmp_path / "animals" / "train" / "dog")
    os.rename(folder + b"/02.png", folder + b"/\xe9t\xe9.png")
    assert len(load("animals", tmp_path).y) == 12
    Path(os.fsdecode(folder + b"/\xe9t\xe9.png")).write_bytes(b"no picture")
    shown = "train/dog/\N{REPLACEMENT CHARACTER}t\N{REPLACEMENT CHARACTER}.png"
    assert load("animals", tmp_path, wanted=Wanted(skip=True)).skipped == (shown,)
    os.rename(folder, folder + b"\xe9")
    with pytest.raises(BadData, match=r"class folder whose name is not UTF-8, b'dog\\xe9'; rename it"):
        load("animals", tmp_path)


@pytest.mark.parametrize("ending", ["tif", "TIFF", "pgm", "bmp", "ppm", "webp"])
def test_files_of_every_kind_that_torchvision_reads_are_images(tmp_path: Path, ending: str) -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(images.ENDINGS) == set(IMG_EXTENSIONS)
    data = load("animals", folders(tmp_path, ending=ending))
    assert len(data.y) == 12 and (ending == "webp" or np.array_equal(data.x[0].numpy(), array(0)))


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "animals" / "train" / "dog" / "._00.png").write_bytes(b"what macOS leaves on other disks")
    assert len(load("animals", tmp_path).y) == 12


@pytest.mark.filterwarnings("error")
def test_odd_images_are_taken_without_a_warning_of_the_decoder(tmp_path: Path) -> None:
    folders(tmp_path)
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    broken = b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # five entries are announced, none is there; ImageNet has such files
    red.save(tmp_path / "animals" / "train" / "dog" / "exif.jpg", exif=broken)
    alpha = bytes([0, 128] + [255] * 254)
    red.convert("P").save(tmp_path / "animals" / "train" / "dog" / "palette.png", transparency=alpha)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        data = load("animals", tmp_path, wanted=Wanted(8))
    assert not found and len(data.y) == 12 + 2


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    folders(tmp_path)
    picture(3, (9, 8)).save(tmp_path / "animals" / "train" / "emu" / "03.png")
    for skip in (False, True):  # nothing is wrong with it
        with pytest.raises(BadData, match=r"emu/03\.png has 9x8 pixels and the first image 8x8; give size=N"):
            load("animals", tmp_path, wanted=Wanted(skip=skip))
    assert not (tmp_path / "packed").exists()
    assert load("animals", tmp_path, wanted=Wanted(size=8)).x.shape == (12, 3, 8, 8)


def test_grey_and_transparent_images_become_colour(tmp_path: Path) -> None:
    folders(tmp_path)
    picture(1).convert("L").save(tmp_path / "animals" / "train" / "cat" / "01.png")
    picture(2).convert("RGBA").save(tmp_path / "animals" / "train" / "cat" / "02.png")
    data = load("animals", tmp_path)
    assert torch.equal(data.x[1, 0], data.x[1, 1]) and np.array_equal(data.x[2].numpy(), array(2))


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"imagenet is not there: put its images into .*imagenet/train/<class>/"):
        load("imagenet", tmp_path)
    with pytest.raises(Mistake, match="no data set is named 'animals'"):
        load("animals", tmp_path)
    (tmp_path / "animals" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "animals" / "val" / "cat").mkdir(parents=True)
    with pytest.raises(BadData, match="train/cat has no images that can be read"):
        load("animals", tmp_path)


# ---- CIFAR


class Published:
    """CIFAR's files in a small edition, under torchvision's own class."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import torchvision.datasets

        numbers = np.random.default_rng(0)
        folder = root / "cifar-10-batches-py"
        folder.mkdir()
        self.x, self.y = numbers.integers(0, 256, (40, 3072), dtype=np.uint8), [i % 10 for i in range(40)]
        lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
        for name, part, kind in (("data_batch_1", slice(30), "train_list"), ("test_batch", slice(30, 40), "test_list")):
            (folder / name).write_bytes(pickle.dumps({"data": self.x[part], "labels": self.y[part]}))
            lists[kind].append([name, self.md5(folder / name)])
        classes = [f"kind{i}" for i in range(10)]
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
        meta = {"filename": "batches.meta", "key": "label_names", "md5": self.md5(folder / "batches.meta")}
        for name, value in {**lists, "meta": meta}.items():
            monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)

    @staticmethod
    def md5(file: Path) -> str:
        return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def test_cifar_from_its_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = Published(tmp_path, monkeypatch)
    data = load("cifar10", tmp_path)
    assert np.array_equal(data.x.numpy().reshape(30, -1), published.x[:30]) and data.y.tolist() == published.y[:30]
    assert np.array_equal(data.x_test.numpy().reshape(10, -1), published.x[30:]) and data.classes[3] == "kind3"


def test_damaged_cifar_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Published(tmp_path, monkeypatch)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BadData, match=r"cifar-10-batches-py/data_batch_1 is damaged \(MD5"):
        load("cifar10", tmp_path)
    file.unlink()
    with pytest.raises(BadData, match="data_batch_1 is missing"):
        load("cifar10", tmp_path)


def test_cifar_that_is_not_there_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"cifar100 is not there and was not downloaded \(downloading is off\)") as told:
        load("cifar100", tmp_path, download=False)
    assert "cifar-100-python.tar.gz" in str(told.value) and "cifar100/train/<class>/" in str(told.value)


def test_cifar_from_class_folders_where_those_are_there(tmp_path: Path) -> None:
    data = load("cifar10", folders(tmp_path, name="cifar10"))
    assert data.classes == NAMES and data.x.shape == (12, 3, 8, 8)


def test_cifar_s_published_files_come_before_what_was_packed_of_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("cifar10", folders(tmp_path, name="cifar10"))
    published = Published(tmp_path, monkeypatch)
    with pytest.warns(Notice, match="packed from class folders, and .*cifar-10-batches-py is there now; that"):
        data = load("cifar10", tmp_path)
    assert np.array_equal(data.x.numpy().reshape(30, -1), published.x[:30])
    assert load("cifar10", tmp_path).sha256 == data.sha256
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    with pytest.warns(Notice, match="packed from other files, and the class folders in .*cifar10 are there now; they"):
        assert load("cifar10", tmp_path).classes == NAMES


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest) -> Path:
    root = Path(os.environ.get("CONTINUAL_TEST_DATA", "nowhere"))
    if not (root / "cifar10" / "test").is_dir() or not (root / "imagenet" / "val").is_dir():
        pytest.skip("set CONTINUAL_TEST_DATA to a data root with cifar10/ and imagenet/ as class folders")
    place: Path = request.getfixturevalue("tmp_path_factory").mktemp("photographs")
    for name, of in (("cifar10", ("test", "test")), ("imagenet", ("val", "val"))):
        (place / name).mkdir()
        for linked, part in zip(("train", "val"), of, strict=True):
            (place / name / linked).symlink_to(root / name / part)
    return place


def test_real_photographs(real: Path) -> None:
    """The test images of CIFAR-10 and the validation images of ImageNet, for both parts: it is quick."""
    stream = CIFAR10ImageNet(size=32, tasks=(2, 4), normalize="unit").stream(0, real)
    assert stream.shape == (3, 32, 32) and len(stream.tasks) == 6 and stream.units == 30
    assert [len(task.classes) for task in stream.tasks] == [5, 5, 5, 5, 5, 5]
    assert stream.tasks[0].classes == ("airplane", "automobile", "bird", "cat", "deer")
    assert all(name.startswith("n") for task in stream.tasks[2:] for name in task.classes)
    assert sum(len(task.train) for task in stream.tasks) == 11_000
    shown = stream.samples.images(stream.tasks[0].train[:500], torch.float32)
    assert 0.35 < float(shown.mean()) < 0.6 and float(shown.max()) == 1.0


# ---- lists of classes


def test_the_lists_of_classes() -> None:
    imagenette, hundred = class_list("imagenette"), class_list("imagenet-100")
    assert len(imagenette) == 10 and len(hundred) == 100 and imagenette[0] == "n01440764"
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in (*imagenette, *hundred))


def test_imagenet_100_is_permuted_by_the_legacy_generator() -> None:
    """Where the 1,000 ids are at hand, the first 100 of them in the order of seed 1993."""
    pytest.importorskip("avalanche", reason="avalanche-lib, which lists the 1,000 ids, is not installed")
    from importlib.util import find_spec

    spec = find_spec("avalanche")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "benchmarks" / "datasets" / "imagenet_data.py").read_text()
    ids = sorted({text[i : i + 9] for i in range(len(text)) if text[i] == "n" and text[i + 1 : i + 9].isdigit()})
    assert len(ids) == 1000
    order = np.random.RandomState(1993).permutation(1000)
    assert class_list("imagenet-100") == tuple(ids[i] for i in order[:100])


def test_a_list_from_a_file_is_recorded_by_its_hash(tmp_path: Path) -> None:
    folders(tmp_path)
    listed = tmp_path / "mine.txt"
    listed.write_text("# mine\nemu\ncat  # small\n\n")
    benchmark = SplitImageNet(folder="animals", subset=str(listed), tasks=2, size=8)
    stream = benchmark.stream(0, tmp_path)
    assert [task.classes for task in stream.tasks] == [("emu",), ("cat",)]
    record = config.benchmark_record(benchmark, tmp_path)
    assert record["sha256"] == stream.data.sha256
    assert record["subset_sha256"] == hashlib.sha256(b"emu\ncat").hexdigest() and record["subset"] == str(listed)
    assert "subset_sha256" not in config.benchmark_record(SplitImageNet(folder="animals", size=8), tmp_path)


@pytest.mark.parametrize(("given", "told"), [
    ({"subset": "imagenete"}, "subset=imagenete: it takes all, imagenet-100, imagenette, or a file"),
    ({"folder": "../up"}, r"folder=\.\./up: it takes the name of a folder"),
    ({"size": 0}, "size was given 0"),
    ({"subset": "EMPTY"}, "EMPTY lists no class; it takes one a line"),
    ({"subset": "TWICE"}, "TWICE lists cat twice; name it once"),
])  # fmt: skip
def test_lists_and_folders_that_are_refused(
    given: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").write_text("# none\n")
    Path("TWICE").write_text("cat\ndog\ncat\n")
    class_list.cache_clear()
    with pytest.raises(BadOption, match=told):
        SplitImageNet(**given)


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("emu\ncat\n", encoding="utf-8-sig")
    assert class_list(str(tmp_path / "mine.txt")) == ("emu", "cat")


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_folder_that_is_called_like_another_set_is_not_taken_for_it(tmp_path: Path, name: str) -> None:
    folders(tmp_path, name=name)
    with pytest.raises(BadOption, match=f"folder={name}: a data set has this name .* give the folder another name"):
        SplitImageNet(folder=name, tasks=3).stream(0, tmp_path)


def test_cifar_s_class_folders_are_a_folder_like_others(tmp_path: Path) -> None:
    stream = SplitImageNet(folder="cifar10", tasks=3).stream(0, folders(tmp_path, name="cifar10"))
    assert stream.data.name == "cifar10" and stream.data.classes == NAMES


def test_a_folder_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    folders(tmp_path)
    with pytest.raises(UnknownName, match=r"'animal'; did you mean 'animals'\? \(known: animals, cifar10"):
        SplitImageNet(folder="animal").stream(0, tmp_path)


def test_tiny_imagenet_as_it_is_unpacked(tmp_path: Path) -> None:
    """Training images lie one folder deeper, and a list has the classes of the tests."""
    folders(tmp_path)
    here, lines = tmp_path / "animals", []
    (here / "val" / "images").mkdir()
    for number, name in enumerate(NAMES):
        (here / "train" / name / "images").mkdir()
        for file in sorted((here / "train" / name).glob("*.png")):
            file.rename(file.parent / "images" / file.name)
        for file in sorted((here / "val" / name).glob("*.png")):
            file.rename(here / "val" / "images" / f"{file.stem}{number}.png")
            lines.append(f"{file.stem}{number}.png\t{name}\t0\t0\t7\t7\n")
        (here / "train" / name / f"{name}_boxes.txt").write_text("00.png\t0\t0\t7\t7\n")
        (here / "val" / name).rmdir()
    (here / "val" / "val_annotations.txt").write_text("".join(lines[::-1]))
    (here / "test" / "images").mkdir(parents=True)
    data = load("animals", tmp_path)
    assert data.classes == NAMES and data.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.y_test.tolist() == [0, 0, 1, 1, 2, 2]
    for number, image in enumerate([*data.x.numpy(), *data.x_test.numpy()]):
        assert np.array_equal(image, array(number))
    picture(77).save(here / "val" / "images" / "001.png")
    with pytest.warns(Notice, match="have changed since they were packed; they are read anew"):
        assert np.array_equal(load("animals", tmp_path).x_test[2].numpy(), array(77))
    (here / "val" / "images" / "002.png").unlink()
    for name in ("x.png", "y.png"):
        picture(78).save(here / "val" / "images" / name)
    told = "of 6 files in its list 1 are not there, and 2 images there are not in the list; they are left out"
    with pytest.warns(Notice, match=told):
        assert load("animals", tmp_path).y_test.tolist() == [0, 0, 1, 1, 2]


def test_another_class_in_a_list_of_tests_is_noticed(tmp_path: Path) -> None:
    """Where the files stay in their order."""
    here = folders(tmp_path) / "animals" / "val"
    lines = []
    for name in NAMES:
        for file in sorted((here / name).iterdir()):
            file.rename(here / f"{name}{file.name}")
            lines.append(f"{name}{file.name}\t{name}\n")
        (here / name).rmdir()
    (here / "val_annotations.txt").write_text("".join(lines))
    assert load("animals", tmp_path).y_test.tolist() == [0, 0, 1, 1, 2, 2]
    lines[1] = lines[1].replace("\tcat", "\tdog")
    (here / "val_annotations.txt").write_text("".join(lines))
    with pytest.warns(Notice, match="have changed since they were packed; they are read anew"):
        assert load("animals", tmp_path).y_test.tolist() == [0, 1, 1, 1, 2, 2]


# ---- sequences


def small(name: str, classes: tuple[str, ...], shape: tuple[int, ...], top: float | None = None, seed: int = 0) -> Data:
    numbers = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(classes)), 5)
    x = numbers.integers(0, int(top or 255) + 1, (len(y), *shape), dtype=np.uint8)
    return Data.from_arrays(x, y, x.copy(), y.copy(), name, classes, top)


def test_joined_data_has_all_classes_in_colour_at_one_size() -> None:
    a, b = small("one", ("x", "y"), (1, 4, 4), top=16), small("two", ("y", "z", "w"), (3, 8, 8), seed=1)
    both = joined((a, b), 8)
    assert both.classes == ("x", "one/y", "two/y", "z", "w") and both.joined == (2, 3) and both.top == 255
    assert both.x.shape == (25, 3, 8, 8) and both.y.tolist() == sorted([*[0, 1, 2, 3, 4] * 5])
    assert torch.equal(both.x[10:], b.x), "what has the size is left as it is"
    grey = a.x[0, 0].double() * 255 / 16
    assert abs(float(both.x[0].double().mean() - grey.mean())) < 3
    assert torch.equal(both.x[:10, 0], both.x[:10, 2])


def test_levels_of_sets_in_sequence_are_rounded_to_the_nearest() -> None:
    levels = torch.arange(17, dtype=torch.uint8).reshape(17, 1, 1, 1).expand(-1, 1, 2, 2)
    digits = Data.from_arrays(levels, [0] * 17, levels, [0] * 17, top=16)
    assert joined([digits], 2).x[:, 0, 0, 0].tolist() == [round(level * 255 / 16) for level in range(17)]


def test_files_that_were_left_out_are_named_with_their_set() -> None:
    a, b = (replace(small(name, ("x", "y"), (3, 4, 4)), skipped=("train/x/0.jpg",)) for name in ("one", "two"))
    assert joined((a, b, a), 4).skipped == ("one/train/x/0.jpg", "two/train/x/0.jpg", "one-2/train/x/0.jpg")


def test_resizing_is_torchs_antialiased_one() -> None:
    data = small("one", ("x", "y"), (3, 9, 9))
    wanted = torch.nn.functional.interpolate(data.x.double(), (5, 5), mode="bilinear", antialias=True)
    assert (data.resized(5).x.double() - wanted).abs().max() <= 0.51


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_a_sequence_has_the_tasks_of_each_in_turn(
    tmp_path: Path, scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = small("digits", tuple("0123456789"), (1, 8, 8), 16)
    monkeypatch.setitem(sets.SETS, "digits", lambda *given: digits)
    folders(tmp_path, name="cifar10")
    made = Sequence.of([cl.benchmarks.SplitDigits(tasks=5), SplitCIFAR10(tasks=3)], scenario=scenario, size=6)
    stream = made.stream(0, tmp_path)
    assert [task.classes for task in stream.tasks[4:]] == [("8", "9"), ("cat",), ("dog",), ("emu",)]
    assert stream.shape == (3, 6, 6) and stream.units == (2 if scenario == "domain" else 13)
    rows = torch.cat([task.train for task in stream.tasks])
    assert len(set(rows.tolist())) == len(rows) == 62
    again = stream.stream(3)
    assert [task.classes for task in again.tasks] == [task.classes for task in stream.tasks]


def test_a_sequence_in_a_run_file(tmp_path: Path) -> None:
    folders(tmp_path / "data", name="cifar10")
    (tmp_path / "run.yaml").write_text(
        "benchmark:\n  sequence:\n    - split-digits\n    - {name: split-cifar10, tasks: 3}\n  size: 8\n  limit: 5\n"
        "strategies: [finetune]\nseeds: 1\nepochs: 1\n"
    )
    said = CliRunner().invoke(main, ["run", str(tmp_path / "run.yaml"), "--data", str(tmp_path / "data"), "--out",
                                     str(tmp_path / "runs"), "--quiet"])  # fmt: skip
    assert said.exit_code == 0, said.output
    assert "Sequence" not in said.output, "no command is suggested where there is none"
    head = " ".join(said.output.split())
    assert head.startswith("split-digits (tasks 5, order natural) then split-cifar10 (tasks 3, order natural);")
    (result,) = store.find(tmp_path / "runs")
    described = result.record["protocol"]["benchmark"]
    assert [part["name"] for part in described["sequence"]] == ["split-digits", "split-cifar10"]
    assert result.accuracy.shape == (1, 9, 8)


@pytest.mark.parametrize(("given", "told"), [
    ({"sequence": "split-digits"}, "sequence: it takes a list of benchmarks"),
    ({"sequence": ["split-digits"]}, "takes two or more benchmarks, not 1"),
    ({"sequence": ["split-digits", "permuted-mnist"]}, "takes benchmarks that divide classes"),
    ({"sequence": ["split-digits", "split-mnist"], "sizes": 3}, "has no option 'sizes'; did you mean 'size'"),
    ({"sequence": ["split-digits", "cifar10-imagenet"]}, "such as split-mnist, not CIFAR10ImageNet$"),
    ({"sequence": ["split-digits", {"sequence": ["mnist"]}]}, "sequence: there is one within it; write its benchmarks"),
    ({"sequence": ["split-digits", "split-mnist"], "name": "mnist"}, "a name or a sequence, and was given both"),
])  # fmt: skip
def test_sequences_that_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(BadOption, match=told):
        config.plan({"benchmark": given})


def test_a_sequence_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="takes two or more benchmarks, not 0"):
        Sequence().stream(0, tmp_path)


class OddAndEven(cl.benchmarks.SplitDigits):
    """Classes that are divided in a way of its own."""

    def groups(self, classes: int, seed: int, name: str) -> list[list[int]]:
        return [list(range(1, classes, 2)), list(range(0, classes, 2))]


class Reversed(cl.benchmarks.SplitDigits):
    """Tasks that are made in a way that a sequence does not know."""

    def build(self, data: Data, seed: int = 0) -> cl.Stream:
        return self.assemble(data, [[9, 8, 7], [6, 5]], seed)


def test_a_sequence_divides_classes_as_its_members_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = small("digits", tuple("0123456789"), (1, 8, 8), 16)
    monkeypatch.setitem(sets.SETS, "digits", lambda *given: digits)
    folders(tmp_path, name="cifar10")
    stream = Sequence.of([OddAndEven(tasks=2), SplitCIFAR10(tasks=1)], size=6).stream(0, tmp_path)
    assert [task.classes for task in stream.tasks] == [tuple("13579"), tuple("02468"), NAMES]
    with pytest.raises(BadOption, match=r"the tasks of Reversed from its method groups.* has a method build, which"):
        Sequence.of([Reversed(), SplitCIFAR10(tasks=1)], size=6)


def test_cifar10_imagenet_takes_two_numbers_of_tasks() -> None:
    with pytest.raises(BadOption, match="tasks=1-2-3: give two numbers"):
        CIFAR10ImageNet(tasks=(1, 2, 3))
    made = CIFAR10ImageNet(tasks=(5, 2), subset="imagenette", size=64)
    assert [part.tasks for part in made.parts()] == [5, 2]
    assert plugins.name_of("benchmarks", type(made)) == "cifar10-imagenet"


def test_a_sequences_members_have_no_options_of_the_whole() -> None:
    for given, name in (("split-digits:limit=5", "limit"), ("split-cifar10:scenario=task", "scenario"),
                        ("split-imagenet:size=48", "size"), ("split-digits:validation=0.1", "validation")):  # fmt: skip
        with pytest.raises(BadOption, match=f"was given {name}=.*: write {name} beside 'sequence'"):
            config.plan({"benchmark": {"sequence": ["split-mnist", given]}})
    # so is what is a default of its own, where somebody wrote it; an object does not know what was written
    for given, name, told in (("split-imagenet:size=none", "size", {}), ("split-digits:scenario=class", "scenario",
                              {"scenario": "task"}), ("split-digits:validation=0", "validation", {"validation": 0.1}),
                              ({"name": "mnist", "validation": 0.2}, "validation", {})):  # fmt: skip
        with pytest.raises(BadOption, match=f"was given {name}=.*: write {name} beside 'sequence'"):
            config.plan({"benchmark": {"sequence": ["split-mnist", given], **told}})
    with pytest.raises(BadOption, match="a sequence's animals was given size=48"):
        config.plan({"benchmark": {"sequence": ["split-mnist", "split-imagenet:folder=animals,size=48"]}})
    objects = [cl.benchmarks.SplitDigits(), SplitCIFAR10(size=48)]
    assert config.make_benchmark({"sequence": objects, "scenario": "task", "size": 48}).parts()[1].scenario == "task"
    whole = {"size": 48, "validation": 0.1}
    made = config.make_benchmark({"sequence": ["mnist", "split-imagenet:size=48"], **whole})
    assert [(part.validation, getattr(part, "size", None)) for part in made.parts()] == [(0.1, None), (0.1, 48)]
    assert config.make_benchmark({"sequence": ["mnist", "split-digits"]}).parts()[0].validation == 0.0, "as it is done"


def test_images_of_a_sequence_are_decoded_at_its_size_and_packed_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path, size=(16, 16))
    monkeypatch.setitem(sets.SETS, "digits", lambda *given: small("digits", tuple("0123456789"), (1, 8, 8), 16))
    members = [cl.benchmarks.SplitDigits(), SplitImageNet(folder="animals", tasks=3)]
    made = Sequence.of(members, size=10)
    data, record = made.load(tmp_path), config.benchmark_record(made, tmp_path)
    alone = load("animals", tmp_path, wanted=Wanted(10))
    assert torch.equal(data.x[-12:], alone.x) and data.packed and data.joined == (10, 3)
    assert [file.name for file in (tmp_path / "packed" / "animals").iterdir()] == ["10.safetensors"], "no other size"
    assert record["sequence"][1]["size"] == 10 and record["sequence"][1]["sha256"] == alone.sha256
    monkeypatch.setattr("continual.streams.sets.joined", lambda *given: pytest.fail("joined again"))
    again = sets.load_joined([load("digits", tmp_path), alone], 10, tmp_path)
    assert torch.equal(again.x, data.x) and again.joined == data.joined


def test_sets_in_sequence_are_joined_on_the_disk_a_few_images_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, made = [small("one", ("x", "y"), (1, 4, 4), top=16), small("two", ("z", "w"), (3, 8, 8), seed=1)], []
    room = sets._room
    monkeypatch.setattr(sets, "_room", lambda folder, shape: made.append((room(folder, shape), shape)) or made[-1][0])
    monkeypatch.setattr("continual.streams.data.CHUNK", 3 * 8 * 8 * 3)  # three images of the second set
    data, wanted = sets.load_joined(parts, 8, tmp_path), joined(parts, 8)
    assert [shape for _, shape in made] == [(20, 3, 8, 8)] * 2 and all(isinstance(one, np.memmap) for one, _ in made)
    for name in ("x", "y", "x_test", "y_test"):
        assert torch.equal(getattr(data, name), getattr(wanted, name))


def test_the_options_of_the_whole_are_named_as_such() -> None:
    with pytest.raises(BadOption, match="no option 'limit', but its benchmark has: write it beside 'sequence'"):
        config.plan({"benchmark": {"sequence": ["split-digits", "split-mnist"]}, "limit": 3})


def test_many_sets_in_sequence_are_read_once_for_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(18):
        folders(tmp_path, name=f"set{number}")
    made = Sequence.of([SplitImageNet(folder=f"set{number}", tasks=1) for number in range(18)], size=8)
    first = made.stream(0, tmp_path)
    monkeypatch.setattr(sets, "load", lambda *given, **more: pytest.fail("read again"))
    assert made.stream(1, tmp_path).samples.pixels is first.samples.pixels and len(first.tasks) == 18


def test_what_is_said_of_sets_in_sequence_is_said_anew(tmp_path: Path) -> None:
    """Of the same images: files that were left out, and what classes are called."""
    folders(tmp_path)

    def said() -> tuple[Any, Any]:
        look_again()  # as a run does
        data = Sequence.of([cl.benchmarks.SplitDigits(), animals], size=8).load(tmp_path)
        return data.skipped, data.classes[-3:]

    animals = SplitImageNet(folder="animals", tasks=3, skip=True)
    assert said() == ((), NAMES)
    (tmp_path / "animals" / "train" / "cat" / "zzz.png").write_bytes(b"no picture")
    with pytest.warns(Notice, match="have changed since they were packed; they are read anew"):
        assert said() == (("animals/train/cat/zzz.png",), NAMES)
    for part in ("train", "val"):
        (tmp_path / "animals" / part / "dog").rename(tmp_path / "animals" / part / "dot")
    with pytest.warns(Notice, match="have changed since they were packed; they are read anew"):
        assert said() == (("animals/train/cat/zzz.png",), ("cat", "dot", "emu"))


def test_lists_of_classes_in_sequence_are_all_recorded_and_no_two_classes_have_one_name(tmp_path: Path) -> None:
    folders(tmp_path)
    members, hashes = [], []
    for number, names in enumerate(("cat\ndog", "dog\nemu")):
        (tmp_path / f"{number}.txt").write_text(names)
        members.append(SplitImageNet(folder="animals", subset=str(tmp_path / f"{number}.txt"), tasks=1))
        hashes.append(hashlib.sha256(names.encode()).hexdigest())
    made = Sequence.of(members, size=8)
    assert made.load(tmp_path).classes == ("cat", "animals/dog", "animals-2/dog", "emu")
    record = config.benchmark_record(made, tmp_path)
    assert record["subset_sha256"] == "+".join(hashes)
    assert [part["subset_sha256"] for part in record["sequence"]] == hashes


def test_cifar_s_images_are_packed_once_at_their_size_or_as_they_are(tmp_path: Path) -> None:
    folders(tmp_path, name="cifar10", size=(48, 32))
    assert SplitCIFAR10(tasks=3).load(tmp_path).sha256 == SplitCIFAR10(tasks=3, size=32).load(tmp_path).sha256
    assert CIFAR10ImageNet(folder="animals").parts()[0].load(tmp_path).x.shape[-2:] == (32, 32)
    assert len(list((tmp_path / "packed" / "cifar10").iterdir())) == 1
    middle = array(0, (48, 32))[:, :, 8:40]
    assert np.array_equal(SplitCIFAR10(tasks=3).load(tmp_path).x[0].numpy(), middle), "cut, and not squashed"
    assert SplitCIFAR10(tasks=3, size=16).load(tmp_path).x.shape[-2:] == (16, 16)
    assert SplitCIFAR10(tasks=3, size=None).load(tmp_path).x.shape[-2:] == (32, 48)


# ---- what changes


def test_images_that_have_changed_are_packed_anew_and_are_another_run(tmp_path: Path) -> None:
    folders(tmp_path)
    asked: dict[str, Any] = {"out": tmp_path / "runs", "data": tmp_path, "seeds": 1, "model": "mlp:layers=4"}
    benchmark = "split-imagenet:folder=animals,size=8,tasks=3"
    first = cl.run(benchmark, **asked)
    picture(99).save(tmp_path / "animals" / "train" / "cat" / "00.png")
    with pytest.warns(Notice, match="the class folders in .*animals have changed since they were packed; they are"):
        second = cl.run(benchmark, **asked)
    assert np.array_equal(load("animals", tmp_path, wanted=Wanted(8)).x[0].numpy(), array(99))
    assert first.record["protocol"] != second.record["protocol"] and len(store.find(tmp_path / "runs")) == 2
    assert first.record["protocol"]["benchmark"]["sha256"] == first.record["data"]["sha256"]


def test_a_list_of_classes_that_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same process, and where another working folder has another list of the same name."""
    folders(tmp_path / "data")
    lists = {tmp_path: ["cat\ndog\n", "emu\ndog\n"], tmp_path / "other": ["cat\nemu\n"]}
    found = []
    for folder, texts in lists.items():
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        for text in texts:
            Path("mine.txt").write_text(text)
            result = cl.run("split-imagenet:folder=animals,size=8,tasks=2,subset=mine.txt", data=tmp_path / "data",
                            seeds=1, model="mlp:layers=4", epochs=1)  # fmt: skip
            record = result.record
            found.append((record["data"]["classes"], record["protocol"]["benchmark"]["subset_sha256"]))
    assert [classes for classes, _ in found] == [["cat", "dog"], ["emu", "dog"], ["cat", "emu"]]
    assert len({sha256 for _, sha256 in found}) == 3


@pytest.mark.parametrize("content", [(), ("00.gif",)])
def test_a_new_class_folder_without_an_image_is_noticed(tmp_path: Path, content: tuple[str, ...]) -> None:
    data, folder = load("animals", folders(tmp_path)), tmp_path / "animals" / "train" / "fox"
    folder.mkdir()
    for name in content:
        picture(0).save(folder / name)
    with pytest.raises(BadData, match=r"train/fox has no images that can"):
        load("animals", tmp_path)
    assert load("animals", tmp_path, wanted=Wanted(classes=NAMES)).sha256 == data.sha256, "where it is not asked for"


def test_a_class_of_files_with_other_endings_is_told_so(tmp_path: Path) -> None:
    folder = folders(tmp_path) / "animals" / "train" / "fox"
    folder.mkdir()
    (folder / "00.gif").write_bytes(b"")
    with pytest.raises(BadData, match=r"fox has no images .* and only 1 file with another ending \(\.gif\); put some"):
        load("animals", tmp_path)


def test_images_that_are_gone_are_read_from_where_they_were_packed(tmp_path: Path) -> None:
    data = load("animals", folders(tmp_path))
    (tmp_path / "animals" / "train").rename(tmp_path / "animals" / "elsewhere")
    assert load("animals", tmp_path).sha256 == data.sha256
    with pytest.raises(UnknownName, match=r"no data set is named 'animals'.*no class folders .*animals/train/<class>/"):
        load("animals", tmp_path, wanted=Wanted(6))


def test_a_link_that_leads_back_multiplies_no_images(tmp_path: Path) -> None:
    here = folders(tmp_path) / "animals" / "train" / "dog"
    for number, above in enumerate((here, here.parent, here.parents[1], tmp_path)):
        (here / f"again{number}").symlink_to(above)
    assert len(load("animals", tmp_path).y) == 12


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    """And a link in it to a folder above what it leads to is one to a folder above, too."""
    here = folders(tmp_path) / "animals" / "train" / "dog"
    here.rename(tmp_path / "dogs")
    here.symlink_to(tmp_path / "dogs")
    (tmp_path / "dogs" / "all").symlink_to(tmp_path)
    assert load("animals", tmp_path).y.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (folders(tmp_path) / "animals" / "train" / "dog" / "loop").symlink_to("loop")
    with pytest.raises(BadFolder, match=r"dog/loop cannot be read \(Too many levels of symbolic links\); mend that"):
        load("animals", tmp_path)


def test_an_image_that_goes_from_training_to_tests_is_noticed(tmp_path: Path) -> None:
    """From the end of the one to the beginning of the other, of a set of one class."""
    for part, names in (("train", "abc"), ("val", "xyz")):
        (tmp_path / "one" / part / "cat").mkdir(parents=True)
        for number, name in enumerate(names):
            picture(number).save(tmp_path / "one" / part / "cat" / f"{name}.png")
    assert len(load("one", tmp_path).y) == 3
    (tmp_path / "one" / "train" / "cat" / "c.png").rename(tmp_path / "one" / "val" / "cat" / "c.png")
    with pytest.warns(Notice, match="have changed since they were packed; they are read anew"):
        assert len(load("one", tmp_path).y) == 2


def test_what_a_data_root_lacks_is_told(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "animals" / "val").rename(tmp_path / "animals" / "valid")
    with pytest.raises(BadData, match=r"animals has images to train on and none to test with: put them into .*/val/"):
        load("animals", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFolder, match=r"data root .*file is no folder; give another"):
        load("imagenet", tmp_path / "file")


def test_a_validation_of_too_few_images_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders(tmp_path)
    told: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, line: told.append(line))
    for fraction, count in (("0.2", 1), ("0.25", 0)):
        told.clear()
        plan = config.plan({"benchmark": f"split-imagenet:folder=animals,size=none,tasks=3,validation={fraction}"})
        ready.prepare(plan, [Strategy()], tmp_path, torch.device("cpu"), Progress())
        assert len([line for line in told if f"validation={fraction} sets no image aside" in line]) == count


@pytest.mark.filterwarnings("error")
def test_that_images_are_read_anew_is_said_before_it_takes_long(tmp_path: Path) -> None:
    load("animals", folders(tmp_path))
    (tmp_path / "animals" / "train" / "dog" / "02.png").write_bytes(b"no picture")
    told = "changed since they were packed; they are read anew"
    with pytest.warns(Notice, match=told), pytest.raises(BadData, match=r"train/dog/02\.png cannot be used"):
        load("animals", tmp_path)


def test_a_name_that_looks_like_a_size_is_another_set(tmp_path: Path) -> None:
    folders(tmp_path, name="dup", size=(16, 16))
    folders(tmp_path, name="dup-8", each=3)
    assert load("dup", tmp_path, wanted=Wanted(8)).x.shape == (12, 3, 8, 8)
    assert load("dup-8", tmp_path).x.shape == (9, 3, 8, 8)


def test_the_folder_of_tests_is_the_one_with_classes(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "animals" / "test").mkdir()
    picture(0).save(tmp_path / "animals" / "test" / "0.png")  # as ImageNet's, whose labels are not known
    assert len(load("animals", tmp_path).y_test) == 6


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "animals" / "val" / "yak").mkdir()
    for index in range(3):
        (tmp_path / "animals" / "train" / "cat" / f"0{index}.png").write_bytes(b"no picture")
    (tmp_path / "animals" / "val" / "cat" / "00.png").write_bytes(b"no picture")
    asked = ["run", "split-imagenet:folder=animals,size=8,tasks=3,skip=true", "--seeds", "1", "--data", str(tmp_path)]
    said = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "runs")])
    assert "animals/train has no such class: yak" in said.output
    left_out = "animals: 4 files were left out, which cannot be used (train/cat/00.png{}; ...); a run's record has"
    assert said.exit_code == 0 and left_out.format(": it is no image that can be read") in said.stderr, said.output
    assert said.stderr.count("left out") == 2 and said.stderr.count("/00.png") == 1
    benchmark._load.cache_clear()  # as in another process
    said = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "runs"), "--again"])
    assert left_out.format("") in said.stderr and said.stderr.count("left out") == 1, said.stderr
    (tmp_path / "animals" / "train" / "cat" / "03.png").write_bytes(b"no picture")
    with pytest.raises(BadData, match="train/cat: none of its images can be decoded"):
        load("animals", tmp_path, wanted=Wanted(8, skip=True))


def test_a_process_of_a_run_does_not_say_again_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = config.plan({"benchmark": "split-imagenet:folder=animals,size=8,tasks=3,skip=true", "seeds": 1,
                        "strategies": ["finetune"]})  # fmt: skip
    (folders(tmp_path) / "animals" / "train" / "cat" / "00.png").write_bytes(b"no picture")
    for name in ("in_groups", "Follow"):
        monkeypatch.setattr(parts, name, lambda *given: [])
    monkeypatch.setattr("continual.progress.BETWEEN", 0.0)
    way: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts._alone(plan, tmp_path, torch.device("cpu"), way, {}, None)
    assert capsys.readouterr().err == ""


def test_images_of_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    folders(tmp_path)
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(deep).save(tmp_path / "animals" / "train" / "dog" / "00.png")
    with pytest.raises(BadData, match=r"dog/00.png cannot be used: it is of mode I;16, with more than 8 bits"):
        load("animals", tmp_path)


def test_colours_of_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    """Pillow reads such a file, and cuts off the lower eight."""
    folders(tmp_path)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"".join(b"\0" + bytes(8 * 6) for _ in range(8)))
    deep = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    file = tmp_path / "animals" / "train" / "dog" / "00.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + deep)
    with Image.open(file) as image:
        assert image.mode == "RGB"
    with pytest.raises(BadData, match=r"dog/00.png cannot be used: it is of mode RGB, with more than 8 bits"):
        load("animals", tmp_path)


@pytest.mark.parametrize(("head", "pixel"), [(b"P6 8 8 65535\n", bytes(6)), (b"P6 8 8 1023\n", bytes(6)),
                                             (b"P3 8 8 65535\n", b"0 0 1 "), (b"P5 8 8 999\n", bytes(2))])  # fmt: skip
def test_pixmaps_of_more_than_eight_bits_are_refused(tmp_path: Path, head: bytes, pixel: bytes) -> None:
    file = folders(tmp_path, ending="ppm") / "animals" / "train" / "dog" / "00.ppm"
    file.write_bytes(head + pixel * 64)
    with pytest.raises(BadData, match=r"dog/00.ppm cannot be used: it is of mode .*, with more than 8 bits"):
        load("animals", tmp_path)


@pytest.mark.parametrize(("head", "pixel"), [(b"P6 8 8 255\n", bytes(3)), (b"P6 8 8 100\n", bytes(3)),
                                             (b"P3 8 8 255\n", b"0 0 1 "), (b"P1 8 8\n", b"1 "), (b"P4 8 8\n", b""),
                                             (b"P2 8 8 15\n", b"1 ")])  # fmt: skip
def test_pixmaps_of_eight_bits_and_less_are_taken(tmp_path: Path, head: bytes, pixel: bytes) -> None:
    file = folders(tmp_path, ending="ppm") / "animals" / "train" / "dog" / "00.ppm"
    file.write_bytes(head + (pixel * 64 or bytes(8)))
    assert len(load("animals", tmp_path).y) == 12


# ---- normalisation by channel


def test_channels_are_normalised_each_by_its_own() -> None:
    data = small("one", ("x", "y"), (3, 4, 4))
    from continual.streams.stream import split

    stream = split(data, tasks=2, normalize="channel")
    shown = stream.samples.images(torch.arange(10), torch.float64)
    assert shown.mean((0, 2, 3)).abs().max() < 1e-6 and (shown.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6
    known = split(data, tasks=2, normalize="imagenet").samples.images(torch.arange(10), torch.float64)
    wanted = (data.x.double() / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None].double()) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None].double()
    torch.testing.assert_close(known, wanted, rtol=1e-5, atol=1e-5)


def test_a_sequence_of_images_that_are_no_levels_is_refused_and_what_stands_for_1_is_part_of_it(tmp_path: Path) -> None:
    """Else floats are cut off at 0 and 1, and what was packed of other levels is taken for these."""
    y = [0, 1, 0, 1]
    levels = np.arange(4 * 16, dtype=np.uint8).reshape(4, 1, 4, 4) % 17
    shown = []
    for top in (16, 255, 32):
        parts = [Data.from_arrays(levels, y, levels, y, name, top=top) for name in ("a", "b")]
        shown.append(int(sets.load_joined(parts, 4, tmp_path).x.max()))
    assert shown == [255, 16, round(255 / 2)]
    outside = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 1, 4, 4)
    fine = Data.from_arrays(levels, y, levels, y, "a", top=16)
    with pytest.raises(
        BadData, match=r"b: images of a sequence have pixels from 0 .* here 1, and these go from -1 to 1"
    ):
        joined([fine, Data.from_arrays(outside, y, outside, y, "b")], 4)


def test_a_sequence_of_a_benchmark_whose_file_changed_is_of_what_is_there(tmp_path: Path) -> None:
    y = np.arange(8) % 2

    class Own(cl.benchmarks.SplitDigits):
        def load(self, root: Path) -> Data:
            x = np.load(tmp_path / "mine.npy")
            return Data.from_arrays(x, y, x, y, "mine")

    seen = []
    for level in (10, 200):
        np.save(tmp_path / "mine.npy", np.full((8, 1, 4, 4), level, np.uint8))
        look_again()
        made = Sequence.of([Own(tasks=1), Own(tasks=1)], size=4)
        seen.append((int(made.stream(0, tmp_path).samples.pixels.max()), made.facts(tmp_path)["sha256"]))
    assert [level for level, _ in seen] == [10, 200] and seen[0][1] != seen[1][1]


def test_a_file_that_a_list_has_in_two_classes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "val"
    folder.mkdir()
    (folder / "val_annotations.txt").write_text("a.png\tcat \nb.png\tdog\na.png\tcat\n")
    assert images.class_folders(folder) == ["cat", "dog"]
    (folder / "val_annotations.txt").write_text("a.png\tcat\nb.png\tdog\na.png\tdog\n")
    with pytest.raises(BadData, match=r"has a\.png in two classes, cat and dog"):
        images.class_folders(folder)
