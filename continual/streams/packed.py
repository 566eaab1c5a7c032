"""Tensors in a file of the data root: written in one piece, memory-mapped and verified when they are read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from continual import files
from continual.errors import BadData, BadFolder
from continual.streams.data import content, digest, in_parts

if TYPE_CHECKING:
    from typing import BinaryIO

    from torch import Tensor


class Outdated(BadData):
    """A packed file of another version of this package."""


KINDS = {torch.uint8: "U8", torch.int64: "I64", torch.float32: "F32", torch.float64: "F64"}


def write(file: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write the file in one piece, or leave nothing; who writes it at the same time writes the same.

    Raises :class:`~continual.errors.BadFolder` where it cannot be written.
    """
    facts = facts | {"sha256": _checksum(facts, tensors)}
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with folder(file.parent):
            try:
                with open(temporary, "xb") as stream:
                    _write(stream, tensors, facts)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, file)
                files.clear(file.parent, ".*.safetensors.*")
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unusable(file.parent, "written", error) from error


def _write(stream: BinaryIO, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """A safetensors file: the length of its header, the header, the tensors; the library would hold all of it twice."""
    header: dict[str, Any] = {"__metadata__": facts}
    ordered = sorted(tensors, key=lambda part: -tensors[part].element_size())  # each begins at a multiple of its size
    start = 0
    for part in ordered:
        tensor = tensors[part]
        end = start + tensor.nbytes
        header[part] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for part in ordered:
        for some in in_parts(tensors[part]):
            stream.write(content(some))


def read(
    file: Path, wanted: dict[str, str], parts: tuple[str, ...], then: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, which are verified, and its other facts.

    Raises:
        Outdated: for a file whose ``format`` is the wanted one but for its number.
        BadData: for a damaged file, and for one without these ``parts`` or the ``wanted`` facts; ``then`` says what
            happens when it has been deleted.
        BadFolder: where it may not be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open(file, "rb"):  # safetensors takes a file that may not be read for one that is not there
            pass
        with safe_open(file, "pt") as packed:
            facts = dict(packed.metadata() or {})
            found = packed.keys()
            tensors = {part: packed.get_tensor(part) for part in found}
    except PermissionError as error:
        raise unusable(file, "read", error) from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise damaged(file, f"is damaged ({error})", then) from None
    other = f"is not '{wanted['name']}' as this version packs it"
    if set(tensors) != set(parts):
        raise damaged(file, other, then)
    if facts.pop("sha256", "") != _checksum(facts, {part: tensors[part] for part in parts}):
        raise damaged(file, "is damaged (its SHA-256 is not the one it was written with)", then)
    if differing := [name for name, value in wanted.items() if facts.get(name) != value]:
        kinds = {said.get("format", "").rpartition(" ")[0] for said in (facts, wanted)}
        if differing == ["format"] and len(kinds) == 1:
            raise Outdated(f"{file} was packed by another version; delete this file, and {then}")
        raise damaged(file, other, then)
    return tensors, facts


def _checksum(facts: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """The SHA-256 over what a file says and the checksum of what it holds."""
    return hashlib.sha256(json.dumps([facts, digest(tensors)], sort_keys=True).encode()).hexdigest()


def damaged(file: Path, fault: str, then: str) -> BadData:
    """A file that is not what it should be."""
    return BadData(f"{file} {fault}; delete this file, and {then}")


def unusable(path: Path, verb: str, error: OSError) -> BadFolder:
    """A path that cannot be read or written."""
    reason = error.strerror or error
    return BadFolder(f"{path} cannot be {verb} ({reason}); give another data root with --data or $CONTINUAL_DATA")


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """Within it the folder is there; what had to be made for it goes again where nothing was put into it."""
    made = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # it holds something now
                one.rmdir()
