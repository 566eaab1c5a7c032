"""The command line: a function for each command that ``continual --help`` lists, and what scripts of benchmarks do."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from continual import completion, config, failures, files, flags, plugins
from continual.errors import BadOption, Mistake, Notice, UnknownName, brief, choices, is_text, nearest, quoted, unknown
from continual.options import options_of
from continual.progress import Progress, quietly

if TYPE_CHECKING:
    from continual.config import Plan
    from continual.results.metrics import Metric
    from continual.results.store import Result

# PyTorch's profiler, by which a run sees how long a GPU waits, says on standard error when it begins and ends
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

KINDS = (*plugins.KINDS, "metrics", "tables")
HELP = {"help_option_names": ["-h", "--help"]}
USUAL = (None, "runs")  # where data comes from and runs go to, if nobody says
FORMATS = ("table", "markdown", "latex", "csv", "json")
FEWER = ("table", "markdown", "latex", "json")  # of compare and reproduce
DEVICE = click.option("--device", default="auto", help="cpu, cuda, cuda:N or auto [default: auto]")
DATA = click.option("--data", metavar="DIR", help="data root [default: $CONTINUAL_DATA, else the user's cache folder]")
QUIET = click.option("--quiet", is_flag=True, help="no progress, and not how it is done")
PICTURE = click.option("--picture", metavar="FILE", help="also draw accuracies over time, as .png, .svg or .pdf")
METRICS = click.option("--metrics", "names", shell_complete=completion.metrics,
                       help="names joined by commas, or all (continual list metrics)")  # fmt: skip
ERROR = click.option("--error", default="sd", type=click.Choice(("sd", "se", "ci95")),
                     help="what follows the ± [default: sd]")  # fmt: skip
POOL = click.option("--pool", is_flag=True, help="take runs that differ in their seeds alone as one")


def _format(styles: Sequence[str]) -> Callable[[Any], Any]:
    return click.option("--format", "style", default="table", type=click.Choice(styles), help="[default: table]")


class Told(click.Command):
    """A command that tells what goes wrong in one message; see :mod:`continual.failures` for the exit statuses."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with failures.told():
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read what was typed, which has to be text."""
        with failures.told():
            for word in args:
                if not is_text(word):
                    raise BadOption(f"{brief(word)} is not text in UTF-8, or has a NUL in it")
            try:
                return super().parse_args(ctx, args)
            except click.UsageError as error:
                asked = f"; {ctx.command_path} --help says what there is"
                raise BadOption(error.format_message().rstrip(".") + asked) from error


class Commands(Told, click.Group):
    """The commands."""

    command_class = Told

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """A command by name; an unknown one is a mistake like any other."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(name="continual", cls=Commands, context_settings=HELP)
@click.version_option(package_name="continual")
def main() -> None:
    """Continual learning: train strategies on a stream of tasks and measure what is forgotten.

    Start with 'continual run'.
    """
    _at_home()


def _at_home() -> None:
    """What holds for every command, however it was started."""
    sys.path.append(str(Path.cwd()))  # my_file:Mine names a class of the current folder, as for python itself
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, Notice):
            click.echo(f"continual: {message}", err=True)
        else:
            usual(message, category, *rest, **named)

    warnings.showwarning = show


@main.command()
@click.argument("what", nargs=-1, shell_complete=completion.run)
@flags.of_a_run
@click.option("--track", metavar="NAME[:OPTIONS]", multiple=True, shell_complete=completion.chain("trackers"),
              help="follow it in tensorboard, wandb or mlflow; may be repeated (continual list trackers)")  # fmt: skip
