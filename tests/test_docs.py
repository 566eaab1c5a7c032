"""The pages do what they say: every block is executed or checked, in the order of the page, as a reader would type it.

A command is typed for real, with two seeds and one epoch, on data sets of a few images that are made here. A published
table is not run again, only understood. Commands of other programs have to be those that ``.ci/run`` executes, or to
name what is there. A block in a language that nobody handles, or a program that nobody knows, fails.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from markdown_it import MarkdownIt
from PIL import Image

from continual import config, conformance, plugins, reproduction, runner
from continual.cli import Bar, main
from continual.conformance import CHECKS, check
from continual.learning.strategy import HOOKS, Strategy
from continual.streams import sets
from continual.streams.data import Data

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "write-a-strategy.md"
TABLES = CHECKOUT / "docs" / "reproduce-a-table.md"
README = CHECKOUT / "README.md"
PAGES = [*sorted(CHECKOUT.glob("*.md")), *sorted(CHECKOUT.glob("docs/*.md"))]
REDUCED = ("--seeds", "2", "--epochs", "1", "--quiet")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the first line in its page."""

    language: str
    text: str
    line: int


def parsed(page: Path) -> list[Any]:
    return MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks, of one language or of all, in their order."""
    found = [Block(one.info.strip(), one.content, one.map[0]) for one in parsed(page) if one.type == "fence"]
    return [one for one in found if language in (None, one.language)]


def inline(page: Path) -> list[str]:
    """What stands in the text as code, in one line each."""
    children = [child for one in parsed(page) for child in one.children or ()]
    return [" ".join(child.content.split()) for child in children if child.type == "code_inline"]


def typed_lines(block: Block) -> list[tuple[str, str]]:
    """Each command of a console block, and the comment behind it."""
    lines = [line.partition(" #") for line in block.text.splitlines() if not line.startswith("#")]
    return [(part.strip(), comment) for line, _, comment in lines for part in line.split("&&") if part.strip()]


def shell(line: str) -> tuple[list[str], list[str]]:
    """The words of a command, and what becomes of what it prints: a pipe or a file, if something does."""
    reader = shlex.shlex(line, posix=True, punctuation_chars="|>")
    reader.whitespace_split, reader.commenters = True, ""
    words = list(reader)
    end = next((i for i, word in enumerate(words) if word in ("|", ">", ">>")), len(words))
    return words[:end], words[end:]


def named_file(page: Path, block: Block, ending: str) -> str:
    """The file that a page says a block is saved as: the last one named before it, else the first one after it."""
    spans = [(one.map[0], child.content) for one in parsed(page) for child in one.children or ()
             if child.type == "code_inline"]  # fmt: skip
    names = [(line, found[1]) for line, text in spans if (found := re.search(rf"(?:^|\s)([\w-]+\.{ending})$", text))]
    before, after = ([name for line, name in names if (line < block.line) == earlier] for earlier in (True, False))
    return str((before[-1:] + after[:1] + [f"example.{ending}"])[0])


def defined(code: str) -> list[str]:
    """The classes with options that a block of Python defines: it is saved as a module."""
    return [node.name for node in ast.parse(code).body if isinstance(node, ast.ClassDef)]


def defines(code: str) -> bool:
    """Whether a block of Python has definitions and imports alone, such as functions."""
    alone = (ast.ClassDef, ast.FunctionDef, ast.Import, ast.ImportFrom)
    body = ast.parse(code).body
    return isinstance(body[-1], ast.FunctionDef) and all(isinstance(node, alone) for node in body)


# ---- the reader's desk


class Understood(Exception):
    """A command was read and would begin."""


def understood(*_: Any, **__: Any) -> Any:
    raise Understood


def images(name: str, shape: tuple[int, ...], classes: list[str]) -> Callable[..., Data]:
    """A reader of a few made-up images under the name of a published set."""
    y = np.arange(4 * len(classes)) % len(classes)
    noise = np.random.default_rng(0).integers(0, 50, (len(y), *shape))
    x = (20 * y.reshape(-1, *[1] * len(shape)) + noise).astype(np.uint8)
    return lambda *_: Data.from_arrays(x, y, x[::-1].copy(), y[::-1].copy(), name, classes)


def folders(place: Path, classes: int, each: int = 2) -> None:
    """Class folders of made-up photographs."""
    for part in ("train", "val"):
        for label in range(classes):
            folder = place / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(each):
                pixels = np.random.default_rng([label, number]).integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


class Desk:
    """Where a reader goes through a page: a folder, what was saved in it, and what the last command printed."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page, self.folder, self.printed = page, folder, ""
        self.classes: list[str] = []
        self.names: dict[str, Any] = {}

    def does(self, block: Block) -> None:
        """What a reader does with a block."""
        assert block.language in DOES, f"{self.page.name}:{block.line}: nobody executes a block of '{block.language}'"
        DOES[block.language](self, block)

    def python(self, block: Block) -> None:
        """It is saved and imported where it defines something and does nothing else; without classes it is executed."""
        if not defined(block.text):
            exec(compile(block.text, f"{self.page.name}:{block.line}", "exec"), self.names)
            if not defines(block.text):
                return
        self.classes += defined(block.text)
        name = named_file(self.page, block, "py")
        (self.folder / name).write_text(block.text)
        importlib.import_module(name.removesuffix(".py"))

    def console(self, block: Block) -> None:
        """Each command is typed."""
        for line, comment in typed_lines(block):
            words, then = shell(line)
            words = words[next(i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=.*", word)) :]
            assert words[0] in TYPES, f"{self.page.name}:{block.line}: nobody knows whether '{line}' works"
            if comment.strip().startswith("Ctrl-C"):
                self.interrupted(words)
            else:
                TYPES[words[0]](self, words)
            if then:
                self.passes_on(*then)

    def continual(self, words: list[str]) -> None:
        """A command of ours, executed in this process, reduced."""
        words = words[1:]
        said = CliRunner().invoke(main, [*words, *(REDUCED if words[0] == "run" and "--help" not in words else ())])
        if said.exit_code or words[0] == "reproduce":
            assert isinstance(said.exception, Understood), (words, said.output, said.exception)
        self.printed = said.output

    def interrupted(self, words: list[str]) -> None:
        """A run of ours that is interrupted in its third task."""

        def step(bar: Any, task: int, *_: int) -> None:
            if task == 2:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bar, "step", step)
            said = CliRunner().invoke(main, [*words[1:], *REDUCED])
        assert said.exit_code == 130, (words, said.output, said.exception)

    def passes_on(self, sign: str, target: str, *_: str) -> None:
        """What was printed is read by a program that is known, or lies in a file of the reader's."""
        assert self.printed
        if sign == "|":
            assert target in TYPES, f"{self.page.name}: nobody knows whether '{target}' works"
            return
        file = self.folder / target.removeprefix("~/")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a" if sign == ">>" else "w", encoding="utf-8") as opened:
            opened.write(self.printed)

    def yaml(self, block: Block) -> None:
        """A table is read; a run's file is run."""
        name = named_file(self.page, block, "yaml")
        (self.folder / name).write_text(block.text, encoding="utf-8")
        for schema in re.findall(r"\$schema=(\S+)", block.text):
            Draft202012Validator(json.loads((self.folder / schema).read_text())).validate(yaml.safe_load(block.text))
        if "rows" in config.read_file(self.folder / name):
            assert reproduction.read(str(self.folder / name)).cells
        else:
            self.continual(["continual", "run", name])

    def toml(self, block: Block) -> None:
        """Entry points are in groups that there are, with names that are free, and name a class of the page."""
        for group, points in tomllib.loads(block.text)["project"]["entry-points"].items():
            kind = group.removeprefix("continual.")
            assert kind in plugins.KINDS and not set(points) & set(plugins.registered(kind))
            assert {target.partition(":")[2] for target in points.values()} <= set(self.classes)
            self.installed(group, points)

    def installed(self, group: str, points: dict[str, str]) -> None:
        """As if a package with these entry points had been installed."""
        info = self.folder / f"{group}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {group}\nVersion: 1\n")
        lines = [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines))
        importlib.invalidate_caches()
        plugins._registered.cache_clear()

    def output(self, block: Block) -> None:
        """It has the form of what the last command prints, which has other numbers."""
        assert form(block.text) and form(block.text) in form(self.printed)


