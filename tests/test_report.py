"""The report: what it shows is what was measured, nothing in it can run, and a browser shows it well."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

import continual as cl
from continual import config, files
from continual.cli import main
from continual.errors import one_line
from continual.repeat import repeat
from continual.results import canvas, content, figures, plots, report, store
from continual.results.store import Result

pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
pytest.importorskip("jinja2", reason="Jinja is not installed")

HOSTILE = (
    """<script>window.hacked=1</script><img src=x onerror="window.hacked=1">"'`&{{ 7 * 7 }}$x^2$]]>--></svg>\x07"""
)
SIZES = {"parameters": 100, "memory_bytes": 80, "stored_samples_per_task": [5, 4], "sample_bytes": 784}


def made(name: str, accuracy: Any, trace: bool = False, **more: Any) -> Result:
    """A result with these accuracies (R, T+1, T) and, where asked for, a trace of two evaluations a task."""
    accuracy = np.asarray(accuracy, np.float64)
    tasks = accuracy.shape[2]
    record = {
        "title": name,
        "strategy": [{"name": "finetune"}],
        "protocol": {
            "benchmark": {"name": "split-digits", "tasks": tasks},
            "model": {"name": "mlp", "layers": [10]},
            "training": {"epochs": 1, "batch": 32},
            "seeds": list(range(len(accuracy))),
        },
        "size": SIZES,
        "time": {"began": "2026-01-01T00:00:00+00:00", "seconds": 3.5},
        "device": {"type": "cpu", "name": "a processor"},
        **more,
    }
    arrays = {"accuracy": accuracy}
    if trace:
        arrays |= {"trace": accuracy[:, 1:].repeat(2, axis=1), "trace_step": np.arange(1, 2 * tasks + 1),
                   "trace_task": np.arange(tasks).repeat(2)}  # fmt: skip
    return Result(record, arrays)


def some(seeds: int = 3, tasks: int = 3, seed: int = 0) -> Any:
    """Accuracies between 0 and 1."""
    return np.random.default_rng(seed).uniform(0, 1, (seeds, tasks + 1, tasks))


def page(*results: Result, **given: Any) -> str:
    """The report of results of one experiment."""
    return report.html("A report", [results], [figures.sections(results)], [repeat(results)], **given)


class Elements(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self, ending: str) -> dict[str, str]:
        """What the links to files of an ending hold, by the files' names."""
        found = [each for tag, each in self.elements if tag == "a" and str(each.get("download")).endswith(ending)]
        return {str(each["download"]): _decoded(str(each["href"])) for each in found}


def _decoded(address: str) -> str:
    assert address.startswith("data:")
    return base64.b64decode(address.partition(";base64,")[2]).decode()


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ---- what is in it


def test_experiments_of_one_heading_say_what_tells_them_apart() -> None:
    groups = [[made("a", some())], [made("a", some(seed=1))]]
    for group, letter in zip(groups, "ab", strict=True):
        group[0].record["protocol"]["benchmark"]["sha256"] = 64 * letter
    text = report.html("Two", groups, [[], []], [repeat(group) for group in groups])
    found = re.findall(r"<p>(split-digits .*)</p>", text)
    assert [one.rpartition("; ")[2] for one in found] == ["benchmark.sha256 aaaaaaaa", "benchmark.sha256 bbbbbbbb"]