@DEVICE
@DATA
@click.option("--out", metavar="DIR", default="runs", help="where runs are stored [default: runs]")
@click.option("--again", is_flag=True, help="run again what is stored already")
@click.option("--json", "as_json", is_flag=True, help="print the table as JSON")
@click.option("--matrix", is_flag=True, help="also print the accuracy matrix of each strategy")
@PICTURE
@QUIET
def run(what: tuple[str, ...], **given: Any) -> None:
    """Run strategies on a benchmark and print the forgetting table.

    WHAT is a benchmark and strategies, or a YAML file and perhaps strategies: NAME[:option=value,...], strategies
    chained with +. Nothing: the main job, the classic strategies on Split Digits.

    The defaults below give way to those of configs/runs/BENCHMARK.yaml, where there is one (split-digits has). --limit
    and --test-limit are the benchmark's own options: split-mnist --limit 50 is split-mnist:limit=50, whatever limit a
    file says.

    \b
    continual run split-mnist:scenario=class finetune ewc:strength=600 ewc+replay:capacity=500 --seeds 10 --epochs 4
    continual run mine.yaml --limit 50
    """
    execute(what, given)


def execute(what: Iterable[str], given: dict[str, Any], usual: str | None = None) -> None:
    """What ``run`` does; ``usual`` names the benchmark where none is given."""
    kept = ("device", "data", "out", "again", "as_json", "matrix", "quiet", "picture")
    places = {name: given.pop(name) for name in kept}
    if not places["out"]:
        raise BadOption("--out is empty; give a folder")
    if places["picture"]:
        from continual.results import canvas

        canvas.check(Path(places["picture"]))
    said = {name: value for name, value in given.items() if value not in (None, ())}
    with flags.named(said), quietly(places["quiet"]):
        plan = config.plan(flags.added(_asked(list(what), usual), said))
        from continual.runner import run_plan

        bar, errors = Bar(places["quiet"]), list[Exception]()

        def failed(title: str, error: Exception, left: int) -> None:
            bar.stop()
            if len(plan.strategies) == 1 or not failures.of_one(error):
                raise error
            words = str(error) if isinstance(error, Mistake) else f"{title}: {failures.in_words(error)}"
            bar.say(f"{words}{'; the other strategies go on' if left else ''}")
            errors.append(error)

        try:
            results = run_plan(
                plan, out=places["out"], data=places["data"], device=places["device"], again=places["again"],
                progress=bar, processes=True, failed=failed,
            )  # fmt: skip
        finally:
            bar.stop()
    if results:
        _show_run(plan, results, places)
    if errors:  # which were told; of one that is no user's mistake it is said where it is, too
        raise next((one for one in errors if not isinstance(one, Mistake)), SystemExit(2))


def _show_run(plan: Plan, results: list[Result], places: dict[str, Any]) -> None:
    """What ``run`` prints of results: a table, and what to do next."""
    from continual.results import store, tables

    if places["as_json"]:
        click.echo(tables.table(results, format="json"))
        _draw(results, places["picture"], told=False)
        return
    if all(result.accuracy.shape[2] == 1 and result.trace is not None for result in results):
        click.echo("\n\n".join(map(tables.trace, results)) + "\n")  # of one task there is more to see than its end
    click.echo(tables.table(results))
    for result in results if places["matrix"] else ():
        click.echo(f"\n{tables.matrix(result)}")
    _draw(results, places["picture"])
    folder = store.folder(Path(places["out"]), results[0].record).parent
    again = [word for name in ("data", "out") if places[name] not in USUAL for word in (f"--{name}", places[name])]
    other = _suggestion(plan) if results[0].accuracy.shape[2] > 1 else []  # of one task nothing is forgotten
    drawn = importlib.util.find_spec("jinja2") is not None
    suggested = [["show", str(folder), "--metrics", "all"], *([["run", *other, *again]] if other else []),
                 *([["report", str(folder)]] if drawn else []), ["list", "strategies"]]  # fmt: skip
    click.echo(f"\nStored in {folder}. Next:")
    for words in suggested:
        click.echo(f"  {shlex.join(['continual', *words])}")


def _draw(results: Sequence[Result], file: str | None, told: bool = True) -> None:
    """Draw the results, where there is a file for it."""
    if file:
        from continual.results import plots

        plots.picture(results, Path(file))
        if told:
            click.echo(f"\nDrawn in {file}.")


