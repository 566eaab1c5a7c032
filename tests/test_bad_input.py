"""Whatever is typed, or lies in a file: a message and exit status 2, never a traceback, a hang, or a file elsewhere.

``CONTINUAL_FUZZ`` is how many inputs each test tries, instead of the few of the usual run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load as unpacked
from safetensors.numpy import save as packed
from safetensors.torch import save_file

from continual import plugins, resume
from continual.cli import main
from continual.errors import BadData, is_text
from continual.learning.training import Training
from continual.options import options_of
from continual.plugins import registered
from continual.results import store
from continual.results.checkpoints import Checkpoints
from continual.streams import benchmark, sets
from continual.streams import packed as packing
from continual.streams.data import PARTS

MANY = int(os.environ.get("CONTINUAL_FUZZ", "0"))
SECONDS = 60
"""Within which each input is done with, on a machine that does other things too."""
TINY = ("--seeds", "1", "--model", "mlp:layers=4", "--iterations", "1", "--train-samples", "4")


def tried(usual: int) -> Any:
    """The settings of a test that tries so many inputs, always the same unless many are asked for."""
    return settings(
        max_examples=MANY or usual,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def bounded() -> Iterator[None]:
    """Within it nothing takes longer than it may."""

    def late(*_: Any) -> None:
        raise AssertionError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def invoke(*arguments: object) -> Result:
    with bounded():
        return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(said: Result) -> None:
    """It was said what is wrong, and nothing else."""
    what = (said.exit_code, said.output[-2000:], said.exception)
    assert said.exception is None or isinstance(said.exception, SystemExit), what
    assert said.exit_code == 2 and "Traceback" not in said.output, what
    assert said.stderr.startswith("continual: ") and len(said.stderr) < 5000, what
    said.stderr.encode()


def done_or_refused(said: Result) -> None:
    """It was done, or :func:`refused`; a published table that was done may differ from what was published."""
    differs = said.exit_code == 1 and isinstance(said.exception, SystemExit) and "differs" in said.stdout
    if not differs and (said.exit_code != 0 or said.exception is not None):
        refused(said)


def everything(folder: Path) -> dict[str, str]:
    """Every file and folder with a checksum of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A current folder with a results folder ``runs`` in it, and a data root."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CONTINUAL_DATA", str(folder / "data"))
        patch.setattr(sets, "_downloading", _refused)
        published(folder / "data")
        made = CliRunner().invoke(main, ["run", "split-digits:limit=4", "finetune", *TINY, "--quiet"])
        assert made.exit_code == 0, made.output
        yield folder


def published(root: Path) -> None:
    """A data root with a very small MNIST, as its extracted files, and two classes of images."""
    rng = np.random.default_rng(0)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4BIII", 0, 0, 8, 3, count, 28, 28) + images.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes())
    for part in ("train", "val"):
        for name in "ab":
            (root / "imagenet" / part / name).mkdir(parents=True)
            for number in range(2):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
                image.save(root / "imagenet" / part / name / f"{number}.png")


@contextmanager
def _refused(root: Path, refused: Callable[[str], Exception]) -> Iterator[Path]:
    raise refused("no network here")
    yield root


@pytest.fixture
def untouched(bench: Path) -> Iterator[Path]:
    """The folder, in which nothing but what lies in ``runs`` and ``data`` may change."""

    def elsewhere() -> dict[str, str]:
        own = ("runs", "data")
        return {name: each for name, each in everything(bench).items() if Path(name).parts[0] not in own}

    before = elsewhere()
    yield bench
    assert elsewhere() == before


# ---- what is typed

NUMBERS = st.sampled_from(["0", "-1", "1", "2", "1e9", "10**18", str(10**9), str(10**12), str(10**30), "9" * 5000,
                           "nan", "inf", "1e400", "0x10", "1_000", "٣", "1.5", "-0.0", "1e-400"])  # fmt: skip
WORDS = st.sampled_from(["", " ", "none", "true", "seed", "natural", "1-2-3", "1--2", "0-0", "-", "--", "../../x",
                         "/etc", "~nobody/x", "a:b:c", "=", ",", ":", "+", "<script>", "%s", "{}", "\x1b[31m", "é",
                         "\0", "\ud800", "a" * 3000, "x/y", "..", "."])  # fmt: skip
TEXT = st.text(max_size=12)
VALUES = NUMBERS | WORDS | TEXT
STRATEGY_OPTIONS = st.sampled_from(
    [
        "strength",
        "capacity",
        "samples",
        "fisher_samples",
        "layers",
        "alpha",
        "share",
        "x",
        "passes",
        "retrain",
        "latent",
        "interval",
        "compare",
        "batch_size",
    ]
)
STREAM_OPTIONS = st.sampled_from(["tasks", "limit", "order", "pad", "validation", "scenario", "angles", "size",
                                  "folder", "subset", "permutation_seed", "x", ""])  # fmt: skip