def test_a_report_needs_nothing_else() -> None:
    elements = Elements(page(made("a", some(), trace=True), made("b", some(seed=1), trace=True))).elements
    assert not {tag for tag, _ in elements} & {"link", "iframe", "object", "embed", "img", "image", "base"}
    addresses = [str(each[name]) for _, each in elements for name in ("src", "href", "xlink:href") if name in each]
    assert addresses and {address[0] for address in addresses if not address.startswith("data:")} <= {"#"}
    (policy,) = [str(each["content"]) for tag, each in elements if "http-equiv" in each]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_every_figure_is_there_as_svg_and_as_the_numbers_that_it_draws() -> None:
    results = made("a", some(), trace=True), made("b", some(seed=1), trace=True)
    links = Elements(page(*results))
    drawn, numbers = links.links(".svg"), links.links(".csv")
    kinds = {"average-accuracy", "forgetting", "time", "memory"}
    kinds |= {f"{kind}-{name}" for kind in ("matrix", "curves", "trace") for name in "ab"}
    assert set(drawn) == {f"{kind}.svg" for kind in kinds} and {f"{kind}.csv" for kind in kinds} < set(numbers)
    for text in drawn.values():
        assert ElementTree.fromstring(text).get("role") == "img"
    for row in read(numbers["matrix-b.csv"]):
        values = results[1].accuracy[:, int(row["after"]), int(row["task"]) - 1]
        assert [float(row["mean"]), float(row["sd"])] == pytest.approx([values.mean(), values.std(ddof=1)])
        assert row["n"] == "3" and row["strategy"] == "b"
    gaps = [float(row["mean"]) for row in read(numbers["trace-a.csv"]) if row["what"] == "stability gap"]
    assert np.mean(gaps) == pytest.approx(results[0].metric("stability-gap").mean())
    lost = [float(row["mean"]) for row in read(numbers["forgetting.csv"]) if row["strategy"] == "a"]
    assert np.mean(lost) == pytest.approx(results[0].forgetting.mean())
    assert {float(row["bytes"]) for row in read(numbers["memory.csv"])} == {100 * 4 + 80 + 5 * 784}
    frozen = made("c", some(), size=SIZES | {"frozen_parameters": 7, "statistics": 2})
    assert plots.held(frozen) == 107 * 4 + 80 + 5 * 784


def test_a_stopped_run_spans_the_stream_and_its_seeds_share_a_line() -> None:
    from continual.results import plots

    stopped = some(seeds=4)
    stopped[1:, 2:] = np.nan
    stopped[0, 1:] = np.nan
    why = [{"seed": seed, "task": 2 - (not seed), "step": 4, "why": "loss not finite"} for seed in range(4)]
    one, other = made("a", stopped, stopped=why), made("b", some())
    assert content.stopped([(each.name, each) for each in (one, other)]) == [
        "seed 0 of a was stopped: loss not finite at task 1, step 4.",
        "seeds 1, 2 and 3 of a were stopped: loss not finite at task 2, step 4.",
    ]
    low, high = plots.by_task(one).get_xlim()
    assert low <= 0 and 3 <= high < 3.5
    axes = plots.against_time([one, other])
    assert axes.get_legend_handles_labels()[1] == ["b"]  # a has no average accuracy


def test_an_accuracy_never_promises_more_than_all() -> None:
    from continual.results import plots

    two = made("a", [[[1.0, 0.2], [1.0, 0.2], [1.0, 1.0]], [[0.5, 0.2], [0.5, 0.2], [0.1, 0.1]]])  # an interval of ±5
    for limits in (plots.compare([two, two]).get_xlim(), plots.against_time([two]).get_ylim()):
        assert limits == (-3, 103)
    least, _ = plots.compare([two], "backward-transfer").get_xlim()
    assert least < -3


@pytest.mark.parametrize("colours", ["Blues", "Oranges"])
def test_numbers_are_read_on_every_shade(colours: str) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    def light(colour: Any) -> float:
        """Relative luminance after WCAG 2."""
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for shade in colormaps[colours](np.linspace(0, 1, 101)):
        low, high = sorted([light(shade), light(canvas.ink_on(shade))])
        assert (high + 0.05) / (low + 0.05) >= 4.5  # level AA


def test_a_colour_blind_reader_tells_the_colours_apart() -> None:
    """Under deuteranopia (Machado et al. 2009, severity 1), by the distance in CIELAB; a just noticeable one is 2.3."""
    from matplotlib.colors import to_rgb

    seen = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

    def lab(colour: Any) -> Any:
        c = np.array(to_rgb(colour))
        linear = np.clip(seen @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 0, 1)
        x, y, z = np.cbrt(to_xyz @ linear / [0.9505, 1, 1.089])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    for count in (len(canvas.COLOURS), 10):
        shades = [lab(canvas.colour(number, count)) for number in range(count)] + [lab("black"), lab("white")]
        nearest = min(np.linalg.norm(a - b) for i, a in enumerate(shades) for b in shades[:i])
        assert nearest > 7


def test_long_names_are_cut_where_they_differ() -> None:
    from continual.results import plots

    same = "ewc:strength=123456.789,half=false"
    names = [f"{same},fisher_batch=16+replay", f"{same},fisher_batch=32+replay", "finetune", "x" * 40]
    found = canvas.shortened(names, 26)
    assert found == ["ewc:…fisher_batch=16+repl…", "ewc:…fisher_batch=32+repl…", "finetune", f"{'x' * 25}…"]
    results = [made(name, some()) for name in names]
    for labels in (plots.compare(results).get_yticklabels(), plots.forgetting(results).get_yticklabels()):
        assert [label.get_text() for label in labels] == found
    title = plots.matrix(results[0]).get_title()
    assert plots.trace(made(names[0], some(), trace=True)).get_title(loc="left") == names[0]
    assert title == f"{same},\nfisher_batch=16+replay" and plots.matrix(results[2]).get_title() == "finetune"