def _asked(what: list[str], usual: str | None) -> dict[str, Any]:
    """The part of a plan that positional arguments give."""
    asked: dict[str, Any] = {} if usual is None else {"benchmark": usual}
    if what and what[0].endswith((".yaml", ".yml")):
        path = Path(what.pop(0))
        asked = config.read_file(path)
        config.check_given(asked, path)
    elif what and usual is None:
        asked = {"benchmark": what.pop(0)}
    elif what and what[0].startswith(":"):  # options, which a benchmark's script takes for its own benchmark
        asked = {"benchmark": f"{usual}{what.pop(0)}"}
    return asked | ({"strategies": what} if what else {})


def _suggestion(plan: config.Plan) -> list[str]:
    """The command line of another run to try, with other strategies in another scenario.

    None where a plan cannot be typed, as its benchmark was put together in a file, or has no other scenario.
    """
    from continual.repeat import command

    known = options_of(type(plan.benchmark)).get("scenario")
    others = [one for one in ("task", "class") if known and one in known.words and one != plan.benchmark.scenario]
    if not command(plan) or not others:
        return []
    strategies = tuple(map(config.make_strategy, ("ewc:strength=1000", "ewc+replay:capacity=200")))
    benchmark = dataclasses.replace(plan.benchmark, scenario=others[0])
    training = dataclasses.replace(plan.training, task_aware=plan.training.task_aware and others[0] == "class")
    return command(dataclasses.replace(plan, benchmark=benchmark, strategies=strategies, training=training))


class Bar(Progress):
    """Progress on standard error: task, step, samples per second, time left."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.silent = quiet, quiet or not sys.stderr.isatty()
        self.bar: Any = None

    def begin(self, title: str, group: int, groups: int, tasks: int, samples: int) -> None:
        """See :class:`continual.progress.Progress`."""
        from tqdm import tqdm

        if group == 0:
            self.bar = tqdm(total=float(groups * tasks), disable=self.silent, leave=False, desc=title,
                            bar_format="{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}")  # fmt: skip
        self.group, self.groups, self.tasks, self.samples = group, groups, tasks, samples
        self.learnt, self.began = 0, time.perf_counter()

    def step(self, task: int, step: int, steps: int) -> None:
        """See :class:`continual.progress.Progress`."""
        self.learnt += self.samples
        if self.silent or step % 10:
            return
        rate = self.learnt / max(time.perf_counter() - self.began, 1e-9)
        where = f"task {task + 1}/{self.tasks}, step {step + 1}/{steps}, {rate:,.0f} samples/s"
        self.bar.set_postfix_str(where, refresh=False)
        self.bar.update(self.group * self.tasks + task + step / steps - self.bar.n)

    def end(self) -> None:
        """See :class:`continual.progress.Progress`."""
        if self.group + 1 == self.groups:
            self.bar.close()

    def say(self, line: str) -> None:
        """See :class:`continual.progress.Progress`."""
        if self.bar is not None:
            self.bar.clear()  # it is drawn again below the line
        click.echo(line, err=True)

    def stop(self) -> None:
        """However the run ended, what is told next begins a line of its own; how far it came stays above it."""
        if self.bar is not None:
            self.bar.leave = True
            self.bar.close()

    def note(self, line: str) -> None:
        """See :class:`continual.progress.Progress`."""
        if not self.quiet:
            self.say(line)


@main.command(name="list")
@click.argument("kind", required=False, shell_complete=completion.one_of(lambda: KINDS))
@click.argument("name", required=False, shell_complete=completion.of_kind)
@click.option("--json", "as_json", is_flag=True, help="for machines: the whole card of each")
def list_(kind: str | None, name: str | None, as_json: bool) -> None:
    """List benchmarks, strategies, models, optimizers, schedules, augmentations, trackers, metrics or tables.

    KIND is one of these; the name of one of them, as in 'continual list ewc', shows all that is known of it.
    """
    from continual.cards import card, cards, option_line, readable

    if kind is not None and kind not in KINDS:
        if name is not None:
            raise UnknownName(f"continual list takes a KIND and a NAME, and {quoted(kind)} is no kind (there are "
                              f"{choices(KINDS)})")  # fmt: skip
        kind, name = _kind_of(kind), kind
    elif kind in plugins.KINDS and name is not None:
        plugins.find(kind, name)
    if kind in plugins.KINDS and name is not None:
        one = card(kind, name)
        click.echo(json.dumps(one, indent=2, ensure_ascii=False) if as_json else readable(kind, one))
        return
    listed = {each: cards(each) for each in (KINDS if kind is None else (kind,))}
    if kind is not None and name is not None:
        listed = {kind: [one for one in listed[kind] if one["name"] == name]}
        if not listed[kind]:
            raise unknown(kind.removesuffix("s"), name, [one["name"] for one in cards(kind)])
    if as_json:
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    for each, entries in listed.items():
        click.secho(each, bold=True)
        width = max(len(card["name"]) for card in entries)
        for card_ in entries:
            click.echo(_entry(card_["name"], card_["meaning"], width))
            if kind is not None:
                for known in card_["options"]:
                    click.echo(f"      {option_line(known)}")
        click.echo()
    if kind is None:
        click.echo("continual list KIND shows the options of each, continual list NAME all that is known of one.")


def _kind_of(name: str) -> str:
    """The kind that something of this name is of."""
    from continual.cards import cards

    known = {
        kind: list(plugins.registered(kind)) if kind in plugins.KINDS else [card["name"] for card in cards(kind)]
        for kind in KINDS
    }
    kinds = [kind for kind, names in known.items() if name in names]
    if not kinds and ":" in name:
        raise UnknownName(f"{quoted(name)} is a path, which does not say what kind of thing is there: write continual "
                          f"list KIND {name}, with a KIND of {choices(plugins.KINDS)}")  # fmt: skip
    if not kinds:
        near = nearest(name, [*KINDS, *(each for names in known.values() for each in names)], most=3)
        raise UnknownName(f"nothing is named {quoted(name)}{near} (continual list KIND lists what there is of a kind: "
                          f"{choices(KINDS)})")  # fmt: skip
    return kinds[0]


def _entry(name: str, meaning: str, width: int) -> str:
    """A name and what it means, in lines of the terminal's width."""
    columns = max(60, min(120, shutil.get_terminal_size((120, 24)).columns))
    indent = " " * (width + 4)
    return click.wrap_text(meaning, columns, f"  {name:<{width}}  ", indent)