STRATEGIES = st.sampled_from(
    [
        "finetune",
        "ewc",
        "replay",
        "der",
        "gem",
        "a-gem",
        "owm",
        "si",
        "rwalk",
        "lwf",
        "packnet",
        "gdumb",
        "icarl",
        "generative-replay",
        "mir",
        "gss",
        "nothing",
        "avalanche:Nothing",
        "os:system",
        "continual.strategies.ewc:Nope",
        "ewc+",
        "+ewc",
        "",
    ]
)
BENCHMARKS = st.sampled_from(
    ["split-digits", "split-mnist", "split-imagenet", "split-cifar10", "nothing", "digits", ""]
)
FLAGS = st.sampled_from(["--seeds", "--epochs", "--iterations", "--batch", "--evaluate-every", "--train-samples",
                         "--evaluate-samples", "--threads", "--pixels", "--precision", "--optimizer", "--schedule",
                         "--augment", "--model", "--device", "--data", "--picture", "--seeds-as", "--program", "--last",
                         "--nothing", "--jobs", "--row"])  # fmt: skip


@st.composite
def named(draw: Any, names: Any, options: Any) -> str:
    """``NAME:option=value,...``, more or less."""
    pairs = draw(st.lists(st.tuples(options, VALUES), max_size=2))
    return str(draw(names)) + (":" + ",".join(f"{name}={value}" for name, value in pairs) if pairs else "")


MODELS = named(st.sampled_from(["mlp", "cnn", "resnet18", "torchvision", "nothing"]),
               st.sampled_from(["layers", "channels", "units", "width", "weights", "norm"]))  # fmt: skip
OPTIMIZERS = named(st.sampled_from(["sgd", "adam", "nothing"]), st.sampled_from(["lr", "momentum", "eps", "x"]))
AUGMENTS = named(st.sampled_from(["images", "none"]), st.sampled_from(["crop", "cutout", "brightness", "x"]))
FLAGGED = st.tuples(FLAGS, VALUES | MODELS | OPTIMIZERS | AUGMENTS)


@st.composite
def lines(draw: Any) -> list[str]:
    """A command line."""
    flags = [word for pair in draw(st.lists(FLAGGED, max_size=3)) for word in pair]
    command = draw(
        st.sampled_from(["run", "run", "run", "show", "report", "compare", "reproduce", "list", "check", "x"])
    )
    if command != "run":
        places = st.sampled_from(["runs", "runs/nothing", "van-de-ven-2020", "strategies"]) | VALUES
        more = draw(st.lists(st.sampled_from(["--metrics", "--format", "--error", "--title", "--figures", "--matrix"])))
        return [command, *draw(st.lists(places, max_size=2)), *more, *draw(st.lists(VALUES, max_size=2)), *flags[:2]]
    what = [draw(named(BENCHMARKS, STREAM_OPTIONS)), *draw(st.lists(named(STRATEGIES, STRATEGY_OPTIONS), max_size=2))]
    return [command, *what, *TINY, *flags, "--quiet"]


@tried(80)
@given(line=lines())
def test_whatever_is_typed(untouched: Path, line: list[str]) -> None:
    # what is valid is run, in the results folder; pictures, reports and figures lie where they are asked for
    asked = {"--picture", "--figures", "report", "check"}
    if not asked & set(line):
        done_or_refused(invoke(*line))


FAR = ("999999999999999999999999999999", "10000000000000", "1000000000", "300000000", "-1", "0", "1e300", "nan",
       "1e-300", "1" * 5000, "x" * 3000, "../../x", "\0", "true", "none", "0-1", "1000000000-")  # fmt: skip


def far_off() -> list[tuple[str, str, str]]:
    """Every option that there is, each with its kind and the name of what has it."""
    found = [("training", "", name) for name in options_of(Training) if name not in ("threads", "compile")]
    for kind in ("strategies", "models", "optimizers", "schedules", "augmentations", "benchmarks"):
        for owner in registered(kind):
            found += [(kind, owner, name) for name in options_of(plugins.find(kind, owner))]
    return found


FLAG = {"models": "--model", "optimizers": "--optimizer", "schedules": "--schedule", "augmentations": "--augment"}


