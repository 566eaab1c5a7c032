"""Where checkpoints lie: the files that a run which was killed goes on from, beside the place of its result.

    <out>/<experiment>/.checkpoints-<strategy>-<8 hex>/<8 hex>/how.json
                                                             /<seeds>.task-0002.step-000001200.safetensors
                                                             /<seeds>.finished.safetensors

The last digits are those of what the checkpoints were made by: configuration, code, versions, device. A file is written
under another name and renamed, so it is there whole or not at all; it holds tensors and JSON, and nothing that could be
executed. Reading verifies its checksums, its name and what it was made by: the JSON has a checksum of the tensors, and
beside it stands one of the JSON, so that it can be read alone. Several processes that do the same run at once may
share a folder: they write the same bytes, and whoever is through first takes the folder away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from continual import files
from continual.errors import BadFolder
from continual.results import store

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
LAST = 2
"""How many checkpoints of a group of seeds are kept."""
TRIES = 5
HOW, END, WRITING = "how.json", ".safetensors", "writing"
MEANING = {
    "run": "another configuration", "asked": "another way to compute", "device": "another device",
    "versions": "other versions", "code": "other code", "how": "another way of doing it",
}  # fmt: skip
NAMED = 3
"""So many differences are named."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one strategy's run.

    ``home`` is the folder that goes when the run is stored. ``made``: what they are made by, in JSON's own types under
    the names of ``MEANING``. ``settled``: how the run is done, once that is known (see :meth:`agree`).
    """

    home: Path
    made: dict[str, Any]
    settled: dict[str, Any] | None = None

    @classmethod
    def of(cls, out: Path, record: dict[str, Any], made: dict[str, Any]) -> Checkpoints:
        """Those of the run of a record that is stored under ``out``; nothing is read or written."""
        place = store.folder(out, record)
        return cls(place.with_name(f".checkpoints-{place.name}"), store.plain(made))

    @property
    def folder(self) -> Path:
        """Where those of this configuration, code, versions and device lie."""
        return self.home / store.digest(store.canonical(self.made))[:8]

    # ---- writing

    def write(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write a file of tensors and facts (JSON's own types), or replace it; OSError where that cannot be done."""
        import torch
        from safetensors.torch import save

        # a copy in any case, since contiguous() lets a dimension of one have any stride
        copied = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()
        }
        said = {"format": FORMAT, "name": name, "made": self._by, "facts": facts, "tensors": _sum(copied)}
        text = json.dumps(said, allow_nan=False)
        self._put(f"{name}{END}", save(copied, {"checkpoint": text, "sha256": _digest(text)}), Path.replace)

    @property
    def _by(self) -> dict[str, Any]:
        return {**self.made, "how": self.settled}

    def agree(self, how: dict[str, Any], mark: str) -> tuple[dict[str, Any], str]:
        """How the run is done, and a mark that no other has: what is there already, or these from now on.

        OSError where it cannot be written.
        """
        if self.how() is None:  # a damaged one stands in nobody's way
            files.remove(self.folder / HOW)
        said = {"how": how, "mark": mark}
        self._put(HOW, json.dumps(said | {"sha256": _digest(said)}).encode(), _unless_there)
        return self.how() or (how, mark)

    def _put(self, name: str, content: bytes, place: Callable[[Path, Path], Any]) -> None:
        """A file that is whole before it has its name; whatever goes wrong, nothing half-written stays."""
        target = self.folder / name
        for left in reversed(range(TRIES)):
            temporary = store.beside(target, WRITING)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                store.write_file(temporary, content)
                place(temporary, target)
                store.sync(self.folder)
                return
            except FileNotFoundError:  # another process was through with the run, and took the folder away
                if not left:
                    raise
            finally:
                temporary.unlink(missing_ok=True)

    def keep_last(self, group: str) -> None:
        """Remove a group's checkpoints but for the last ones."""
        for path in self.of_group(group)[LAST:]:
            files.remove(path)

    def clear(self, group: str) -> None:
        """Remove all of a group's checkpoints, which has finished, and what was being written for it."""
        for path in [*self.of_group(group), *self.folder.glob(f".{WRITING}-{group}.*")]:
            files.remove(path)

    def set_aside(self, path: Path) -> None:
        """Let a file that was refused stand in nobody's way; it stays until the run is stored."""
        with contextlib.suppress(OSError):
            path.rename(path.with_suffix(".refused"))

    def tidy(self) -> None:
        """Remove what says how the run is done, where nothing of it is done."""
        if not list(self.folder.glob(f"*{END}")):
            files.remove(self.folder / HOW)
            for folder in (self.folder, self.home, self.home.parent):
                with contextlib.suppress(OSError):  # something else is in it, or it is not there
                    folder.rmdir()

    def forget(self) -> None:
        """Remove everything, also what was made by other code and so on: the run is stored."""
        gone = store.beside(self.home, "removed")
        with contextlib.suppress(OSError):
            self.home.rename(gone)  # at once, so that nobody finds a part of it
        for one in (gone, *gone.parent.glob(f".removed-{self.home.name}-*")):
            files.remove(one)

    # ---- reading

    def of_group(self, group: str) -> list[Path]:
        """The checkpoints of a group, the furthest first."""
        return sorted(self.folder.glob(f"{group}.task-*{END}"), reverse=True)

    def how(self) -> tuple[dict[str, Any], str] | None:
        """How the run is done and its mark, if it was begun; what cannot be read, or was changed, counts as nothing."""
        try:
            found = json.loads(files.read_text(self.folder / HOW))
            whole = isinstance(found, dict) and found.pop("sha256", None) == _digest(found)
        except (OSError, ValueError, RecursionError):
            return None
        return (found["how"], found["mark"]) if whole else None

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and facts of a file; BadFolder with the reason where it is damaged or made by something else."""
        tensors, said = _opened(path, tensors=True)
        if reason := _foreign(path, said, self._by):
            raise BadFolder(f"{path} is of {reason}")
        if _sum(tensors) != said["tensors"]:
            raise BadFolder(_changed(path))
        return tensors, said["facts"]

    def facts(self) -> dict[str, dict[str, Any]]:
        """The facts of all files that can be gone on from, by name, without a look at their tensors."""
        found = {}
        for path in sorted(self.folder.glob(f"*{END}")):
            with contextlib.suppress(BadFolder):
                said = _opened(path)[1]
                if not _foreign(path, said, self._by):
                    found[said["name"]] = said["facts"]
        return found

    def others(self) -> list[tuple[Path, str]]:
        """Folders with checkpoints of other code, versions and so on, the newest first, each with what is other."""
        newest = [max(one.glob(f"*{END}"), key=_written, default=None) for one in _listed(self.home) if one.is_dir()]
        found = sorted((file for file in newest if file), key=_written, reverse=True)
        return [(file.parent, reason) for file in found if (reason := _reason(file, self._by))]


def _unless_there(temporary: Path, target: Path) -> None:
    """Give a file its name unless another has it, also if another process gave it that a moment ago."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return
    except OSError:  # not every file system has links
        if not target.exists():
            temporary.replace(target)