@main.command(name="completion")
@click.argument("shell", type=click.Choice(completion.SHELLS))
def completion_(shell: str) -> None:
    """Print what a shell evaluates to complete command lines: names, their options, and the words these take.

    \b
    bash: echo 'eval "$(continual completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(continual completion zsh)"' >> ~/.zshrc
    fish: continual completion fish > ~/.config/fish/completions/continual.fish
    """
    click.echo(completion.script(main, shell))


@main.command()
def schema() -> None:
    """Print the JSON Schema of a run's YAML file, for editors: everything that is registered here, with its options.

    \b
    continual schema > run.schema.json
    and in the file's first line: # yaml-language-server: $schema=run.schema.json
    """
    with plugins.deferred():
        from continual.schema import schema as made

    click.echo(json.dumps(made(), indent=1, ensure_ascii=False))


def _found(folders: Iterable[str], pool: bool) -> list[Result]:
    """The runs in folders, those that differ in their seeds alone as one if asked."""
    from continual.results.pool import pooled
    from continual.results.store import find

    found = [result for folder in folders for result in find(Path(folder))]
    return pooled(found) if pool else found


@main.command()
@click.argument("folder", metavar="DIR")
@_format(FORMATS)
@METRICS
@ERROR
@click.option("--together", is_flag=True, help="one table of all experiments; its lines say in what they differ")
@click.option(
    "--matrix",
    is_flag=True,
    help="also the accuracy matrix of each strategy; as csv: every accuracy of every seed, and no more",
)
@click.option("--trace", is_flag=True, help="also what was measured between steps")
@PICTURE
@POOL
def show(
    folder: str, style: str, names: str | None, error: str, together: bool, matrix: bool, trace: bool,
    picture: str | None, pool: bool,
) -> None:  # fmt: skip
    """Print the table of the runs in DIR: one run, the runs of one protocol, or a whole results folder."""
    from continual.results import content, tables

    if (matrix or trace) and style not in ("table", "markdown", *(["csv"] if matrix and not trace else [])):
        raise BadOption(f"--{'trace' if trace else 'matrix'} is for a terminal, and --format {style} is not; give one "
                        "of the two")  # fmt: skip
    results = _found([folder], pool)
    if matrix and style == "csv":
        if names or together:
            raise BadOption("--matrix with --format csv prints every accuracy of every seed; leave out "
                            f"{'--metrics' if names else '--together'}")  # fmt: skip
        click.echo(tables.lines(results))
        return _draw(results, picture)
    click.echo(tables.table(results, metrics=_names(names), format=style, interval=error, together=together))
    named = content.together(results) if together else results
    for result in named if matrix else ():
        click.echo(f"\n{tables.matrix(result)}")
    for result in named if trace else ():
        click.echo(f"\n{tables.trace(result)}")
    _draw(results, picture)


