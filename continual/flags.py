"""The options of a run as flags of the command line: which there are, what they say, and how a mistake names them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from continual import completion, config, plugins
from continual.errors import BadOption
from continual.options import Option, options_of

OF_THE_BENCHMARK = ("limit", "test_limit")
"""Options of the benchmark that have a flag too: what is given for a try, and not kept in a file."""


def of_a_run(command: Callable[..., None]) -> Callable[..., None]:
    """An option of the command for all that a run names, for the benchmark's that have a flag, and for training's."""
    with plugins.deferred():
        from continual.learning.training import Training
        from continual.streams.stream import StreamOptions

    for name, (kind, usual, meaning) in reversed(config.NAMED.items()):
        command = click.option(f"--{name}", metavar="NAME[:OPTIONS]", shell_complete=completion.of(kind),
                               help=f"{meaning} [default: {usual}]")(command)  # fmt: skip
    of_streams = options_of(StreamOptions)
    for known in reversed([*(of_streams[name] for name in OF_THE_BENCHMARK), *options_of(Training).values()]):
        flag = _flag(known.name)
        if known.hint is bool:
            given: dict[str, Any] = {"default": None}
            flag = f"{flag}/--no-{flag[2:]}"
        else:
            given = {"metavar": known.kind.upper(), "shell_complete": completion.option(known)}
        command = click.option(flag, known.name, help=_help(known), **given)(command)
    return command


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _help(known: Option) -> str:
    return f"{known.meaning} [default: {config.written(known, known.default)}]"


def added(asked: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, with what flags say: some are the benchmark's options, the others the run's."""
    others = {name: said[name] for name in OF_THE_BENCHMARK if name in said}
    if others:
        asked = asked | {"benchmark": config.changed(asked.get("benchmark", config.DEFAULT_BENCHMARK), others)}
    return asked | {name: value for name, value in said.items() if name not in others}


@contextlib.contextmanager
def named(names: Iterable[str]) -> Iterator[None]:
    """A mistake names an option that was given as a flag by its flag; elsewhere it is ``name`` or ``name=value``."""
    try:
        yield
    except BadOption as error:
        told = str(error)
        for name in names:
            owner = ".+" if name in OF_THE_BENCHMARK else "a run"
            alone = r"(?<!\S)(?<!was given )"  # and not an option of something else
            told = re.sub(rf"^{owner}: option {name}(?= was given )|{alone}{name}(?==)", _flag(name), told)
        raise BadOption(told) from error
