"""Finding named things: registered ones, paths, what other installed packages bring; and that torch is waited for."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import continual as cl
from continual import plugins
from continual.cli import main
from continual.errors import Mistake, UnknownName
from continual.options import Configured

MODULE = """
    from dataclasses import dataclass

    from torch import nn
    import torch.nn.functional as F

    import continual as cl

    LAYER = nn.Linear

    class Holder:
        @dataclass(frozen=True)
        class Inner(cl.Strategy):
            '''A strategy inside a class.'''

    @dataclass(frozen=True)
    class Softer(cl.Strategy):
        '''Softer targets, from another package.'''

        smoothing: float = cl.option(0.1, "how soft", ge=0, le=1)

        @property
        def first_task_like_finetuning(self):
            return False

        def loss(self, net, theta, memory, batch, out, task):
            return F.cross_entropy(out.logits, batch.y, label_smoothing=self.smoothing)

    @dataclass(frozen=True)
    class TwoTasks(cl.benchmarks.SplitDigits):
        '''Two tasks.'''

        tasks: int = cl.option(2, "number of tasks", ge=1)

    not_a_class = 3
    class NoOptions:
        pass
"""


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with a foreign module."""
    write(tmp_path, "foreign_softer", MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("foreign_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.fixture
def installed(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Gives a function that registers entry points as another installed distribution does, and the folder."""

    def install(points: str) -> Path:
        info = folder / "foreign_softer-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-softer\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(points))
        plugins._registered.cache_clear()
        return folder

    yield install
    plugins._registered.cache_clear()


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# ---- what is registered


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("benchmarks", {"split-digits", "split-mnist", "permuted-kmnist", "rotated-fashion-mnist"}),
        ("strategies", {"finetune", "joint", "l1", "l2", "ewc", "replay", "shared-trunk"}),
        ("models", {"mlp"}),
        ("optimizers", {"sgd", "adam", "adamw", "adagrad"}),
        ("schedules", {"constant", "cosine", "linear", "step"}),
    ],
)
def test_registered_names(kind: str, names: set[str]) -> None:
    known = plugins.registered(kind)
    assert names <= set(known) and list(known) == sorted(known)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_registered_thing_is_found_described_and_known_by_its_name(kind: str) -> None:
    for name in plugins.registered(kind):
        cls = plugins.find(kind, name)
        assert issubclass(cls, Configured) and plugins.name_of(kind, cls) == name
        assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")


@pytest.mark.parametrize(
    ("kind", "given", "near"),
    [
        ("strategies", "ewk", "ewc"),
        ("strategies", "shared_trunk", "shared-trunk"),
        ("benchmarks", "split-mnits", "split-mnist"),
        ("models", "mpl", "mlp"),
        ("optimizers", "adamm", "adam"),
        ("schedules", "cosin", "cosine"),
    ],
)
def test_a_name_that_is_nearly_right(kind: str, given: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        plugins.find(kind, given)
    told = str(caught.value)
    assert told.startswith(f"no {plugins.KINDS[kind]} is named '{given}'; did you mean '{near}'?")
    assert all(name in told for name in plugins.registered(kind))


def test_nothing_is_proposed_for_a_name_that_is_near_to_none() -> None:
    with pytest.raises(UnknownName, match=r"^no strategy is named 'zzz' \(known: ") as caught:
        plugins.find("strategies", "zzz")
    assert str(caught.value).endswith(f"(known: {', '.join(sorted(plugins.registered('strategies')))})")


# ---- paths


def test_a_path_is_found_and_named(folder: Path) -> None:
    softer = plugins.find("strategies", "foreign_softer:Softer")
    assert plugins.name_of("strategies", softer) == "foreign_softer:Softer"
    inner = plugins.find("strategies", "foreign_softer:Holder.Inner")
    assert plugins.name_of("strategies", inner) == "foreign_softer:Holder.Inner"


def test_the_path_of_a_registered_class_is_that_class() -> None:
    assert plugins.find("strategies", "continual.strategies.ewc:EWC") is cl.strategies.EWC
    assert plugins.find("strategies", "continual.strategies:EWC") is cl.strategies.EWC


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("no_such_package.mine:Mine", "No module named 'no_such_package'"),
        ("foreign_softer.more:Mine", "'foreign_softer' is not a package"),
        ("foreign_softer:Nothing", "no attribute 'Nothing'"),
        ("foreign_softer:Holder.Nothing", "no attribute 'Nothing'"),
        ("foreign_softer:not_a_class", "is 3, not a class with options"),
        ("foreign_softer:NoOptions", "not a class with options"),
        ("foreign_softer:", "cannot be loaded"),
        (":Mine", "cannot be loaded"),
        (".relative:Mine", "cannot be loaded"),
        ("..relative:Mine", "cannot be loaded"),
    ],
)
def test_paths_that_are_refused(folder: Path, path: str, told: str) -> None:
    with pytest.raises(UnknownName) as caught:
        plugins.find("strategies", path)
    assert f"strategy '{path}'" in str(caught.value) and told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mine.py:Mine", "as in mine:Mine"),
        ("mine.py", "as in mine:Class"),
        ("si:SI", "another name than 'si' for the file"),
    ],
)
def test_a_file_is_named_by_its_module(name: str, told: str) -> None:
    with pytest.raises(Mistake, match=told) as caught:
        plugins.find("strategies", name)
    assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("from torch import no_such_name", "no_such_name"),
        ("import no_such_package", "no_such_package"),
        ("1 +", "syntax"),
        ("raise RuntimeError('this needs a licence')", "this needs a licence"),
        ("None.nothing", "nothing"),
    ],
)
def test_a_module_that_cannot_be_imported_is_a_mistake_that_says_why(folder: Path, text: str, told: str) -> None:
    write(folder, "foreign_broken", text)
    with pytest.raises(UnknownName, match=r"strategy 'foreign_broken:Mine' cannot be loaded") as caught:
        plugins.find("strategies", "foreign_broken:Mine")
    assert told in str(caught.value)


def test_a_foreign_strategy_and_benchmark_run_by_their_paths(folder: Path) -> None:
    out = folder / "runs"
    arguments = ("run", "foreign_softer:TwoTasks:limit=5", "foreign_softer:Softer:smoothing=0.5+ewc", "--seeds", 2,
                 "--epochs", 1, "--quiet", "--out", out)  # fmt: skip
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert "foreign_softer:Softer:smoothing=0.5+ewc" in done.stdout and "tasks 2" in done.stdout
    assert "already there" in invoke(*arguments).stderr
    assert "foreign_softer:Softer" in invoke("show", out).stdout


# ---- other installed packages

POINTS = """
    [continual.strategies]
    softer = foreign_softer:Softer
    [continual.benchmarks]
    two-tasks = foreign_softer:TwoTasks
"""


PACKAGE = {
    "__init__": "", "mine": "from . import losses\nfrom .parts.numbers import HALF\nimport our_methods.rates as r\n"
    "class Mine:\n    def loss(self):\n        from our_methods.late import LATE\n        return LATE\n",
    "losses": "from torch.nn.functional import cross_entropy\n", "rates": "import math\n", "late": "LATE = 1\n",
    "other": "from .mine import Mine\n", "parts/__init__": "", "parts/numbers": "from ..deep import TWO as HALF\n",
    "deep": "TWO = 2\nimport foreign_softer\n",
}  # fmt: skip


def test_the_code_of_a_class_is_that_of_all_modules_that_it_is_made_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they are imported, when, and where nothing but a number is taken; not of others in the same folder."""
    (folder / "our_methods" / "parts").mkdir(parents=True)
    for name, text in PACKAGE.items():
        (folder / "our_methods" / f"{name}.py").write_text(text)
    (folder / "our_script.py").write_text(
        "import math, torch, continual\nfrom our_methods import mine\nclass It(mine.Mine): 0"
    )
    made = importlib.import_module("our_methods.mine").Mine
    found = plugins.code_of(made)
    parts = ("mine", "losses", "parts", "parts.numbers", "rates", "late", "deep")
    assert list(found) == sorted(["our_methods", *(f"our_methods.{name}" for name in parts)]), "of the package alone"
    rates = (folder / "our_methods" / "rates.py").read_bytes()
    assert found["our_methods.rates"] == hashlib.sha256(rates).hexdigest()
    importlib.import_module("our_methods.other")
    assert made().loss() == 1 and plugins.code_of(made) == found, "whatever was imported since"
    script = importlib.import_module("our_script").It
    assert plugins.code_of(script).keys() == found.keys() | {"our_script", "foreign_softer"}, "and of folders beside"
    monkeypatch.setattr(plugins, "INSTALLED", (folder.resolve().name,))
    assert plugins.code_of(script).keys() == {"our_script", "our_methods.mine"}, "the files of its bases"


def test_the_code_of_a_class_is_nothing_that_has_a_version(folder: Path) -> None:
    """Nor is it all of a library; it is what lies in a folder without ``__init__.py``, or is named like Python's."""
    imported = "import numbers\nfrom torch import nn\nimport click\n"
    write(folder, "our_numbers", f"{imported}class It(nn.Module, click.Command, numbers.Number): 0")
    (folder / "our_space").mkdir()
    (folder / "our_space" / "mine.py").write_text("from our_space.near import N\nclass Mine:\n    n = N\n")
    (folder / "our_space" / "near.py").write_text("N = 1\n")
    write(folder, "pty", "from our_space.mine import Mine\nclass Ours(Mine): 0")
    made = importlib.import_module("our_numbers").It
    assert plugins.code_of(made).keys() == {"our_numbers", "click.core"}
    beside = {"our_space.mine", "our_space.near"}
    assert plugins.code_of(importlib.import_module("our_space.mine").Mine).keys() == beside
    sys.modules.pop("pty", None)
    try:
        assert plugins.code_of(importlib.import_module("pty").Ours).keys() == {"pty", *beside}
    finally:
        sys.modules.pop("pty")


def test_what_another_package_registers_runs_like_a_built_in(installed: Callable[[str], Path]) -> None:
    out = installed(POINTS) / "runs"
    done = invoke("run", "two-tasks:limit=5", "softer:smoothing=0.5", "--seeds", 2, "--epochs", 1, "--out", out)
    assert done.exit_code == 0, done.output
    assert "softer:smoothing=0.5" in done.stdout and "foreign_softer" not in done.stdout
    (record,) = out.rglob("run.json")
    assert record.parent.name.startswith("softer-") and record.parent.parent.name.startswith("two-tasks-mlp-")
    assert json.loads(record.read_text())["strategy"] == [{"name": "softer", "smoothing": 0.5}]


def test_what_another_package_registers_is_listed(installed: Callable[[str], Path]) -> None:
    installed(POINTS)
    (card,) = [card for card in json.loads(invoke("list", "strategies", "--json").stdout)["strategies"]
               if card["name"] == "softer"]  # fmt: skip
    assert card["meaning"] == "Softer targets, from another package."
    assert card["options"] == [{"name": "smoothing", "type": "float >= 0 and <= 1", "default": 0.1, "written": "0.1",
                                "meaning": "how soft", "range": {">=": 0, "<=": 1}, "choices": []}]  # fmt: skip
    assert "softer" in invoke("list").stdout and "two-tasks" in invoke("list", "benchmarks").stdout
    with pytest.raises(UnknownName, match="did you mean 'softer'"):
        plugins.find("strategies", "sofer")


def test_what_another_package_registers_is_checked(installed: Callable[[str], Path]) -> None:
    installed(POINTS)
    done = invoke("check", "softer")
    assert done.exit_code == 0, done.output
    assert "FAILED" not in done.stdout and done.stdout.count("ok") >= 7


def test_a_foreign_package_may_register_a_name_that_it_imports_from_its_own_parts(
    installed: Callable[[str], Path],
) -> None:
    folder = installed("[continual.strategies]\nsofter = foreign_face:Softer\n")
    write(folder, "foreign_face", "from foreign_softer import Softer")
    softer = plugins.find("strategies", "softer")
    assert plugins.name_of("strategies", softer) == "softer"


@pytest.mark.parametrize("last", [False, True], ids=["found first", "found last"])
def test_a_foreign_package_cannot_silently_take_the_name_of_a_built_in(
    installed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    folder = str(installed("[continual.strategies]\newc = foreign_softer:Softer\n"))
    if last:
        monkeypatch.setattr(sys, "path", [*(entry for entry in sys.path if entry != folder), folder])
    try:
        found = plugins.find("strategies", "ewc")
    except Mistake as mistake:
        found = cl.strategies.EWC if "'ewc'" in str(mistake) else None
    assert found is cl.strategies.EWC


@pytest.mark.parametrize("text", ["import no_such_package", "from torch import no_such_name"])
def test_a_broken_foreign_package_breaks_nothing_else(installed: Callable[[str], Path], text: str) -> None:
    folder = installed("[continual.strategies]\nbroken = foreign_broken:Mine\n")
    write(folder, "foreign_broken", text)
    done = invoke("run", "split-digits:limit=2", "ewc", "--seeds", 1, "--epochs", 1, "--out", folder / "runs")
    assert done.exit_code == 0, done.output
    listed = invoke("list", "strategies")
    assert listed.exit_code == 0 and "shared-trunk" in listed.stdout, listed.output
    assert "broken" in listed.output and "cannot be loaded" in listed.output


# ---- torch is not waited for

LATE = """
    import sys
    from pathlib import Path
    from continual import plugins
    from continual.cli import main

    def loaded(*packages):
        return [name for name in sys.modules if name.partition(".")[0] in packages]

    def call(*arguments):
        try:
            main(list(arguments))
        except SystemExit as end:
            return end.code

    assert call("list") == 0
    assert call("list", "strategies") == call("list", "benchmarks") == call("list", "--json") == 0
    assert call("--help") == call("run", "--help") == 0
    assert call("run", "split-digits", "ewk") == call("run", "ewc:strength=x") == call("check", "ewk") == 2
    assert call("run", "split-digits", "ewc:strength=-1") == call("run", "split-digits", "joint+joint") == 2
    assert not loaded("torch", "numpy"), loaded("torch", "numpy")
    assert call("show", "no-such-folder") == 2
    assert not loaded("torch"), loaded("torch")

    out = sys.argv[1]
    wanted = ("run", "split-digits:limit=5", "replay:capacity=9", "foreign_softer:Softer", "--seeds", "2",
              "--epochs", "1", "--quiet", "--out", out)
    assert call(*wanted) == 0
    import numpy, torch, continual.learning.train, continual.streams.rng
    assert torch.tensor([1.0]).numpy().tolist() == [1.0]
    assert isinstance(continual.streams.rng.key(1).bits("x", 3), torch.Tensor)
    assert not any(isinstance(module, plugins.Deferred) for module in list(sys.modules.values()))
    assert call("show", out) == call("list") == 0
    print("all well")
"""


def test_nobody_waits_for_torch_to_read_a_list_or_a_mistake(folder: Path) -> None:
    write(folder, "late", LATE)
    done = subprocess.run([sys.executable, str(folder / "late.py"), str(folder / "runs")], check=False,
                          capture_output=True, text=True, cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all well\n")


def test_importing_the_package_is_quick() -> None:
    code = "import continual, sys; dir(continual); assert not {'torch', 'numpy', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing", "count", "policy"],
)
def test_threads_that_wait_for_each_other_soon_sleep(given: dict[str, str], found: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import continual, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=kept | given)
    assert done.stdout.strip() == found


def test_a_stand_in_becomes_the_module_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with plugins.deferred("colorsys"):
        import colorsys as early
    assert "colorsys" not in sys.modules and isinstance(early, plugins.Deferred)
    import colorsys

    assert early.rgb_to_hsv is colorsys.rgb_to_hsv and not isinstance(early, plugins.Deferred)
    with plugins.deferred("colorsys"):
        import colorsys as late
    assert late is colorsys


def test_what_is_imported_for_a_stand_in_finds_the_modules_themselves() -> None:
    """PyTorch imported with a stand-in for NumPy would go without it."""
    code = """if True:
        import sys
        from continual import plugins
        with plugins.deferred():
            import numpy, torch
            assert torch.ones(2).numpy().tolist() == [1.0, 1.0]
        assert numpy.zeros(1).sum() == 0 and sys.modules["numpy"].ndarray is numpy.ndarray
        """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")
    for path in (tmp_path, tmp_path / "none", tmp_path / "bytes"):
        with pytest.raises(Mistake, match="cannot be read"):
            plugins.read_text(path)


def test_what_is_imported_late_is_not_looked_through_for_garbage() -> None:
    """A module that is slow to import has many objects, which stay; the collector is on afterwards as it was before."""
    code = (
        "import gc; from continual import plugins\n"
        "with plugins.deferred('torch'):\n    import torch\n"
        "assert not gc.get_freeze_count() and type(torch) is plugins.Deferred\n"
        "assert torch.ones(3).sum() == 3 and gc.get_freeze_count() > 10_000 and gc.isenabled()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