@main.command()
@click.argument("folder", metavar="DIR")
@click.option("--out", metavar="FILE", help="where the report is written [default: DIR/report.html]")
@click.option("--title", help="of the report [default: the folder's name]")
@METRICS
@ERROR
@click.option("--figures", "drawn", metavar="DIR", help="also write each figure there, as .svg and as data (.csv)")
@POOL
def report(
    folder: str, out: str | None, title: str | None, names: str | None, error: str, drawn: str | None, pool: bool
) -> None:  # fmt: skip
    """Write the runs in DIR as one HTML file: tables, figures, configuration, and the command that repeats them.

    The file needs no network and no other file. docs/read-the-report.md says what is in it.
    """
    from continual.repeat import repeat
    from continual.results import content, figures, report

    groups = content.experiments(_found([folder], pool))
    found = [figures.sections(group) for group in groups]
    file = Path(out or Path(folder) / "report.html")
    page = report.html(
        title or f"Results in {Path(folder).resolve().name}", groups, found, [repeat(group) for group in groups],
        _names(names), error,
    )  # fmt: skip
    files.write_text(file, page)
    click.echo(f"Written to {file}.")
    if drawn:
        written = [
            path for group, one in zip(groups, found, strict=True) for path in figures.write(group, one, Path(drawn))
        ]
        click.echo(f"{len(written) // 2} figures, each as .svg and .csv, in {drawn}.")


def _names(given: str | None) -> list[str | Metric] | None:
    """Names joined by commas, one by one; of ``module:function`` of the user's the metric itself."""
    from continual.results.metrics import MATRICES, own

    if given is None:
        return None
    names = dict.fromkeys(name.strip() for name in given.split(","))
    theirs = {name for name in names if ":" in name and name.partition(":")[0] not in MATRICES}
    return [own(name, plugins.loaded("metric", name, name)) if name in theirs else name for name in names]


@main.command()
@click.argument("folders", metavar="A B ...", nargs=-1)
@click.option("--metrics", "names", default="average-accuracy", metavar="NAMES", shell_complete=completion.metrics,
              help="joined by commas (continual list metrics) [default: average-accuracy]")  # fmt: skip
@click.option("--every-pair", is_flag=True, help="compare every two, not each with the first")
@click.option("--unpaired", is_flag=True, help="Welch's test, whatever seeds are shared")
@_format(FEWER)
@POOL
def compare(folders: tuple[str, ...], names: str, every_pair: bool, unpaired: bool, style: str, pool: bool) -> None:
    """Test whether stored runs differ: the difference, its 95 % interval, p, and p corrected for all comparisons.

    A and B are folders of runs; a folder of several gives them all. The first run is what the others are compared with.
    Runs are paired over the seeds that both have.
    """
    from continual.results import differences

    lines = differences.differences(_found(folders, pool), _names(names) or [], every_pair, not unpaired)
    click.echo(differences.table(lines, style))


