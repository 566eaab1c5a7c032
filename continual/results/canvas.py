"""What every picture is drawn on and with: axes, colours, markers, text as it is, and files (the extra ``plots``)."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from continual import files
from continual.errors import BadFolder, BadOption, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which colour-blind people can tell apart, without black (means have it) and pale yellow."""
MARKERS = "os^Dv*XP"  # a second sign beside the colour, for a print without colours
SVG = "http://www.w3.org/2000/svg"


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise BadOption("pictures need Matplotlib: pip install 'continual[plots]'") from error
    return matplotlib


def new_axes(width: float = 4.8, height: float = 3.4) -> Axes:
    """The axes of a new figure, which a notebook shows."""
    _matplotlib()
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(width, height), layout="constrained").add_subplot()


def new_figure(width: float, height: float) -> Figure:
    """A figure for a file, which nothing but the caller keeps."""
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def colour(number: int, count: int) -> Any:
    """A colour of its own for each of ``count`` lines: of many, from dark to light."""
    return COLOURS[number] if count <= len(COLOURS) else _matplotlib().colormaps["viridis"](0.92 * number / (count - 1))


def marker(number: int) -> str:
    """A marker for a line; there are eight."""
    return MARKERS[number % len(MARKERS)]


def ink_on(shade: Any) -> str:
    """Black or white, whichever is read more easily on a colour: the greater contrast after WCAG 2."""
    from matplotlib.colors import to_rgb

    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(shade)]
    light = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "white" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "black"


def plain(text: str, length: int = 60) -> str:
    """Text that is drawn as it is (Matplotlib would read ``$`` as mathematics), shortened where it is long."""
    shown = one_line(text)
    shown = shown if len(shown) <= length else f"{shown[: length - 1]}…"
    return shown.replace("$", r"\$")


def shortened(names: Sequence[str], length: int) -> list[str]:
    """Names of at most so many letters that differ where the names do: what several begin with alike is left out."""
    shown = [plain(name, length) for name in names]
    return [_told_apart(name, [other for other, text in zip(names, shown, strict=True) if text == own], length)
            if shown.count(own) > 1 else own for name, own in zip(names, shown, strict=True)]  # fmt: skip


def _told_apart(name: str, alike: list[str], length: int) -> str:
    """The beginning of a name, and what follows what it has in common with names that begin alike."""
    common = next((i for i, signs in enumerate(zip(*alike, strict=False)) if len(set(signs)) > 1), min(map(len, alike)))
    begins = max((name.rfind(sign, 0, common) + 1 for sign in ",:+"), default=0)  # of the option that differs
    return plain(f"{name[:4]}…{name[begins:]}", length) if begins > 4 else plain(name, length)


def titled(name: str, width: int = 40) -> str:
    """A name as a title of at most two lines, broken where an option ends."""
    shown = one_line(name)
    if len(shown) <= width:
        return plain(shown, width)
    ends = [i + 1 for i, sign in enumerate(shown[:width]) if sign in ",+: "] or [width]
    return f"{plain(shown[: ends[-1]], width)}\n{plain(shown[ends[-1] :], width)}"


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """Text in a file stays text; a letter that Matplotlib's font lacks is left to the viewer's fonts."""
    usual = {"svg.fonttype": "none", "svg.hashsalt": "continual", "font.sans-serif": ["DejaVu Sans", "Arial"]}
    with warnings.catch_warnings(), _matplotlib().rc_context(usual):
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def check(file: Path) -> None:
    """Before there is a picture: :class:`~continual.errors.BadOption` where none of this name can be drawn.

    :class:`~continual.errors.BadFolder` where its folder is not there.
    """
    _matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in known:
        raise BadOption(f"--picture {file}: a picture's name ends in one of {', '.join(sorted(known))}")
    if not file.parent.is_dir():
        raise BadFolder(
            f"{file} cannot be written (there is no folder {file.parent}); make it, or give another --picture"
        )


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format of the file's ending (.png, .svg, .pdf).

    Raises :class:`~continual.errors.BadOption` for another ending, :class:`~continual.errors.BadFolder` where it cannot
    be written.
    """
    check(file)
    with files.refused(f"{file} cannot be written"), _written(), files.whole(file) as beside:
        figure.savefig(beside, dpi=150)


def svg(figure: Figure, name: str, title: str) -> str:
    """A figure as an SVG element that stands alone or in a page: its title is told, its ids begin with ``name``."""
    text = io.StringIO()
    with _written():
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(text.getvalue())
    for one in [one for one in root if one.tag.endswith("metadata")]:
        root.remove(one)
    _rename(root, name)
    for one in root.iter():
        for key in {"d", "x", "y"} & set(one.keys()):  # a hundredth of a point is seen by nobody, and files are smaller
            one.set(key, re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", one.get(key, "")))
    root.set("role", "img")
    root.set("aria-label", one_line(title))
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ElementTree.tostring(root, encoding="unicode")


def _rename(root: ElementTree.Element, name: str) -> None:
    """Ids that no other figure of a page has, wherever they are used; those that are not are left out."""
    elements = list(root.iter())
    used = {one.get("id", "") for one in elements} & set(_references(elements))
    for element in elements:
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for key, value in element.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif value.startswith("url(#"):
                element.set(key, f"url(#{name}-{value[5:]}")


def _references(elements: list[ElementTree.Element]) -> Iterator[str]:
    """The ids that some element names."""
    for key, value in itertools.chain.from_iterable(one.items() for one in elements):
        if key.endswith("href") and value.startswith("#"):
            yield value[1:]
        elif value.startswith("url(#"):
            yield value[5:].partition(")")[0]