def _listed(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process has just removed it
        return 0.0


def _digest(said: Any) -> str:
    return store.digest(store.canonical(said))


def _sum(tensors: dict[str, Tensor]) -> str:
    """A checksum of all tensors and their names."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _opened(path: Path, tensors: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, if asked for, and the JSON of a file, which is verified; BadFolder where they cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        files.check_ordinary(path)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if not header.keys() >= {"checkpoint", "sha256"}:
                raise BadFolder(f"{path} is not a checkpoint")
            if _digest(header["checkpoint"]) != header["sha256"]:
                raise BadFolder(_changed(path))
            found = {name: file.get_tensor(name).clone() for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:  # PyTorch's word for a shape that no tensor can have
        raise BadFolder(f"{path} is damaged: {' '.join(str(error).split())}") from error
    return found, json.loads(header["checkpoint"])


def _changed(path: Path) -> str:
    return f"{path} is damaged: its checksum is not the one that it was written with"


def _reason(path: Path, made: dict[str, Any]) -> str:
    """What is other about a file, or wrong with it."""
    try:
        return _foreign(path, _opened(path)[1], made)
    except BadFolder:
        return "no known format"


def _foreign(path: Path, said: dict[str, Any], made: dict[str, Any]) -> str:
    """What a checkpoint was made by or for that this run is not; nothing where they agree."""
    if said["format"] != FORMAT:
        return f"format {said['format']!r}; this version reads format {FORMAT}"
    if path.name != f"{said['name']}{END}":
        return f"another name, {said['name']}"
    reasons = []
    for kind, meaning in MEANING.items():
        old, new = (store.leaves(one.get(kind)) for one in (said["made"], made))
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        told = [name if kind == "code" else f"{name} {old.get(name)}, not {new.get(name)}" for name in names[:NAMED]]
        rest = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
        if names:
            reasons.append(f"{meaning} ({'; '.join([*told, *rest])})")
    return " and ".join(reasons)