@main.command()
@click.argument("strategy", shell_complete=completion.chain("strategies"))
def check(strategy: str) -> None:
    """Run the conformance suite on a strategy: a registered name, a chain, or module:Class."""
    made = config.make_strategy(strategy)
    from continual.conformance import checks

    failed = 0
    for name, problem in checks(made):
        click.echo(f"{'ok    ' if problem is None else 'FAILED'}  {name}{'' if problem is None else ': ' + problem}")
        failed += problem is not None
    if failed:
        raise Mistake(f"{strategy} fails {failed} of the checks above")


@main.command()
@click.argument("table", metavar="TABLE", shell_complete=completion.one_of(lambda: plugins.config_files("tables")))
@click.option("--row", "rows", multiple=True, metavar="NAME", help="only this row; may be repeated")
@click.option("--column", "columns", multiple=True, metavar="NAME", help="only this column; may be repeated")
@click.option("--seeds", metavar="INT|INTS JOINED BY '-'", help="how many, or which [default: as many as published]")
@click.option("--jobs", default=1, type=click.IntRange(1), metavar="INT",
              help="runs at a time, each in a process of its own [default: 1]")  # fmt: skip
@DEVICE
@DATA
@click.option("--out", metavar="DIR", help="where runs are stored, and looked for [default: reproductions/TABLE]")
@_format(FEWER)
@QUIET
def reproduce(table: str, rows: tuple[str, ...], columns: tuple[str, ...], jobs: int, **given: Any) -> None:
    """Run the cells of a published table again and hold them against what was published.

    TABLE is a name (continual list tables) or a YAML file. What is stored already is not run again, so an interrupted
    reproduction goes on where it was. Exit status 1 where a cell that ran differs from what was published, or
    a seed of it was stopped.
    """
    if given["out"] == "":
        raise BadOption("--out is empty; give a folder")
    from continual import reproduction

    whole = reproduction.read(table)
    chosen = whole.select(rows, columns)
    from tqdm import tqdm

    from continual.learning.training import Training
    from continual.results import tables

    asked = Training.read({"seeds": given["seeds"] or whole.seeds}, owner="reproduce").seed_list
    place = reproduction.Place(
        Path(given["out"] or f"reproductions/{whole.name}"), given["data"], given["device"], jobs
    )
    hidden, runs = given["quiet"] or not sys.stderr.isatty(), len(chosen.cells) * len(place.groups(asked))
    with quietly(given["quiet"]), tqdm(total=runs, disable=hidden, leave=False) as bar:

        def done(cell: reproduction.Cell) -> None:
            bar.set_description(f"{cell.row}, {cell.column}", refresh=False)
            bar.update()

        reproduction.run(chosen, asked, place, done)
    lines = reproduction.outcome(whole, asked, place, chosen)
    click.echo(tables.reproduction(whole.source, whole.metric, lines, given["style"]))
    if any(line.comparison.verdict in ("differs", "stopped") for line in lines):
        raise SystemExit(1)


def script(benchmark: str, picture: str | None = None, matrix: bool = False) -> None:
    """What a file in ``benchmarks/`` does as a script: ``run`` with its benchmark given; a picture, matrices if asked.

    ``:option=value,...`` as the first argument are the benchmark's options, ``--benchmark NAME`` another of the family.
    """

    @click.command(
        cls=Told,
        context_settings=HELP,
        help=f"continual run {benchmark} ...; ':option=value,...' first are its options.",
    )
    @click.argument("what", nargs=-1)
    @click.option("--benchmark", "usual", default=benchmark, help=f"[default: {benchmark}]")
    def command(what: tuple[str, ...], usual: str, **given: Any) -> None:
        shown = {"picture": given["picture"] or picture, "matrix": given["matrix"] or matrix}
        execute(what, given | shown, usual)

    command.params += [parameter for parameter in run.params if parameter.name != "what"]
    _at_home()
    command()