def test_of_many_tasks_lines_are_all_that_is_drawn() -> None:
    from continual.results import plots

    few, many = (plots.trace(made("a", some(3, tasks), trace=True)) for tasks in (10, 11))
    assert len(few.collections) == 10 and {line.get_marker() for line in few.lines} > {"o", "s"}
    assert not many.collections and {line.get_marker() for line in many.lines} == {"None"}
    assert [text.get_text() for text in many.texts if text.get_text()] == [str(k + 1) for k in range(11)]


def test_a_bar_compares_lines() -> None:
    two, one = page(made("a", some()), made("b", some(seed=1))), page(made("a", some()))
    assert two.count('class="bar"') == 2 * 4 and report.BARS in two  # lines, and metrics without joint training
    assert 'class="bar"' not in one and report.BARS not in one


def test_the_matrix_has_its_numbers_in_it() -> None:
    result = made("a", some())
    (section,) = [one for one in figures.sections([result]) if one.title == "Accuracy matrices"]
    texts = [one.text for one in ElementTree.fromstring(section.figures[0].svg).iter() if one.tag.endswith("text")]
    for value in result.accuracy.mean(0).ravel():
        assert f"{100 * value:.1f}" in texts


def test_what_was_not_measured_is_left_out_and_stopped_seeds_are_told(recwarn: pytest.WarningsRecorder) -> None:
    stopped = some()
    stopped[1, 2:] = np.nan
    why = [{"seed": 1, "task": 2, "step": 17, "why": "loss not finite"}]
    text = Elements(page(made("a", stopped, stopped=why, size={}, time={}), made("b", some(), size={}))).text
    assert "seed 1 of a was stopped: loss not finite at task 2, step 17." in text
    assert "Not recorded, and so not shown under memory: a, b." in text and "Between updates" not in text
    assert not recwarn.list


@pytest.mark.parametrize(("seeds", "tasks"), [(1, 1), (1, 3), (2, 1), (2, 30)])
def test_few_seeds_and_few_or_many_tasks(seeds: int, tasks: int, recwarn: pytest.WarningsRecorder) -> None:
    text = Elements(page(made("a", some(seeds, tasks), trace=True))).text
    assert ("Forgetting by task" in text) == (tasks > 1) and not recwarn.list


def test_all_that_is_not_ours_is_escaped() -> None:
    protocol = made("a", some()).record["protocol"]
    protocol = protocol | {"benchmark": {"name": HOSTILE, "tasks": HOSTILE}, "training": {HOSTILE: HOSTILE}}
    results = [made(name, some(), trace=True, protocol=protocol, versions={HOSTILE: HOSTILE}, device={"name": HOSTILE},
                    code={HOSTILE: "0"}, time={"seconds": 1, "began": HOSTILE}) for name in (HOSTILE, "b")]  # fmt: skip
    elements = Elements(report.html(HOSTILE, [results], [figures.sections(results)], [repeat(results)]))
    tags = [tag for tag, _ in elements.elements]
    assert tags.count("script") == 1 and "img" not in tags and not re.search("49", elements.text.split("Results")[0])
    assert not [each for _, each in elements.elements if any(name.startswith("on") for name in each)]
    assert HOSTILE[:60] in elements.text
    for text in elements.links(".svg").values():
        assert "script" not in {one.tag.rpartition("}")[2] for one in ElementTree.fromstring(text).iter()}
    assert {row["strategy"] for row in read(elements.links(".csv")["forgetting.csv"])} == {HOSTILE, "b"}


def test_names_that_are_alike_do_not_share_a_file(tmp_path: Path) -> None:
    results = [made("a:b=1", some()), made("a:b+1", some(seed=1))]
    written = figures.write(results, figures.sections(results), tmp_path)
    assert len(set(written)) == len(written) and {"matrix-a-b-1.svg", "matrix-a-b-1-2.csv"} <= {p.name for p in written}
    assert all(path.is_relative_to(tmp_path) and path.stat().st_size for path in written)