@tried(60)
@given(option=st.sampled_from(far_off()), value=st.sampled_from(FAR))
def test_one_option_that_is_far_off(untouched: Path, option: tuple[str, str, str], value: str) -> None:
    """Thousands of millions of anything are refused, and not begun."""
    kind, owner, name = option
    stream, strategy, words = "split-digits:limit=3", "finetune", list(TINY)
    given = f"{owner}:{name}={value}"
    if kind == "training":
        words = ["--seeds", "1", "--model", "mlp:layers=4", *([] if name in ("iterations", "epochs") else TINY[4:])]
        words += [f"--{name.replace('_', '-')}", value]
        if options_of(Training)[name].hint is bool:
            words.pop()
    elif kind == "strategies":
        strategy = given
    elif kind == "benchmarks":
        stream = given
    else:
        stream = "split-imagenet:tasks=2,size=32" if owner in ("cnn", "resnet18", "torchvision") else stream
        words += [FLAG[kind], given]
    done_or_refused(invoke("run", stream, strategy, *words, "--quiet"))


# ---- files

YAML = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.sampled_from(["ewc", "finetune", "split-digits"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
HARD = st.sampled_from([
    "seeds: " + "9" * 5000, "a: 2001-99-99", "a: !!int x", "a: !!float x", 'a: !!binary "x"', "a: !!timestamp x",
    "a: !!python/object/apply:os.system ['touch hacked']", "a: !unknown x", "[" * 3000 + "]" * 3000, "{a: " * 300,
    "strategies: &a [*a]", "benchmark: &a {name: split-digits, x: *a}", "? [1, 2]\n: 3", "? {a: 1}\n: 3", "<<: 3",
    "a: &a {<<: *a}", "a: *nothing", "%YAML 9.9\n--- a", "--- a\n--- b", "a: 1\na: 2", "{1: 2}", "~", "", "- a", "'",
    "\ufeffseeds: 1", "a: \x85", "a: \u2028b", "? a", "a: |\n  b\n c", "\tseeds: 1", "@", "`", "benchmark: {name: [1]}",
    "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "strategies: [" + ", ".join(["{name: ewc}"] * 40000) + "]", "x: " + "y" * 10**6,
    "benchmark: {sequence: [split-digits, {sequence: [split-digits]}]}", "model: {name: mlp, layers: [1.0e+30]}",
    "benchmark: {name: split-digits, order: [[0]]}", "strategies: [[ewc, [replay]]]", "strategies: {name: ewc+replay}",
])  # fmt: skip
NAMES = (
    "benchmark",
    "strategies",
    "model",
    "optimizer",
    "schedule",
    "augment",
    "seeds",
    "epochs",
    "batch",
    "precision",
    "source",
    "metric",
    "spread",
    "protocol",
    "columns",
    "rows",
)
TABLE = {"source": "s", "metric": "average-accuracy", "spread": "sd", "seeds": 2, "columns": {"c": {}},
         "protocol": {"benchmark": {"name": "split-digits", "limit": 3}, "iterations": 1, "model": "mlp:layers=4"},
         "rows": {"r": {"strategy": "finetune", "cells": {"c": "50 ± 1"}}}}  # fmt: skip


def mutated(value: Any) -> Any:
    """A strategy for a value of JSON's types in which one part is another, or is missing."""
    inner = [YAML]
    if isinstance(value, dict) and value:
        key = st.sampled_from(sorted(value))
        inner.append(key.flatmap(lambda name: mutated(value[name]).map(lambda new: {**value, name: new})))
        inner.append(key.map(lambda name: {other: each for other, each in value.items() if other != name}))
        inner.append(st.tuples(TEXT, YAML).map(lambda pair: {**value, pair[0]: pair[1]}))
    if isinstance(value, list) and value:
        place = st.integers(0, len(value) - 1)
        inner.append(place.flatmap(lambda n: mutated(value[n]).map(lambda new: [*value[:n], new, *value[n + 1 :]])))
        inner.append(st.just(value * 2))
    return st.one_of(inner)


def damaged(content: bytes) -> Any:
    """A strategy for bytes that are cut off, changed in places, longer, or others: of a file of any kind."""
    place = st.integers(0, max(0, len(content) - 1))
    changed = st.tuples(place, st.integers(1, 255)).map(
        lambda one: content[: one[0]] + bytes([content[one[0]] ^ one[1]]) + content[one[0] + 1 :]
    )
    return st.one_of(place.map(lambda n: content[:n]), changed, st.binary(max_size=64),
                     st.binary(max_size=8).map(lambda more: content + more))  # fmt: skip


@tried(80)
@given(file=st.one_of(
    HARD.map(str.encode), YAML.map(lambda value: json.dumps(value).encode()), st.binary(max_size=80),
    st.dictionaries(st.sampled_from(NAMES), YAML, max_size=4).map(lambda value: json.dumps(value).encode()),
    damaged(json.dumps(TABLE).encode()),
), command=st.sampled_from(["run", "reproduce"]))  # fmt: skip
def test_whatever_lies_in_a_run_file(untouched: Path, file: bytes, command: str) -> None:
    (untouched / "runs" / "mine.yaml").write_bytes(file)
    asked = [*TINY, "--epochs", "1"] if command == "run" else ["--seeds", "1", "--out", "runs/reproduced"]
    done_or_refused(invoke(command, "runs/mine.yaml", *asked, "--quiet"))


@tried(60)
@given(table=mutated(TABLE))
def test_a_published_table_of_another_form(untouched: Path, table: Any) -> None:
    (untouched / "runs" / "mine.yaml").write_text(json.dumps(table))
    done_or_refused(invoke("reproduce", "runs/mine.yaml", "--seeds", "1", "--out", "runs/reproduced", "--quiet"))


# ---- stored runs


@pytest.fixture(scope="module")
def run_files(bench: Path) -> dict[str, bytes]:
    out = bench / "runs" / "whole"
    assert (
        CliRunner().invoke(main, ["run", "split-digits:limit=4", "finetune", *TINY, "--out", str(out)]).exit_code == 0
    )
    (folder,) = (path.parent for path in out.glob("*/*/run.json"))
    return {name: (folder / name).read_bytes() for name in (store.RECORD, store.ARRAYS)}


def looked_at(folder: Path) -> Iterator[Result]:
    """Everything that reads stored runs."""
    yield invoke("show", folder, "--metrics", "all", "--matrix")
    for style in ("markdown", "latex", "csv", "json"):
        yield invoke("show", folder, "--format", style)
    yield invoke("compare", folder, folder)


@contextmanager
def stored(bench: Path, files: dict[str, bytes]) -> Iterator[Path]:
    """A results folder of one run with these files."""
    place = bench / "runs" / "one" / "x" / "y"
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    try:
        yield bench / "runs" / "one"
    finally:
        shutil.rmtree(bench / "runs" / "one")


@tried(80)
@given(data=st.data(), name=st.sampled_from([store.RECORD, store.ARRAYS]))
def test_a_damaged_run(untouched: Path, run_files: dict[str, bytes], data: Any, name: str) -> None:
    content = data.draw(damaged(run_files[name]))
    with stored(untouched, run_files | {name: content}) as out:
        said = invoke("show", out)
        if content != run_files[name] and name == store.ARRAYS:
            refused(said)
        done_or_refused(said)


def signed(record: Any, arrays: bytes) -> bytes:
    """The record with checksums that are right, as another program could have written it."""
    if not isinstance(record, dict):
        return json.dumps(record).encode()
    whole = {name: value for name, value in record.items() if name != "sha256"}
    sums = {"record": store._record_digest(whole), store.ARRAYS: hashlib.sha256(arrays).hexdigest()}
    return json.dumps(whole | {"sha256": sums}).encode()


@tried(30)
@given(data=st.data())
def test_a_run_of_another_form(untouched: Path, run_files: dict[str, bytes], data: Any) -> None:
    """Its checksums are right; so what is in it has to be looked at."""
    record = data.draw(mutated(json.loads(run_files[store.RECORD])))
    with stored(untouched, run_files | {store.RECORD: signed(record, run_files[store.ARRAYS])}) as out:
        for said in looked_at(out):
            done_or_refused(said)


ODD = st.sampled_from([np.zeros(0), np.zeros((1, 1, 0)), np.full((1, 6, 5), np.inf), np.full((1, 6, 5), -1.0),
                       np.zeros((1, 6, 5), np.int8), np.zeros((1, 6, 5), np.bool_), np.full((1, 6, 5), np.nan),
                       np.zeros((1, 6, 5), np.complex64), np.zeros((2, 6, 5)), np.zeros((1, 5, 6)), np.array(3.0),
                       np.full((1, 6, 5), 1e300), np.zeros((1, 0, 5)), np.zeros((1, 3, 5)), np.arange(3),
                       np.array([0.5, np.nan, 3.0]), np.array([7, 8, 9]), np.zeros((1, 6, 5), np.float16)])  # fmt: skip


@tried(30)
@given(
    changed=st.dictionaries(
        st.sampled_from(
            ["accuracy", "trace", "trace_task", "trace_step", "loss", "../../x", "training_accuracy", "stored_samples"]
        ),
        ODD,
        min_size=1,
        max_size=4,
    )
)
def test_arrays_of_another_form(untouched: Path, run_files: dict[str, bytes], changed: dict[str, Any]) -> None:
    try:
        arrays = packed(unpacked(run_files[store.ARRAYS]) | changed)
    except SafetensorError:  # complex numbers, of which earlier versions know nothing
        reject()
    record = signed(json.loads(run_files[store.RECORD]), arrays)
    with stored(untouched, {store.RECORD: record, store.ARRAYS: arrays}) as out:
        for said in looked_at(out):
            done_or_refused(said)


HOSTILE = st.sampled_from(
    [
        "<script>alert(1)</script>",
        "a|b",
        "a_b",
        "50%",
        "\\input{x}",
        "a&b",
        "$x$",
        "../../x",
        "a\nb",
        "\x1b[2J",
        "#{x}",
        "~^",
        '"><img src=x onerror=alert(1)>',
        "]]>",
        "*a*",
        "`a`",
    ]
)


@tried(4)
@given(data=st.data())
def test_hostile_names_in_everything_that_shows_them(untouched: Path, run_files: dict[str, bytes], data: Any) -> None:
    """They are escaped, and name no file."""
    record, name = json.loads(run_files[store.RECORD]), data.draw(HOSTILE)
    record["title"] = name
    record["strategy"][0]["name"] = name
    record["protocol"]["benchmark"] = {"name": name, name: name}
    record["protocol"]["model"] = name
    with stored(untouched, run_files | {store.RECORD: signed(record, run_files[store.ARRAYS])}) as out:
        for said in looked_at(out):
            done_or_refused(said)
        said = invoke("report", out, "--figures", out / "figures", "--title", name)
        assert said.exit_code == 0, (said.output, said.exception)
        page = (out / "report.html").read_text()
        assert "<script>alert" not in page and "<img" not in page
        latex = invoke("show", out, "--format", "latex").stdout
        assert "\\input{" not in latex and "50%" not in latex.replace("50\\%", "")
        rows = [line for line in invoke("show", out, "--format", "markdown").stdout.splitlines() if line[:1] == "|"]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


# ---- checkpoints

KILLED = ("run", "split-digits:limit=4,tasks=3", "ewc+replay:capacity=4", "--seeds", "2", "--model", "mlp:layers=4",
          "--iterations", "3", "--train-samples", "4", "--seeds-as", "loop", "--checkpoint-steps", "1")  # fmt: skip
REASON = re.compile(r"(?m)^ewc\+replay:capacity=4: .*(?: is damaged: | is of | is not a checkpoint|, being of )")


class Left(dict[str, bytes | Path | None]):
    """What lies in a folder of checkpoints by name: what is in a file, what a link shows, a folder (None)."""

    def __repr__(self) -> str:
        return str({name: hashlib.sha256(one).hexdigest()[:8] if isinstance(one, bytes) else one
                    for name, one in self.items()})  # fmt: skip


def outcome(out: Path) -> tuple[bytes, dict[str, Any]]:
    """What the one run there gave, without what a clock said."""
    (place,) = (path.parent for path in out.glob("*/*/run.json"))
    record = json.loads((place / store.RECORD).read_bytes())
    del record["time"], record["written"], record["sha256"]
    return (place / store.ARRAYS).read_bytes(), record


@pytest.fixture(scope="module")
def killed(bench: Path) -> tuple[str, dict[str, bytes], tuple[bytes, dict[str, Any]]]:
    """Where the checkpoints of a run lie that was interrupted in its second seed, they, and what it gives unharmed."""
    whole, out = bench / "runs" / "unharmed", bench / "runs" / "interrupted"
    assert invoke(*KILLED, "--out", whole).exit_code == 0
    keep, left = resume.Group.keep, iter(range(17))

    def interrupted(self: resume.Group, state: Any) -> None:
        keep(self, state)
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume.Group, "keep", interrupted)
        assert invoke(*KILLED, "--out", out).exit_code == 130
    (folder,) = out.glob("*/.checkpoints-*/*")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(name[:10] for name in files) == ["0x1.finish", "1x1.task-0", "1x1.task-0", "how.json"]
    return str(folder.relative_to(out)), files, outcome(whole)


def header_of(content: bytes) -> tuple[Any, bytes]:
    """The header of a safetensors file, as JSON, and what follows."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def other_text(content: bytes) -> Any:
    """The JSON that a checkpoint's header has, changed under the old checksum."""
    header, rest = header_of(content)
    said = header["__metadata__"]
    texts = st.one_of(
        mutated(json.loads(said["checkpoint"])).map(json.dumps), HARD, st.just(said["checkpoint"] + " "),
        st.just("[" * 100_000), st.just('{"facts":' * 5000),
    ).filter(is_text)  # fmt: skip
    return texts.map(lambda text: with_header(header | {"__metadata__": said | {"checkpoint": text}}, rest))


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, -1, 2**31, 2**62, 2**63, 2**64, 1.5, "1", None]), max_size=4)
DTYPES = st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64",
                          "U16", "X", "", None, 3])  # fmt: skip
