"""A YAML file as a mapping of plain values; whatever else is in it is a mistake that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from continual import plugins
from continual.errors import BadOption, brief, is_text

DEEPEST = 50
"""So many mappings and lists may lie in each other."""
MOST = 100_000
"""So many values a file may have, those that stand in several places (``*name``) counted in each."""


class Loader(yaml.SafeLoader):
    """YAML where a name that is given twice is a mistake; PyYAML takes the last silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """See :class:`yaml.SafeLoader`."""
        seen: set[Any] = set()
        for name in (self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")):
            if not isinstance(name, str | int | float | bool | None):
                raise BadOption(f"{brief(name)} is no name")
            if name in seen:
                raise BadOption(f"{brief(name)} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _plain_number(loader: Loader, node: yaml.ScalarNode) -> Any:
    """A number that everybody reads alike; YAML 1.1 takes 010 for eight, and 1:10 for seventy."""
    digits = node.value.lstrip("+-")
    if ":" in digits or (digits[:1] == "0" and digits.replace("_", "").isdigit() and len(digits) > 1):
        raise BadOption(f"{node.value}: YAML reads a number with a zero in front, or a colon in it, in another base; "
                        f"write it plainly, or as text: '{node.value}'")  # fmt: skip
    kind = node.tag.rpartition(":")[2]
    return getattr(loader, f"construct_yaml_{kind}")(node)


for _kind in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _plain_number)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        BadFolder: a file that cannot be read or is no text.
        BadOption: a file that is not YAML, is no mapping of names, gives a name twice, lies in itself, has text in it
            that cannot be written, or is deeper or larger (through names for parts of it that are used again and again)
            than a file of a run or a table can be.
    """
    text = plugins.read_text(path)
    try:
        loader = Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                _count(root, {})
            found = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except BadOption as mistake:
        raise BadOption(f"{path}: {mistake}") from None
    except RecursionError:
        raise BadOption(f"{path}: more than {DEEPEST} mappings and lists lie in each other") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # PyYAML lets through what Python says of a number, date or tag that it cannot make
        raise BadOption(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise BadOption(f"{path}: it takes a mapping of names, such as 'benchmark: split-mnist'")
    return found


def _count(node: yaml.Node, known: dict[int, int], depth: int = 0) -> int:
    """The number of values in a node, its aliases written out; BadOption where it has no end, or none in sight."""
    if isinstance(node, yaml.ScalarNode) and not is_text(node.value):
        raise BadOption(f"{brief(node.value)} has a NUL in it, or cannot be written as UTF-8")
    if id(node) not in known:
        if depth > DEEPEST:
            raise RecursionError
        known[id(node)] = 0  # as long as it is being counted
        value = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for one in value for part in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in parts)
    if not known[id(node)]:
        raise BadOption("a part of it lies in itself")
    if known[id(node)] > MOST:
        raise BadOption(f"it has more than {MOST} values; such a file has a few")
    return known[id(node)]