# ---- how it is repeated


def results_of(given: dict[str, Any]) -> list[Result]:
    """What a plan would give, but for the training: all accuracies are 0."""
    plan = config.plan(given)
    records = [
        {"strategy": [config.describe("strategies", part) for part in one.parts], "protocol": plan.protocol()}
        for one in plan.strategies
    ]
    seeds = len(plan.training.seed_list)
    return [Result(json.loads(json.dumps(one)), {"accuracy": np.zeros((seeds, 3, 2))}) for one in records]


@pytest.mark.parametrize("given", [
    {"benchmark": "split-digits"},
    {"benchmark": "split-digits", "iterations": 7, "batch": 5, "seeds": [3, 9]},
    {"benchmark": "split-digits", "epochs": 1, "seeds": [7], "precision": "float64", "evaluate_every": "epoch"},
    {"benchmark": "mnist:normalize=channel", "evaluate_samples": 50, "optimizer": "sgd:lr=0.1,momentum=0.9"},
    {"benchmark": "split-mnist:order=seed,scenario=domain", "strategies": ["ewc:strength=1e6+replay", "der++"],
     "model": "mlp:layers=400-400", "schedule": "step", "augment": "images:crop=2"},
    {"benchmark": "cifar10-imagenet:size=32,tasks=2-2", "strategies": ["xdg", "bic", "cwr*"]},
], ids=lambda given: given["benchmark"])  # fmt: skip
def test_the_command_is_that_of_the_runs(given: dict[str, Any]) -> None:
    results = results_of(given)
    again = repeat(results)
    words = shlex.split(again.command)
    assert words[:2] == ["continual", "run"] and not again.note
    flags = words.index(next(word for word in words if word.startswith("--")))
    options = {
        name[2:].replace("-", "_"): value for name, value in zip(words[flags::2], words[flags + 1 :: 2], strict=True)
    }
    del options["out"]
    typed = results_of({"benchmark": words[2], "strategies": words[3:flags], **options})
    assert [one.record for one in typed] == [one.record for one in results]


def test_how_it_was_computed_is_repeated_too() -> None:
    """Also where a clock has chosen how seeds are done; of what was asked for, what may move last bits."""
    found = results_of({"benchmark": "split-digits", "strategies": ["finetune", "l2"], "seeds": 2})
    asked = {"threads": 1, "program": "eager", "deterministic": True, "gone": 3}
    for one, way in zip(found, ("loop", "map"), strict=True):
        one.record.update(asked=asked, seeds_as=way, device={"type": "cpu", "name": "x86_64"})
    words = repeat(found).command.partition(" --threads")[2]
    assert words == " 1 --program eager --deterministic --seeds-as map --device cpu --out repeated"
    found[1].record["asked"] = {"threads": 1, "program": "captured"}
    again = repeat(found)
    assert " --threads 1 --seeds-as map " in again.command
    assert again.note == ("not all runs were done with the same deterministic, gone, program, which may move last bits")
    assert again.note in page(*found)
    one = results_of({"benchmark": "split-digits", "strategies": ["finetune"], "seeds": 1})
    one[0].record.update(seeds_as="loop", threads=2, device={"type": "cuda", "name": "a GPU"})
    assert "--seeds-as" not in repeat(one).command and "--threads" not in repeat(one).command
    one[0].record["device"] = {"type": "cpu", "name": "x86_64"}
    assert " --threads 2 --device cpu " in repeat(one).command, "another shell, or machine, has others"
    more = results_of({"benchmark": "split-digits", "strategies": ["finetune", "l2"], "seeds": 1})
    for threads, one_more in zip((1, 2), more, strict=True):
        one_more.record.update(threads=threads, device={"type": "cpu", "name": "x86_64"})
    assert "--threads" not in repeat(more).command and "done with the same threads," in repeat(more).note
    plan = config.plan({"threads": 3, "pixels": "mapped", "seeds_as": "auto", "checkpoint_steps": 5})
    assert plan.asked == {"threads": 3, "pixels": "mapped"}


def test_checksums_of_a_record_are_no_options() -> None:
    given = {"benchmark": "split-cifar10", "model": "torchvision:weights=mine.pt,train=head"}
    plain, found = repeat(results_of(given)), results_of(given)
    for one in found:
        one.record["protocol"]["model"]["weights_sha256"] = one.record["protocol"]["benchmark"]["sha256"] = "0" * 64
    assert plain.command and repeat(found) == plain


