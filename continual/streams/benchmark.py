"""What a file in ``benchmarks/`` derives from: a data set by name, from which each seed gets its stream."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from continual import files
from continual.errors import BadOption, brief, is_text
from continual.options import option, options_of, typed
from continual.streams.stream import Permuted, Rotated, Split, StreamOptions

if TYPE_CHECKING:
    from continual.streams.data import Data
    from continual.streams.sets import Source, Wanted
    from continual.streams.stream import Stream


def look_again() -> None:
    """Files may have changed since they were last looked at: a run begins."""
    _source.cache_clear()
    class_list.cache_clear()


@functools.lru_cache(maxsize=256)
def _source(name: str, root: Path, wanted: Wanted) -> Source:
    from continual.streams.sets import files_of

    return files_of(name, root, wanted)


@functools.lru_cache(maxsize=64)
def _load(name: str, root: Path, wanted: Wanted, made_of: Source) -> Data:
    from continual.streams.sets import load

    return load(name, root, wanted=wanted, made_of=made_of)


@functools.lru_cache(maxsize=1)  # the seeds of a run share it
def _joined(parts: tuple[Data, ...], size: int, root: Path) -> Data:
    from continual.streams.sets import load_joined

    return load_joined(parts, size, root)


@dataclass(frozen=True)
class Benchmark(StreamOptions):
    """A recipe for streams; ``data`` names the data set."""

    data: ClassVar[str]

    def stream(self, seed: int, root: str | Path | None = None) -> Stream:
        """The stream of one seed, its data read from (or through) the data root; none: the usual one."""
        from continual.streams.sets import data_root

        return self.build(self.load(data_root(root)), seed)

    def load(self, root: Path) -> Data:
        """The data, of which every seed's stream is made."""
        return _load(self.source(), root, self.wanted(), self.made_of(root))

    def source(self) -> str:
        """The name of the data set, or of a folder of the data root."""
        return self.data

    def wanted(self) -> Wanted:
        """What of it is wanted."""
        from continual.streams.sets import Wanted

        return Wanted()

    def made_of(self, root: Path) -> Source:
        """The files that it is made of, as they were when a run last began."""
        return _source(self.source(), root, self.wanted())

    def facts(self, root: Path) -> dict[str, Any]:
        """What a run is recognised by beside the options: nothing, where the name says what the data is."""
        return {}

    def task_names(self) -> list[str]:
        """What tables and pictures call the tasks; nothing, where their numbers say all."""
        return []


@dataclass(frozen=True)
class SplitBenchmark(Split, Benchmark):
    """Tasks that divide the classes."""


@dataclass(frozen=True)
class PermutedBenchmark(Permuted, Benchmark):
    """Tasks that all have every class, each with its own order of the pixels (the first task: as they are)."""


@dataclass(frozen=True)
class RotatedBenchmark(Rotated, Benchmark):
    """Tasks that all have every class, each with the images turned by one angle."""


@dataclass(frozen=True)
class ImageBenchmark(SplitBenchmark):
    """Tasks that divide the classes of images, which may be resized when they are packed."""

    size: int | None = option(None, "pixels of the images' sides; none: as they are", ge=1, le=1024)
    skip: bool = option(False, "leave out image files that cannot be decoded, instead of stopping")

    def wanted(self) -> Wanted:
        """See :meth:`Benchmark.wanted`."""
        from continual.streams.sets import Wanted

        return Wanted(self.size, self.classes(), self.skip)

    def classes(self) -> tuple[str, ...] | None:
        """The classes that are wanted; none: all."""
        return None

    def facts(self, root: Path) -> dict[str, Any]:
        """The checksum of the images: others in the same folders, or other classes in a list, are another run."""
        return {"sha256": self.load(root).sha256}


@dataclass(frozen=True)
class FolderBenchmark(ImageBenchmark):
    """Images in class folders of the data root, all classes or a named list of them."""

    folder: str = option("imagenet", "folder of the data root, with train/<class>/ and val/<class>/ or test/<class>/")
    subset: str = option("all", "all classes, a list in configs/classes/, or the path of a file with one class a line")

    def check(self) -> None:
        """The folder lies in the data root, and the list can be read."""
        super().check()
        if not self.folder or self.folder != Path(self.folder).name or self.folder.startswith("."):
            raise BadOption(f"folder={self.folder}: it takes the name of a folder in the data root")
        self.classes()

    def source(self) -> str:
        """See :meth:`Benchmark.source`; a folder that is called like a set of other files would not be read."""
        from continual.streams.sets import CIFAR, PUBLISHED

        if self.folder in PUBLISHED and self.folder not in CIFAR:
            raise BadOption(f"folder={self.folder}: a data set has this name that is not read from such a folder; give "
                            "the folder another name")  # fmt: skip
        return self.folder

    def classes(self) -> tuple[str, ...] | None:
        """See :meth:`ImageBenchmark.classes`."""
        return None if self.subset == "all" else class_list(self.subset)

    def facts(self, root: Path) -> dict[str, Any]:
        """See :meth:`ImageBenchmark.facts`; and the hash of the list of classes."""
        found = self.classes()
        listed = {} if found is None else {"subset_sha256": hashlib.sha256("\n".join(found).encode()).hexdigest()}
        return super().facts(root) | listed


