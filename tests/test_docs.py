"""The pages do what they say: their Python is executed, their command lines are typed."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from continual import conformance, plugins
from continual.cli import main
from continual.conformance import CHECKS, check
from continual.learning.strategy import HOOKS

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "write-a-strategy.md"
TABLES = CHECKOUT / "docs" / "reproduce-a-table.md"
REPORT = CHECKOUT / "docs" / "read-the-report.md"
README = CHECKOUT / "README.md"
QUICK = ("--seeds", "1", "--epochs", "1", "--batch", "128", "--quiet")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines of the console blocks, without comments, that call the program."""
    lines = [line.split("#")[0].strip() for block in blocks(page, "console") for line in block.splitlines()]
    return [line for line in lines if "continual" in shlex.split(line) and "&&" not in line]


def defines_strategy(code: str) -> bool:
    return any(isinstance(node, ast.ClassDef) for node in ast.parse(code).body)


def examples(page: Path) -> list[tuple[str, str]]:
    """The name and the code of each strategy that a page has in full."""
    found = []
    for code in filter(defines_strategy, blocks(page, "python")):
        found += [(node.name, code) for node in ast.parse(code).body if isinstance(node, ast.ClassDef)]
    return found


EXAMPLES = [(page, *example) for page in (PAGE, README) for example in examples(page)]


def module_of(page: Path) -> str:
    """The module that a page saves its example as: what its command lines name."""
    named = re.findall(r"(\w+):[A-Z]\w*", "\n".join(commands(page)))
    return named[0] if named else "my_mine"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with the example of the page in it."""
    (code,) = filter(defines_strategy, blocks(PAGE, "python"))
    (tmp_path / "my_mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_mine", raising=False)
    return tmp_path


def typed(line: str, *more: str) -> Result:
    """A line of a page, in this process."""
    words = shlex.split(line)
    assert words.pop(0) == "continual"
    return CliRunner().invoke(main, [*words, *more])


def test_there_is_an_example() -> None:
    assert [name for page, name, _ in EXAMPLES if page == PAGE] == ["SI"]


@pytest.mark.parametrize(("page", "name", "code"), EXAMPLES, ids=lambda part: getattr(part, "name", part)[:12])
def test_an_example_is_short_and_passes_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Path, name: str, code: str
) -> None:
    lines = [line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= 25
    module = f"example_of_{page.stem.replace('-', '_').lower()}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    check(f"{module}:{name}")
    used = plugins.find("strategies", f"{module}:{name}")
    assert used.__doc__ and not used.__doc__.startswith(f"{name}(")


def test_the_example_is_checked_from_a_shell_as_the_page_says(folder: Path) -> None:
    line = next(line for line in commands(PAGE) if "continual check" in line)
    command = line.replace("continual", f"{Path(sys.executable).parent}/continual", 1)
    done = subprocess.run(shlex.split(command), check=False, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == len(CHECKS)


def test_the_example_runs(folder: Path) -> None:
    lines = [line for line in commands(PAGE) if "continual run" in line]
    assert len(lines) >= 2 and all("my_mine:SI" in line for line in lines)
    for line in lines:
        said = typed(line, *QUICK, "--out", str(folder / "runs"))
        assert said.exit_code == 0, said.output
        assert "\nmy_mine:SI" in said.stdout


def test_the_example_remembers_more_than_finetuning(folder: Path) -> None:
    import continual as cl

    given: dict[str, Any] = {"seeds": 2, "epochs": 3, "optimizer": "adam:lr=0.01"}
    plain = cl.run("split-digits:scenario=task", "finetune", **given)
    held = cl.run("split-digits:scenario=task", "my_mine:SI", **given)
    assert held.forgetting.mean() < plain.forgetting.mean() / 2 and held.average_accuracy.mean() > 0.9


def test_the_other_python_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (code for code in blocks(PAGE, "python") if not defines_strategy(code))
    exec(compile(code, PAGE.name, "exec"), {})
    assert capsys.readouterr().out.startswith("[")


def test_the_page_names_every_hook_with_its_arguments_and_every_check() -> None:
    import inspect

    from continual.learning.strategy import Strategy

    text = PAGE.read_text(encoding="utf-8")
    for hook in ("suits", *HOOKS):
        arguments = ", ".join(list(inspect.signature(getattr(Strategy, hook)).parameters)[1:])
        assert f"`{hook}({arguments})`" in text
    for name in conformance.CHECKS:
        assert f"| {name} |" in text


def read_results(line: str) -> bool:
    """Whether a command needs runs that are stored; the page about the report types these for real."""
    return line.split()[1] in ("report", "compare")


@pytest.mark.parametrize("line", [line for line in (*commands(README), *commands(TABLES)) if not read_results(line)])
def test_the_command_lines_of_a_page_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are typed with everything but the training itself."""
    from continual import reproduction, runner
    from continual.results import store

    for number, (name, code) in enumerate(examples(README)):
        assert name and number == 0
        (tmp_path / f"{module_of(README)}.py").write_text(code)
    monkeypatch.chdir(CHECKOUT)  # paths such as configs/runs/... are those of a checkout
    monkeypatch.syspath_prepend(str(tmp_path))
    results: list[Any] = []
    monkeypatch.setattr(store, "find", lambda folder: results)
    monkeypatch.setattr(conformance, "checks", lambda strategy: iter(()))

    class Understood(Exception):
        """The plan was made."""

    def understood(*_: Any, **__: Any) -> Any:
        raise Understood

    monkeypatch.setattr(runner, "run_plan", understood)
    monkeypatch.setattr(reproduction, "run", understood)
    said = typed(line)
    assert said.exit_code == 0 or isinstance(said.exception, Understood), (said.output, said.exception)


def test_the_page_about_the_report_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed").use("agg")
    monkeypatch.chdir(tmp_path)
    lines = commands(REPORT)
    assert {line.split()[1] for line in lines} == {"run", "report", "show", "compare"}
    for line in lines:
        said = typed(line, *(("--seeds", "2", "--epochs", "1", "--quiet") if " run " in line else ()))
        assert said.exit_code == 0, (line, said.output)
    for file in ("runs/report.html", "mine.html"):
        assert (tmp_path / file).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    (code,) = blocks(REPORT, "python")
    exec(compile(code, REPORT.name, "exec"), {})
    assert (tmp_path / "matrix.pdf").stat().st_size


def test_the_example_of_a_table_is_one(tmp_path: Path) -> None:
    from continual import reproduction

    (text,) = blocks(TABLES, "yaml")
    path = tmp_path / "table.yaml"
    path.write_text(text, encoding="utf-8")
    table = reproduction.read(str(path))
    assert {(cell.row, cell.column) for cell in table.cells} == {
        (row, column) for row in ("fine-tuning", "EWC") for column in ("task", "class")
    }
    assert [cell.published.sd for cell in table.cells] == [0.94, 0.02, 0.22, 0.06]


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))]
    local = [(page, link) for page, link in links if "://" not in link]
    assert [f"{page.name}: {link}" for page, link in local if not (page.parent / link).exists()] == []