def form(text: str) -> str:
    """Printed text without its numbers (so one seed is as good as many), lines and columns."""
    return " ".join(re.sub(r"[\d.±–-]+", " ", text).replace("seeds", "seed").replace("(", " ( ").split())


def installs(desk: Desk, words: list[str]) -> None:
    """pip is given this folder or package, with extras that there are."""
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    assert words[1] == "install"
    for word in words[2:]:
        name, _, extras = word.partition("[")
        assert name in (".", "continual", "-e", "pre-commit"), word
        assert {one for one in extras.rstrip("]").split(",") if one} <= set(setup["options.extras_require"])


def in_the_pipeline(desk: Desk, words: list[str]) -> None:
    """What is executed for every commit is known to work."""
    assert shlex.join(words[:2]) in (CHECKOUT / ".ci" / "run").read_text(), words


def scripts(desk: Desk, words: list[str]) -> None:
    """Python starts a script that there is, with options that it has; or makes an environment, or does a line."""
    if words[1:3] == ["-m", "venv"]:
        return
    if words[1] == "-c":
        exec(words[2], {})
        return
    code = (CHECKOUT / words[1]).read_text()
    assert all(f'"{word}"' in code for word in words[2:] if word.startswith("--")), words


def start_up_line(desk: Desk, words: list[str]) -> None:
    """A line for a file that a shell begins with: the commands in it are typed."""
    typed = re.findall(r"\$\((.*?)\)", words[1])
    assert typed, words
    for line in typed:
        desk.console(Block("console", line, 0))
    desk.printed = f"{words[1]}\n"