@functools.lru_cache
def class_list(name: str) -> tuple[str, ...]:
    """The classes of a list in ``configs/classes/``, or of a file: one a line, ``#`` begins a comment."""
    import importlib.resources

    folder = Path(str(importlib.resources.files("continual.configs"))) / "classes"
    known = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    path = known.get(name, Path(name))
    try:
        lines = [line.partition("#")[0].strip() for line in files.read_text(path).splitlines()]
    except (OSError, ValueError) as error:  # no text, or a NUL in the name
        raise BadOption(f"subset={name}: it takes all, {', '.join(known)}, or a file with one class a line "
                        f"({error})") from None  # fmt: skip
    found = tuple(line for line in lines if line)
    for one in found:
        if not is_text(one) or one != Path(one).name or one.startswith("."):
            raise BadOption(f"subset={name}: {path} lists {brief(one)}, which is no name of a folder")
    if not found:
        raise BadOption(f"subset={name}: {path} lists no class; it takes one a line")
    for one in found:
        if found.count(one) > 1:
            raise BadOption(f"subset={name}: {path} lists {one} twice; name it once")
    return found


@dataclass(frozen=True)
class Sequence(Benchmark):
    """Data sets one after the other, each divided into tasks of its own, at a common resolution and in colour.

    Made with :meth:`of`, or with ``sequence: [...]`` in a run's file.
    """

    OF_THE_WHOLE: ClassVar[tuple[str, ...]] = (*options_of(StreamOptions), "size")
    """The options that a sequence has and its members do not."""

    size: int = option(32, "pixels of the images' sides", ge=1, le=1024)
    members: tuple[SplitBenchmark, ...] = field(default=(), init=False)

    @classmethod
    def of(cls, members: Iterable[Any], said: Iterable[set[str] | None] = (), /, **options: Any) -> Self:
        """The sequence of benchmarks whose tasks divide classes; ``options`` are those of the whole.

        What is the whole's, the members have from it; they may say the same, but nothing else. ``said`` names the
        options that each was given; where that is not known, those are taken for given that are no defaults.
        """
        made = cls.read(options, "a sequence")
        pairs = itertools.zip_longest(members, said)
        object.__setattr__(made, "members", tuple(made._member(one, given) for one, given in pairs))
        made.parts()
        return made

    def _member(self, one: Any, said: set[str] | None) -> SplitBenchmark:
        """A benchmark as it is in this sequence."""
        if not isinstance(one, SplitBenchmark):
            raise BadOption("a sequence takes benchmarks that divide classes, such as split-mnist, not "
                            f"{type(one).__name__}")  # fmt: skip
        if type(one).build is not Split.build:
            raise BadOption(f"a sequence takes the tasks of {type(one).__name__} from its method groups(classes, seed, "
                            "name), which gives the classes of each; it has a method build, which a sequence does not "
                            "call: write groups instead")  # fmt: skip
        own = options_of(type(one))
        whole = {name: getattr(self, name) for name in self.OF_THE_WHOLE if name in own}
        for name, value in whole.items():
            found = getattr(one, name)
            if found != value and (found != own[name].default if said is None else name in said):
                raise BadOption(f"a sequence's {one.source()} was given {name}={typed(found)}, which is one for the "
                                f"whole sequence: write {name} beside 'sequence'")  # fmt: skip
        return replace(one, **whole)

    def parts(self) -> tuple[SplitBenchmark, ...]:
        """The benchmarks whose tasks follow each other, with images of the sequence's size.

        :class:`~continual.errors.BadOption` where they are not two or more.
        """
        if len(self.members) < 2:
            raise BadOption(f"a sequence takes two or more benchmarks, not {len(self.members)}")
        return self.members

    def task_names(self) -> list[str]:
        """Each task has the name of its data set, numbered where that has several."""
        names = [part.source() for part in self.parts() for _ in range(part.tasks)]
        return [
            f"{name} {names[: number + 1].count(name)}" if names.count(name) > 1 else name
            for number, name in enumerate(names)
        ]

    def load(self, root: Path) -> Data:
        """See :meth:`Benchmark.load`."""
        return _joined(tuple(part.load(root) for part in self.parts()), self.size, root)

    def build(self, data: Data, seed: int = 0) -> Stream:
        """See :meth:`StreamOptions.build`."""
        groups: list[list[int]] = []
        start = 0
        for part, classes in zip(self.parts(), data.joined, strict=True):
            groups += [[start + label for label in labels] for labels in part.in_order(classes, seed, part.source())]
            start += classes
        return self.assemble(data, groups, seed)

    def facts(self, root: Path) -> dict[str, Any]:
        """See :meth:`ImageBenchmark.facts`; and the hashes of the lists of classes, as ``a+b``."""
        found = [part.facts(root) for part in self.parts()]
        names = dict.fromkeys(name for one in found for name in one)
        listed = {name: "+".join(str(one[name]) for one in found if name in one) for name in names}
        return listed | {"sha256": self.load(root).sha256}