OFFSETS = st.lists(st.sampled_from([0, 1, 4, 8, 16, 40, -1, 2**63, 2**64, 1e9]), max_size=3)


@st.composite
def other_tensor(draw: Any, content: bytes) -> bytes:
    """A checkpoint one of whose tensors has another name, shape, type or place."""
    header, rest = header_of(content)
    name = draw(st.sampled_from(sorted(header)))
    one = dict(header.pop(name))
    part = draw(st.sampled_from(["shape", "dtype", "data_offsets", "name"]))
    if part != "name":
        one[part] = draw({"shape": SHAPES, "dtype": DTYPES, "data_offsets": OFFSETS}[part])
    size = {"F64": 8, "I64": 8, "F32": 4, "BOOL": 1}.get(one.get("dtype", ""), 0)
    if size and draw(st.booleans()):  # another shape of as many numbers
        first, last = one["data_offsets"] if part != "data_offsets" else (0, 0)
        one["shape"] = draw(st.sampled_from([[(last - first) // size], [1, (last - first) // size], [0, 2**40]]))
    others = st.sampled_from([name, "learners/theta", "../../x", "/etc/passwd", "", "\0", "learners/memory/x", "rows"])
    return with_header(header | {draw(others): one}, rest)


HOWS = st.sampled_from([{"how": "map"}, {"how": "processes"}, {"threads": 2}, {"threads": -1}, {"threads": 10**30},
                        {"cores": 0}, {"where": "nowhere"}, {"inner": "../../x"}, {"more": 1}])  # fmt: skip


def other_how(content: bytes) -> Any:
    """What says how a run is done, changed."""
    said = json.loads(content)
    return st.one_of(
        mutated(said).map(lambda value: json.dumps(value).encode()), HARD.map(str.encode), damaged(content),
        HOWS.map(lambda new: json.dumps({**said, "how": said["how"] | new}).encode()), st.just(b"[" * 100_000),
        HOWS.map(lambda new: json.dumps(said["how"] | new).encode()), st.just(json.dumps(said, indent=3).encode()),
    )  # fmt: skip


NAMED = ("0x1.finished", "1x1.finished", "0x2.finished", "0x1.task-0002.step-000000001", "0x1.task-0009.step-000000002",
         "1x1.task-9999.step-999999999", "1x1.task--001.step-x", "1x1.task-../../x".replace("/", "\\"), "x", "é",
         "1x1.task-0000.step-000000001", "-1x1.task-0000.step-000000001", "0x2.task-0001.step-000000001")  # fmt: skip


CHANGES: dict[str, Callable[[bytes], Any]] = {"bytes": damaged, "text": other_text, "tensor": other_tensor}


@st.composite
def harmed(draw: Any, files: dict[str, bytes]) -> Left:
    """The files of an interrupted run of which one, two or three are no longer what they were."""
    found = Left(files)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        how = draw(st.sampled_from([*CHANGES, *CHANGES, "swap", "name", "odd", "gone"]))
        if how == "swap":
            other = draw(st.sampled_from(sorted(files)))
            found[name], found[other] = found.get(other, b""), found.get(name, b"")
        elif how == "name":
            found[f"{draw(st.sampled_from(NAMED))}.safetensors"] = files[name]
        elif how == "odd":
            found[name] = draw(st.sampled_from([None, *map(Path, ("/dev/zero", "/nothing", ".", "how.json"))]))
        elif how == "gone":
            found.pop(name, None)
        elif name == "how.json":
            found[name] = draw(other_how(files[name]))
        else:
            found[name] = draw(CHANGES[how](files[name]))
    return found


def lay(folder: Path, files: Left) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        if content is None:
            (folder / name).mkdir()
        elif isinstance(content, Path):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)


def same(one: bytes, other: Any) -> bool:
    """Whether two files of tensors say the same, whatever white space is between."""
    try:
        return header_of(one) == header_of(other)
    except (ValueError, TypeError, RecursionError):
        return False


@tried(80)
@given(data=st.data())
def test_damaged_checkpoints(untouched: Path, killed: Any, data: Any) -> None:
    """What is damaged is refused with a reason; and what comes out is the same in any case, bit for bit."""
    place, files, whole = killed
    left, out = data.draw(harmed(files)), untouched / "runs" / "again"
    shutil.rmtree(out, ignore_errors=True)
    lay(out / place, left)
    there = [path.name for path in (out / place).iterdir() if path.exists()]
    said = invoke(*KILLED, "--out", out)
    assert said.exit_code == 0 and said.exception is None, (said.output[-2000:], said.exception)
    assert outcome(out) == whole
    assert len(list(out.rglob("*"))) == 4, "nothing is left behind"
    told = [line for line in said.stderr.splitlines() if " MB of images, in " not in line]
    assert all(line.startswith(KILLED[2]) for line in told), said.stderr
    first, *_, last = sorted(name for name in files if name != "how.json")
    for name in (first, last):
        if name in there and not same(files[name], left[name]):
            assert REASON.search(said.stderr), said.stderr
    if left == files:
        assert "goes on where it was interrupted (seed 0 finished; seed 1 after step " in said.stderr
        assert not REASON.search(said.stderr)


def test_checkpoints_of_another_run_are_refused(untouched: Path, killed: Any) -> None:
    """Every file lies in its place, but was written for another strategy."""
    place, files, whole = killed
    out = untouched / "runs" / "again"
    shutil.rmtree(out, ignore_errors=True)
    other = [word.replace("capacity=4", "capacity=5") for word in KILLED]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "forget", lambda self: None)
        assert invoke(*other, "--out", out).exit_code == 0
    (folder,) = out.glob("*/.checkpoints-*/*")
    strange = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(out)
    lay(out / place, files | strange)
    said = invoke(*KILLED, "--out", out)
    assert "another configuration (strategy.1.capacity 5, not 4" in said.stderr and outcome(out) == whole


@pytest.mark.parametrize("where", ["", "..", "how.json", "0x1.finished.safetensors", "../fedcba98/x.safetensors"])
@pytest.mark.parametrize("what", ["file", "pipe", "folder", "link"])
def test_something_else_lies_where_checkpoints_would(untouched: Path, killed: Any, where: str, what: str) -> None:
    place, files, whole = killed
    out = untouched / "runs" / "again"
    shutil.rmtree(out, ignore_errors=True)
    if where not in ("", ".."):
        lay(out / place, files)
    path = Path(os.path.normpath(out / place / where))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to("/nothing")
    else:
        path.mkdir() if what == "folder" else path.write_bytes(b"[" * 100_000)
    said = invoke(*KILLED, "--out", out)
    assert said.exit_code == 0 and said.exception is None, (said.output[-2000:], said.exception)
    assert outcome(out) == whole and len(list(out.rglob("*"))) == 4
    if where in ("", "..") and what != "folder":
        assert "no checkpoint could be written to" in said.stderr and "the run goes on without" in said.stderr


# ---- data


@tried(20)
@given(
    data=st.data(),
    name=st.sampled_from(["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"]),
    zipped=st.booleans(),
)
def test_damaged_published_files(untouched: Path, data: Any, name: str, zipped: bool) -> None:
    root = untouched / "runs" / "broken"
    shutil.rmtree(root, ignore_errors=True)
    published(root)
    benchmark._load.cache_clear()
    file = root / "MNIST" / "raw" / name
    content = data.draw(damaged(file.read_bytes()))
    file.unlink()
    (file.with_name(f"{name}.gz") if zipped else file).write_bytes(gzip.compress(content) if zipped else content)
    said = invoke("run", "split-mnist:tasks=2", *TINY, "--data", root, "--again", "--quiet")
    refused(said) if zipped else done_or_refused(said)


@tried(20)
@given(data=st.data())
def test_damaged_packed_files(untouched: Path, data: Any) -> None:
    file = untouched / "data" / "packed" / "digits" / "original.safetensors"
    whole = file.read_bytes()
    content = data.draw(damaged(whole[:2000]).map(lambda head: head + whole[2000:]))
    file.write_bytes(content)
    benchmark._load.cache_clear()
    said = invoke("run", "split-digits:limit=3", "finetune", *TINY, "--again", "--quiet")
    file.write_bytes(whole)
    benchmark._load.cache_clear()
    refused(said) if content != whole else done_or_refused(said)


@tried(10)
@given(data=st.data(), size=st.sampled_from(["none", "8", "32"]), skip=st.booleans())
def test_damaged_images(untouched: Path, data: Any, size: str, skip: bool) -> None:
    root = untouched / "runs" / "broken"
    shutil.rmtree(root, ignore_errors=True)
    published(root)
    benchmark._load.cache_clear()
    file = root / "imagenet" / "train" / "a" / "0.png"
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    stream = f"split-imagenet:tasks=2,size={size},skip={str(skip).lower()}"
    said = invoke("run", stream, "finetune", *TINY, "--data", root, "--again", "--quiet")
    done_or_refused(said)


@tried(15)
@given(
    content=st.one_of(
        damaged(b"a\nb\n"), st.sampled_from([b"a\n../train/a\n", b"a\n/etc\n", b"a\n.\n", b"\xff", b"a\na\n"])
    )
)
def test_lists_of_classes(untouched: Path, content: bytes) -> None:
    file = untouched / "runs" / f"{hashlib.sha256(content).hexdigest()[:12]}.txt"
    file.write_bytes(content)
    done_or_refused(invoke("run", f"split-imagenet:tasks=1,size=8,subset={file}", "finetune", *TINY, "--quiet"))


@pytest.fixture(scope="module")
def weights(bench: Path) -> dict[str, bytes]:
    """Files of a few weights, which are not those of a network of torchvision."""
    found = {}
    for name, save in (("w.pt", torch.save), ("w.safetensors", save_file)):
        save({"fc.weight": torch.zeros(2, 3)}, bench / "runs" / name)
        found[name] = (bench / "runs" / name).read_bytes()
    return found


@tried(6)
@given(data=st.data(), name=st.sampled_from(["w.pt", "w.safetensors"]))
def test_damaged_weights(untouched: Path, weights: dict[str, bytes], data: Any, name: str) -> None:
    (untouched / "runs" / name).write_bytes(data.draw(damaged(weights[name])))
    refused(invoke("run", "split-imagenet:tasks=2,size=32", "finetune", *TINY[:2], "--iterations", "1", "--quiet",
                   "--model", f"torchvision:weights=runs/{name}"))  # fmt: skip


FACTS = {"data": "0" * 64, "classes": '["0", "1"]', "skipped": "[]", "joined": "[]", "top": "255.0", "source": ""}
TENSORS = {"x": torch.zeros(4, 1, 2, 2, dtype=torch.uint8), "y": torch.tensor([0, 1, 0, 1]),
           "x_test": torch.zeros(2, 1, 2, 2, dtype=torch.uint8), "y_test": torch.tensor([0, 1])}  # fmt: skip
STRANGE = st.sampled_from([torch.zeros(4, 1, 2, 2), torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 9]),
                           torch.tensor([-1, 0]), torch.zeros(0, dtype=torch.int64), torch.tensor(3)])  # fmt: skip