def shows_events(desk: Desk, words: list[str]) -> None:
    """TensorBoard is given a folder in which the commands before have left something to see."""
    assert words[1] == "--logdir" and list((desk.folder / words[2]).rglob("events.out.tfevents.*")), words


def exists(desk: Desk, words: list[str]) -> None:
    """The files that are named are there; the environment was made by the command before."""
    for word in words[1:] if words[0] == "pytest" else words:
        assert word.startswith((".venv", "-")) or word == "." or (CHECKOUT / word).exists(), words


DOES: dict[str, Callable[[Desk, Block], None]] = {
    "python": Desk.python, "console": Desk.console, "yaml": Desk.yaml, "toml": Desk.toml, "": Desk.output,
}  # fmt: skip
TYPES: dict[str, Callable[[Desk, list[str]], None]] = {
    "continual": Desk.continual, "pip": installs, "python": scripts, "pytest": exists, ".ci/run": exists, ".": exists,
    "echo": start_up_line, "tensorboard": shows_events,
    "pre-commit": lambda desk, words: exists(desk, [".pre-commit-config.yaml"]),
    **dict.fromkeys(("ruff", "mypy", "lint-imports", "sphinx-build"), in_the_pipeline),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the reader's, the published sets with a few made-up images, and nothing that takes minutes."""
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed").use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CONTINUAL_DATA", str(tmp_path / "data"))
    (tmp_path / "configs").symlink_to(CHECKOUT / "configs")  # as in a checkout
    digits = [str(label) for label in range(10)]
    for name, shape in (("mnist", (28, 28)), ("cifar10", (3, 32, 32))):
        monkeypatch.setitem(sets.SETS, name, images(name, shape, digits))
    folders(tmp_path / "data" / "imagenet", 4)
    folders(tmp_path / "data" / "leaves", 4)
    monkeypatch.setattr(reproduction, "run", understood)
    before = set(sys.modules)
    yield tmp_path
    plugins._registered.cache_clear()
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def avalanche_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """avalanche-lib, with a Split MNIST that needs no download."""
    import continual as cl

    theirs = pytest.importorskip("avalanche.benchmarks", reason="avalanche-lib is not installed")

    def split(n_experiences: int, return_task_id: bool) -> Any:
        scenario = "task" if return_task_id else "class"
        ours = cl.benchmarks.SplitDigits(scenario=scenario, tasks=n_experiences, limit=20)  # type: ignore[arg-type]
        return cl.avalanche.benchmark(ours.stream(0, Path()))

    monkeypatch.setattr(theirs, "SplitMNIST", split)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_works(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any("avalanche" in block.text for block in blocks(page)):
        avalanche_made_up(monkeypatch)
    desk = Desk(page, folder)
    for block in blocks(page):
        desk.does(block)
    monkeypatch.setattr(runner, "run_plan", understood)
    for words, _ in map(shell, filter(is_command, inline(page))):
        if words[0] == "python":
            scripts(desk, words)
        elif not words[2:] or any(re.fullmatch(r"[A-Z]+(\.\w+)?|\.\.\.", one.partition(":")[0]) for one in words[2:]):
            assert words[1] in main.commands  # a form, not a command
        elif words[1] in ("run", "reproduce"):
            assert isinstance(CliRunner().invoke(main, words[1:]).exception, Understood), words
        else:
            main.commands[words[1]].make_context(words[1], words[2:])


def is_command(code: str) -> bool:
    """Whether code in the text can be typed."""
    return bool(re.match(r"(continual|python) [\w-]", code)) and not code.startswith("python -m")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_stands_in_fences(page: Path) -> None:
    """An indented block has no language, so nobody could execute it; a drawing of folders may be one."""
    indented = [one.content for one in parsed(page) if one.type == "code_block"]
    assert [text for text in indented if not (page.stem == "design" and text.startswith("continual/  "))] == []


def test_what_nobody_executes_is_found(folder: Path) -> None:
    desk = Desk(PAGE, folder)
    for block, why in (
        (Block("sh", "ls", 3), "nobody executes a block of 'sh'"),
        (Block("console", "rm -r runs", 3), "nobody knows whether 'rm -r runs' works"),
        (Block("console", "continual run split-digits nothing", 3), "no strategy is named"),
        (Block("console", "continual schema | jq .", 3), "nobody knows whether 'jq' works"),
        (Block("console", "continual list > list.txt\necho list.txt", 3), "list.txt"),
        (Block("console", "continual list # Ctrl-C", 3), "list"),
        (Block("console", "tensorboard --logdir nothing", 3), "nothing"),
        (Block("console", "pip install '.[nothing]'", 3), "nothing"),
        (Block("", "strategy accuracy", 3), "strategy accuracy"),
        (Block("toml", '[project.entry-points."continual.strategies"]\na = "b:C"', 3), "C"),
    ):
        with pytest.raises(AssertionError, match=re.escape(why)):
            desk.does(block)
    with pytest.raises(ZeroDivisionError):
        desk.does(Block("python", "1 / 0", 3))


# ---- what single pages promise


def examples(page: Path) -> list[tuple[str, str]]:
    """The name and the code of each strategy that a page has in full."""
    found = [(name, block.text) for block in blocks(page, "python") for name in defined(block.text)]
    return [(name, code) for name, code in found if f"class {name}(cl.Strategy)" in code]


EXAMPLES = [(page, *example) for page in PAGES for example in examples(page)]


def test_there_are_examples() -> None:
    assert {(page.name, name) for page, name, _ in EXAMPLES} >= {(PAGE.name, "SI"), (README.name, "Mine")}


@pytest.mark.parametrize(("page", "name", "code"), EXAMPLES, ids=lambda part: getattr(part, "name", part)[:12])
def test_an_example_is_short_and_passes_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Path, name: str, code: str
) -> None:
    lines = [line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= (25 if (name, code) == examples(page)[0] else 60), "the first shows how little it takes"
    module = f"example_of_{page.stem.replace('-', '_')}_{name}".lower()
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    check(f"{module}:{name}")
    used = plugins.find("strategies", f"{module}:{name}")
    assert used.__doc__ and not used.__doc__.startswith(f"{name}(")


def test_the_example_is_checked_from_a_shell_as_the_page_says(folder: Path) -> None:
    (folder / "my_mine.py").write_text(examples(PAGE)[0][1])
    typed = [line for block in blocks(PAGE, "console") for line, _ in typed_lines(block)]
    line = next(line for line in typed if "continual check" in line)
    command = line.replace("continual", f"{Path(sys.executable).parent}/continual", 1)
    done = subprocess.run(shlex.split(command), check=False, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == len(CHECKS)


def test_the_example_remembers_more_than_finetuning(folder: Path) -> None:
    import continual as cl

    (folder / "my_mine.py").write_text(examples(PAGE)[0][1])
    given: dict[str, Any] = {"seeds": 2, "epochs": 3, "optimizer": "adam:lr=0.01"}
    plain = cl.run("split-digits:scenario=task", "finetune", **given)
    held = cl.run("split-digits:scenario=task", "my_mine:SI", **given)
    assert held.forgetting.mean() < plain.forgetting.mean() / 2 and held.average_accuracy.mean() > 0.9


def test_the_page_names_every_hook_with_its_arguments_and_every_check() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for hook in ("suits", *HOOKS):
        arguments = ", ".join(list(inspect.signature(getattr(Strategy, hook)).parameters)[1:])
        assert f"`{hook}({arguments})`" in text
    for name in conformance.CHECKS:
        assert f"| {name} |" in text


def test_the_example_of_a_table_is_one(tmp_path: Path) -> None:
    (block,) = blocks(TABLES, "yaml")
    path = tmp_path / "table.yaml"
    path.write_text(block.text, encoding="utf-8")
    table = reproduction.read(str(path))
    assert {(cell.row, cell.column) for cell in table.cells} == {
        (row, column) for row in ("fine-tuning", "EWC") for column in ("task", "class")
    }
    assert [cell.published.sd for cell in table.cells] == [0.94, 0.02, 0.22, 0.06]


def test_links_between_the_pages_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))]
    local = [(page, link) for page, link in links if "://" not in link]
    assert [f"{page.name}: {link}" for page, link in local if not (page.parent / link).exists()] == []
