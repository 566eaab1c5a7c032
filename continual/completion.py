"""What a shell completes: names, their options and the words that options take, by the grammar of :mod:`config`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from continual import plugins
from continual.errors import Mistake
from continual.options import Option, options_of

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
SHELLS = ("bash", "zsh", "fish")


def named(kind: str, incomplete: str, chained: bool = False) -> list[str]:
    """What ``NAME:option=value,...`` may go on as; ``chained`` with ``+``."""
    names = plugins.registered(kind)
    head = _chain_before(names, incomplete) if chained else ""
    name, colon, given = incomplete[len(head) :].partition(":")
    if colon:
        return [f"{head}{name}:{rest}" for rest in _options(kind, name, given)]
    whole = [each for each in names if head and each.startswith(incomplete)]  # der+ may be der++ too
    return whole + [head + each for each in names if each.startswith(name)]


def _chain_before(names: Iterable[str], incomplete: str) -> str:
    """The parts of a chain before the last, which has perhaps no letter yet: ``ewc+`` but not ``der++``."""
    ends = [match.end() for match in re.finditer(r"\+(?=[A-Za-z])", incomplete)]
    head = incomplete[: ends[-1]] if ends else ""
    last = incomplete[len(head) :]
    return incomplete if last.endswith("+") and last[:-1].partition(":")[0] in names else head


def _options(kind: str, name: str, given: str) -> list[str]:
    """What ``option=value,...`` of a name may go on as."""
    try:
        known = options_of(plugins.find(kind, name))
    except Mistake:  # there is no such name, so nothing can be said of it
        return []
    *before, last = given.split(",")
    head = "".join(f"{pair}," for pair in before)
    option, equals, value = last.partition("=")
    if equals:
        taken_words = words(known[option]) if option in known else []
        return [f"{head}{option}={word}" for word in taken_words if word.startswith(value)]
    taken = {pair.partition("=")[0] for pair in before}
    return [f"{head}{each}=" for each in known if each.startswith(option) and each not in taken]


def words(option: Option) -> list[str]:
    """The words that an option takes."""
    truth = ["true", "false"] if option.hint is bool else []
    return [*truth, *option.words, *(["none"] if option.is_optional else [])]


def of(kind: str) -> Complete:
    """Completes one thing of a kind."""
    return lambda context, parameter, incomplete: _items(named(kind, incomplete))


def chain(kind: str) -> Complete:
    """Completes things of a kind with ``+`` between them."""
    return lambda context, parameter, incomplete: _items(named(kind, incomplete, chained=True))


def option(known: Option) -> Complete:
    """Completes the value of an option of training."""
    return lambda context, parameter, incomplete: _items(one for one in words(known) if one.startswith(incomplete))


def one_of(names: Callable[[], Iterable[str]]) -> Complete:
    """Completes one of some names."""
    return lambda context, parameter, incomplete: _items(one for one in names() if one.startswith(incomplete))


def of_kind(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a name of the kind that is given before it."""
    kind = str(context.params.get("kind"))
    if kind == "metrics":
        return metrics(context, parameter, incomplete)
    known = (
        plugins.config_files(kind) if kind == "tables" else plugins.registered(kind) if kind in plugins.KINDS else ()
    )
    return _items(one for one in known if one.startswith(incomplete))


def metrics(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of metrics joined by commas."""
    from continual.results.metrics import MATRICES, METRICS

    head, comma, last = incomplete.rpartition(",")
    others = (f"{which}:{name}" for which in MATRICES for name, one in METRICS.items() if one.needs == "matrix")
    names = [*METRICS, *(others if ":" in last else (f"{which}:" for which in MATRICES))]
    return _items(f"{head}{comma}{name}" for name in names if name.startswith(last))


def run(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes what ``run`` does: a benchmark or a file first, then strategies."""
    if context.params.get("what"):
        return _items(named("strategies", incomplete, chained=True))
    return _items(named("benchmarks", incomplete)) or [CompletionItem(incomplete, type="file")]


def _items(found: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(one) for one in found]


class Bash(BashComplete):
    """Bash, which divides words at ``:`` and ``=`` and replaces the last part only: so it is given that part only."""

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value
    response=$(env COMP_LINE="${COMP_LINE:0:$COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1")
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("$value")
            [[ $value == *[=:] ]] && compopt -o nospace
        fi
    done
    return 0
}
%(complete_func)s_setup() {
    complete -o nosort -F %(complete_func)s %(prog_name)s
}
%(complete_func)s_setup;
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that it is at; ``COMP_LINE`` is the line up to the cursor."""
        line = os.environ["COMP_LINE"]
        given = split_arg_string(line)[1:]
        incomplete = "" if line[-1:].isspace() or not given else given.pop()
        breaks = set(os.environ.get("COMP_BREAKS", "")) & set(":=")
        self.shown = max((incomplete.rfind(one) + 1 for one in breaks), default=0)
        return given, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """One answer."""
        return f"{item.type},{item.value[self.shown :]}"


add_completion_class(Bash)


def script(command: click.Command, shell: str) -> str:
    """What a shell has to evaluate so that it completes the program's command line."""
    from click.shell_completion import get_completion_class

    made: Any = get_completion_class(shell)
    return str(made(command, {}, "continual", "_CONTINUAL_COMPLETE").source())