@tried(60)
@given(
    facts=st.dictionaries(st.sampled_from(sorted(FACTS)), st.none() | HARD.map(lambda text: text[:50]) | TEXT | NUMBERS,
                          max_size=2),
    tensors=st.dictionaries(st.sampled_from(sorted(TENSORS)), STRANGE, max_size=2),
)  # fmt: skip
def test_packed_files_of_another_form(tmp_path_factory: pytest.TempPathFactory, facts: Any, tensors: Any) -> None:
    """Their checksums are right; so what is in them has to be looked at."""
    whole = {**FACTS, **facts, "format": sets.FORMAT, "name": "digits"}
    said = {name: value for name, value in whole.items() if value is not None and is_text(value)}
    held = {name: tensor.clone() for name, tensor in (TENSORS | tensors).items()}
    said["sha256"] = packing._checksum(said, {part: held[part] for part in PARTS})
    file = tmp_path_factory.mktemp("data") / "packed" / "digits" / "original.safetensors"
    file.parent.mkdir(parents=True)
    save_file(held, file, said)
    try:
        sets.load("digits", file.parents[2])
    except BadData as mistake:
        assert str(file) in str(mistake) and "delete this file" in str(mistake)
    else:
        assert not tensors.keys() - {"x", "x_test"}


def test_a_packed_file_of_the_right_form_is_read(tmp_path: Path) -> None:
    """What the test above changes is otherwise good."""
    said = {**FACTS, "format": sets.FORMAT, "name": "digits"}
    file = tmp_path / "packed" / "digits" / "original.safetensors"
    file.parent.mkdir(parents=True)
    save_file(TENSORS, file, said | {"sha256": packing._checksum(said, {part: TENSORS[part] for part in PARTS})})
    assert sets.load("digits", tmp_path).classes == ("0", "1")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no file without an end")
def test_files_without_an_end(untouched: Path) -> None:
    """A device or a pipe is not read, wherever a file is asked for."""
    endless = untouched / "runs" / "endless"
    endless.mkdir()
    os.mkfifo(endless / "pipe.yaml")
    (endless / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "zero.yaml"):
        file = endless / name
        refused(invoke("run", file))
        refused(invoke("reproduce", file))
        refused(invoke("run", f"split-imagenet:size=8,subset={file}", *TINY, "--quiet"))
        refused(invoke("run", "split-imagenet:size=32", "--model", f"torchvision:weights={file}", "--quiet"))
        refused(invoke("show", file))
        published(endless / name[:4])
        raw = endless / name[:4] / "MNIST" / "raw" / "train-images-idx3-ubyte"
        raw.unlink()
        raw.symlink_to(file)
        refused(invoke("run", "split-mnist:tasks=2", *TINY, "--data", endless / name[:4], "--again", "--quiet"))
        run = endless / name[:4] / "run"
        run.mkdir()
        (run / store.RECORD).symlink_to(file)
        refused(invoke("show", run))
    shutil.rmtree(endless)