def test_the_page_has_the_command_word_for_word() -> None:
    """Each word is an element of its own, within which a line of the page does not end."""
    results = results_of({"benchmark": "split-digits:order=seed", "strategies": ["ewc:strength=3", "l2"], "epochs": 2})
    again = repeat(results)
    (code,) = re.findall(r'<pre class="command"><code>(.*?)</code>', page(*results))
    assert re.findall(r"<span>(.*?)</span>", code) == again.command.split(" ")
    assert re.sub(r"<[^>]+>", "", code) == again.command


def test_the_command_and_the_file_give_the_same_bits(tmp_path: Path) -> None:
    # how seeds are executed is no part of what a run is recognised by, and a busy machine may choose otherwise
    run = {"seeds": 2, "epochs": 2, "batch": 16, "model": "mlp:layers=8", "evaluate_every": 3, "seeds_as": "loop"}
    results = [
        cl.run("split-digits:limit=10", name, **run, out=tmp_path / "a") for name in ("finetune", "l2:strength=3")
    ]
    again = repeat(results)
    assert "--seeds-as loop --threads 1 --device" in again.command and "seeds_as: loop" in again.file
    (tmp_path / "run.yaml").write_text(again.file)
    for words in (shlex.split(again.command)[2:-1], [str(tmp_path / "run.yaml"), "--out"]):
        said = CliRunner().invoke(main, ["run", *words, str(tmp_path / words[0].replace("/", "-")), "--quiet"])
        assert said.exit_code == 0, said.output
        found = store.find(tmp_path / words[0].replace("/", "-"))
        for one, other in zip(results, found, strict=True):
            assert one.record["protocol"] == other.record["protocol"]
            assert all(np.array_equal(one.arrays[name], other.arrays[name], equal_nan=True) for name in one.arrays)


def test_what_no_command_gives_says_why(tmp_path: Path) -> None:
    sequence = {"sequence": ["split-digits:tasks=2", "split-digits:tasks=5"], "size": 8}
    again = repeat(results_of({"benchmark": sequence, "strategies": ["finetune"]}))
    assert not again.command and "continual run FILE.yaml" in again.note
    (tmp_path / "run.yaml").write_text(again.file)
    assert config.plan(config.read_file(tmp_path / "run.yaml")).benchmark == config.make_benchmark(sequence)
    foreign = made("a", some(), strategy=[{"name": "gone:Mine"}])
    assert "gone" in repeat([foreign]).note and "gone:Mine" in repeat([foreign]).file
    other = made("a", some())
    assert "another run" in repeat([other]).note


# ---- as a command


