"""What a file in ``benchmarks/`` derives from: a data set by name, from which each seed gets its stream."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from continual.errors import BadOption
from continual.options import option
from continual.streams.stream import Permuted, Rotated, Split, StreamOptions

if TYPE_CHECKING:
    from continual.streams.data import Data
    from continual.streams.sets import Wanted
    from continual.streams.stream import Stream


@functools.lru_cache(maxsize=4)
def _load(name: str, root: Path, wanted: Wanted | None = None) -> Data:
    from continual.streams.sets import load

    return load(name, root, wanted=wanted)


@functools.lru_cache(maxsize=1)
def _joined(parts: tuple[Data, ...], size: int) -> Data:
    from continual.streams.data import joined

    return joined(parts, size)


@dataclass(frozen=True)
class Benchmark(StreamOptions):
    """A recipe for streams; ``data`` names the data set."""

    data: ClassVar[str]

    def stream(self, seed: int, root: Path) -> Stream:
        """The stream of one seed, its data read from (or through) the data root."""
        return self.build(self.load(root), seed)

    def load(self, root: Path) -> Data:
        """The data, of which every seed's stream is made."""
        return _load(self.data, root)

    def facts(self) -> dict[str, Any]:
        """What a run's record says beside the options."""
        return {}


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

    def load(self, root: Path) -> Data:
        """See :meth:`Benchmark.load`."""
        return _load(self.source(), root, self.wanted())

    def source(self) -> str:
        """The name of the data set, or of a folder of the data root."""
        return self.data

    def wanted(self) -> Wanted:
        """What is wanted of it."""
        from continual.streams.sets import Wanted

        return Wanted(self.size, self.classes(), self.skip)

    def classes(self) -> tuple[str, ...] | None:
        """The classes that are wanted; none: all."""
        return None


@dataclass(frozen=True)
class FolderBenchmark(ImageBenchmark):
    """Images in class folders of the data root, all classes or a named list of them."""

    folder: str = option("imagenet", "folder of the data root, with train/<class>/ and val/<class>/ or test/<class>/")
    subset: str = option("all", "all classes, a list in configs/classes/, or the path of a file with one class a line")

    def check(self) -> None:
        """The folder lies in the data root, and the list can be read."""
        if not self.folder or self.folder != Path(self.folder).name or self.folder.startswith("."):
            raise BadOption(f"folder={self.folder}: it takes the name of a folder in the data root")
        self.classes()

    def source(self) -> str:
        """See :meth:`ImageBenchmark.source`."""
        return self.folder

    def classes(self) -> tuple[str, ...] | None:
        """See :meth:`ImageBenchmark.classes`."""
        return None if self.subset == "all" else class_list(self.subset)

    def facts(self) -> dict[str, Any]:
        """The hash of the list, by which the same name with other classes is another run."""
        found = self.classes()
        return {} if found is None else {"subset_sha256": hashlib.sha256("\n".join(found).encode()).hexdigest()}


@functools.lru_cache
def class_list(name: str) -> tuple[str, ...]:
    """The classes of a list in ``configs/classes/``, or of a file: one a line, ``#`` begins a comment."""
    import importlib.resources

    folder = Path(str(importlib.resources.files("continual.configs"))) / "classes"
    known = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    path = known.get(name, Path(name))
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadOption(f"subset={name}: it takes all, {', '.join(known)}, or a file with one class a line "
                        f"({error})") from None  # fmt: skip
    found = tuple(line for line in lines if line)
    if not found or len(set(found)) < len(found):
        raise BadOption(f"subset={name}: {path} lists no class, or one of them twice")
    return found


@dataclass(frozen=True)
class Sequence(Benchmark):
    """Data sets one after the other, each divided into tasks of its own, at a common resolution and in colour.

    Made with :meth:`of`, or with ``sequence: [...]`` in a run's file.
    """

    size: int = option(32, "pixels of the images' sides", ge=1, le=1024)
    members: tuple[SplitBenchmark, ...] = field(default=(), init=False)

    @classmethod
    def of(cls, members: Iterable[Any], **options: Any) -> Self:
        """The sequence of benchmarks whose tasks divide classes; ``options`` are those of the whole."""
        made, given = cls.read(options, "a sequence"), tuple(members)
        for one in given:
            if not isinstance(one, SplitBenchmark):
                raise BadOption(f"a sequence takes benchmarks that divide classes, such as split-mnist, not {one!r}")
        if len(given) < 2:
            raise BadOption(f"a sequence takes two or more benchmarks, not {len(given)}")
        object.__setattr__(made, "members", given)
        return made

    def parts(self) -> tuple[SplitBenchmark, ...]:
        """The benchmarks whose tasks follow each other."""
        return self.members

    def load(self, root: Path) -> Data:
        """See :meth:`Benchmark.load`."""
        return _joined(tuple(part.load(root) for part in self.parts()), self.size)

    def build(self, data: Data, seed: int = 0) -> Stream:
        """See :meth:`StreamOptions.build`."""
        groups: list[list[int]] = []
        start = 0
        for part, classes in zip(self.parts(), data.joined, strict=True):
            groups += [[start + label for label in labels] for labels in part.groups(classes, seed, part.data)]
            start += classes
        return self.assemble(data, groups, seed)

    def facts(self) -> dict[str, Any]:
        """See :meth:`Benchmark.facts`."""
        return {name: fact for part in self.parts() for name, fact in part.facts().items()}