def test_the_command_line(tmp_path: Path) -> None:
    cl.run("split-digits:limit=10", "finetune", seeds=2, epochs=1, out=tmp_path / "runs")

    def typed(*more: object) -> Any:
        return CliRunner().invoke(main, ["report", str(tmp_path / "runs"), *map(str, more)])

    said = typed("--figures", tmp_path / "figures", "--error", "ci95", "--metrics", "forgetting")
    assert said.exit_code == 0 and f"Written to {tmp_path}/runs/report.html." in said.stdout
    assert "half the 95 % interval" in (tmp_path / "runs" / "report.html").read_text()
    assert len([*(tmp_path / "figures").rglob("*.svg")]) == len([*(tmp_path / "figures").rglob("*.csv")]) == 6
    assert len(store.find(tmp_path / "runs")) == 1  # the report beside them is not taken for a run
    for more, message in (
        (["--error", "std"], "'std' is not one of"),
        (["--metrics", "forgeting"], "did you mean 'forgetting'"),
        (["--out", tmp_path / "nowhere" / "a.html"], "nowhere/a.html cannot be written"),
    ):
        refused = typed(*more)
        assert refused.exit_code == 2 and message in refused.stderr and "Traceback" not in refused.output


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("there is no chromium with chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


def shown(browser: Any, file: Path, width: int) -> Any:
    """The page at a width, as a desktop or a phone has it."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(file.as_uri())
    return browser


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of runs with a trace, of a run whose name is hostile and of one without values."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    settings = {"seeds": 3, "epochs": 2, "batch": 16, "model": "mlp:layers=16", "evaluate_every": 3}
    names = ("finetune", "l2:strength=100", "replay:capacity=50", "joint")
    results = [cl.run("split-digits:limit=20", name, **settings) for name in names]
    hostile = made(f"{HOSTILE}{'long' * 30}", some(3, 5), trace=True, protocol=results[0].record["protocol"])
    nothing = made("nothing", np.full((3, 6, 5), np.nan), trace=True, protocol=results[0].record["protocol"])
    results += [hostile, nothing]
    text = report.html(HOSTILE, [results], [figures.sections(results)], [repeat(results)])
    files.write_text(file, text)
    # escaping has to hold without the policy too, which would stop most of what got through
    files.write_text(file.with_name("without.html"), re.sub("<meta http-equiv.*", "", text))
    return file


@pytest.mark.parametrize("width", [1280, 375])
def test_a_browser_opens_it_without_a_complaint_and_nothing_overflows(browser: Any, opened: Path, width: int) -> None:
    from PIL import Image

    page = shown(browser, opened, width)
    assert page.get_log("browser") == []
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    whole, there = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert whole <= there == width
    outside = "return [...document.querySelectorAll('h1, h2, h3, p, figure, pre, .scroll, details')].filter(e => {"
    outside += "const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth + 1 }).length"
    assert page.execute_script(outside) == 0
    sizes = page.execute_script("return [...document.querySelectorAll('figure svg')].map(e => e.clientWidth)")
    assert len(sizes) == 6 * 3 + 4 and min(sizes) > 250
    picture = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("L")
    assert picture.width == width and picture.getextrema()[0] < 80  # something dark on white


def test_nothing_of_a_hostile_name_runs(browser: Any, opened: Path) -> None:
    page = shown(browser, opened.with_name("without.html"), 1280)
    assert page.execute_script("return typeof window.hacked") == "undefined" and page.get_log("browser") == []
    assert page.execute_script("return document.querySelectorAll('script').length") == 1
    assert page.execute_script("return document.querySelectorAll('img, image').length") == 0
    assert page.title == HOSTILE[:-1]  # the control character is none of a title's
    heads = page.execute_script("return [...document.querySelectorAll('tbody th')].map(e => e.textContent)")
    assert any(head.startswith(one_line(HOSTILE)) for head in heads)


def test_sorting_by_click_and_by_keyboard(browser: Any, opened: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page = shown(browser, opened, 1280)
    buttons = page.find_elements(By.CSS_SELECTOR, "button.sort")
    titles = [button.text for button in buttons]

    def column(index: int) -> tuple[list[str], str]:
        """The values in their order, and what the head says of it."""
        cells = f"return [...document.querySelectorAll('tbody tr')].map(e => e.cells[{index}].dataset.value)"
        head = f"return document.querySelectorAll('thead th')[{index}].getAttribute('aria-sort')"
        return page.execute_script(cells), page.execute_script(head)

    average = next(i for i, title in enumerate(titles) if title.startswith("average accuracy"))
    lost = next(i for i, title in enumerate(titles) if title.startswith("forgetting"))
    for index, first, press in (
        (average, "descending", buttons[average].click),
        (lost, "ascending", lambda: buttons[lost].send_keys(Keys.ENTER)),
        (average, "descending", lambda: buttons[average].send_keys(Keys.SPACE)),
    ):
        for order in (first, {"ascending": "descending", "descending": "ascending"}[first]):
            press()
            values, said = column(index)
            numbers = [float(value) for value in values[:-1]]
            assert values[-1] == "" and said == order  # what has no value is last both ways
            assert numbers == sorted(numbers, reverse=order == "descending") and len(set(numbers)) > 3
    buttons[0].click()
    names, said = column(0)
    assert said == "ascending" and names.index("finetune") < names.index("joint") < names.index("replay:capacity=50")
    assert column(average)[1] is None and page.get_log("browser") == []


def test_it_prints(browser: Any, opened: Path) -> None:
    page = shown(browser, opened, 1280)
    printed = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", printed)) > 3
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = page.execute_script("return getComputedStyle(document.querySelector('.download')).display")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden == "none"


def test_the_table_of_a_report_is_that_of_the_other_formats() -> None:
    results = made("a", some()), made("b", some(seed=1))
    text = " ".join(Elements(page(*results)).text.split())
    (table,) = content.computed([list(results)])
    for result, cells in zip(results, table.cells, strict=True):
        assert result.name in text
        for cell, one in zip(cells, table.metrics, strict=True):
            mean, error = content.shown(cell, one, "sd", table.decimals)
            assert f"{mean.replace('-', '−')} ± {error}" in text
