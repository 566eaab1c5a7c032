"""What a shell completes, by click's own mechanism and in a real bash."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from continual import plugins
from continual.cli import KINDS, main
from continual.completion import SHELLS, Bash, named
from continual.learning.training import Training
from continual.options import options_of
from continual.results.metrics import MATRICES, METRICS


def completed(*words: str) -> list[str]:
    """What the last word may go on as."""
    shell = ShellComplete(main, {}, "continual", "_CONTINUAL_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


EWC = [f"ewc:{name}=" for name in ("strength", "half", "label", "fisher_samples", "fisher_batch", "terms", "decay")]


@pytest.mark.parametrize(("words", "wanted"), [
    (("run", "split-m"), ["split-mnist"]),
    (("run", "split-mnist:sc"), ["split-mnist:scenario="]),
    (("run", "split-mnist:scenario="), [f"split-mnist:scenario={one}" for one in ("task", "domain", "class")]),
    (("run", "split-mnist", "ew"), ["ewc"]),
    (("run", "split-mnist", "ewc:"), EWC),
    (("run", "split-mnist", "ewc:strength=3,"), ["ewc:strength=3," + one[4:] for one in EWC[1:]]),
    (("run", "split-mnist", "ewc:strength=3,h"), ["ewc:strength=3,half="]),
    (("run", "split-mnist", "ewc:half="), ["ewc:half=true", "ewc:half=false"]),
    (("run", "split-mnist", "ewc:label=a"), ["ewc:label=argmax"]),
    (("run", "split-mnist", "ewc:fisher_samples="), ["ewc:fisher_samples=none"]),
    (("run", "split-mnist", "ewc:nothing="), []),
    (("run", "split-mnist", "nobody:"), []),
    (("run", "split-mnist", "finetune", "ewc+repl"), ["ewc+replay"]),
    (("run", "split-mnist", "ewc:strength=3+replay:fill=r"), ["ewc:strength=3+replay:fill=reservoir"]),
    (("run", "split-mnist", "der++"), ["der++"]),
    (("run", "split-mnist", "der+++rep"), ["der+++replay"]),
    (("run", "--model", "ml"), ["mlp"]),
    (("run", "--optimizer", "sgd:mom"), ["sgd:momentum="]),
    (("run", "--schedule", "cos"), ["cosine"]),
    (("run", "--augment", "images:cr"), ["images:crop="]),
    (("run", "--track", "tensorboard+w"), ["tensorboard+wandb"]),
    (("run", "--track", "tensorboard:seeds="), [f"tensorboard:seeds={one}" for one in ("mean", "each", "both")]),
    (("run", "--seeds-as", "m"), ["map"]),
    (("run", "--lim"), ["--limit"]), (("run", "--limit", ""), ["none"]), (("run", "--test-l"), ["--test-limit"]),
    (("run", "--evaluate-every", ""), ["epoch", "none"]),
    (("check", "sl"), ["slda"]),
    (("reproduce", "hsu"), ["hsu-2018-split-mnist"]),
    (("list", "sch"), ["schedules"]),
    (("list", "strategies", "ew"), ["ewc"]),
    (("list", "metrics", "stab"), ["stability-gap"]),
    (("list", "tables", "hsu"), ["hsu-2018-split-mnist"]),
    (("list", "nothing", "ew"), []),
    (("completion", "f"), ["fish"]),
    (("comp"), ["compare", "completion"]),
])  # fmt: skip
def test_a_word_is_completed(words: tuple[str, ...] | str, wanted: list[str]) -> None:
    assert completed(*([words] if isinstance(words, str) else words)) == wanted


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("show", "runs", "--format", "l"), ["latex"]),
        (("compare", "runs", "--format", ""), ["table", "markdown", "latex", "json"]),
        (("report", "runs", "--error", "s"), ["sd", "se"]),
    ],
)
def test_the_words_of_a_flag_are_offered(words: tuple[str, ...], wanted: list[str]) -> None:
    assert completed(*words) == wanted


def test_all_there_is_is_offered() -> None:
    assert completed("run", "") == list(plugins.registered("benchmarks"))
    assert completed("run", "split-digits", "") == list(plugins.registered("strategies"))
    assert set(completed("run", "split-digits", "ewc+")) >= {f"ewc+{one}" for one in plugins.registered("strategies")}
    assert {"der++", "der+ewc"} <= set(completed("run", "split-digits", "der+"))
    assert completed("list", "") == list(KINDS)
    offered = [*METRICS, *(f"{which}:" for which in MATRICES)]
    assert completed("show", "--metrics", "forgetting,") == [f"forgetting,{name}" for name in offered]
    assert set(completed("show", "--metrics", "validation:")) == {
        f"validation:{name}" for name, one in METRICS.items() if one.needs == "matrix"
    }
    flags = set(completed("run", "--"))
    assert {f"--{name.replace('_', '-')}" for name in options_of(Training)} <= flags and "--track" in flags


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_option_of_everything_is_offered_and_its_words(kind: str) -> None:
    for name in plugins.registered(kind):
        known = options_of(plugins.find(kind, name))
        assert named(kind, f"{name}:") == [f"{name}:{each}=" for each in known]
        for each, option in known.items():
            assert {f"{name}:{each}={word}" for word in option.words} <= set(named(kind, f"{name}:{each}="))


def test_a_file_can_stand_where_a_benchmark_does() -> None:
    shell = ShellComplete(main, {}, "continual", "_CONTINUAL_COMPLETE")
    assert [item.type for item in shell.get_completions(["run"], "configs/ru")] == ["file"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_is_printed(shell: str) -> None:
    said = CliRunner().invoke(main, ["completion", shell])
    assert said.exit_code == 0 and "_CONTINUAL_COMPLETE" in said.stdout and "continual" in said.stdout
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=said.stdout, text=True, check=False).returncode == 0


def test_another_shell_is_refused() -> None:
    said = CliRunner().invoke(main, ["completion", "tcsh"])
    assert said.exit_code == 2 and "'tcsh' is not one of" in said.stderr and "fish" in said.stderr


@pytest.mark.parametrize(("line", "wanted"), [
    ("continual run split-mnist ewc:str", "plain,strength="),
    ("continual run split-mnist ewc:label=a", "plain,argmax"),
    ("continual run split-mnist ewc:strength=3,la", "plain,3,label="),
    ("continual run split-d", "plain,split-digits"),
])  # fmt: skip
def test_bash_is_given_what_follows_the_last_sign_that_divides_words(
    line: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_BREAKS", " \t\n\"'@><=;|&(:")
    assert Bash(main, {}, "continual", "_CONTINUAL_COMPLETE").complete().splitlines() == [wanted]


@pytest.mark.skipif(shutil.which("bash") is None or os.name != "posix", reason="there is no bash here")
def test_a_real_bash_completes(tmp_path: Path) -> None:
    """Bash reads a line from a terminal, as it is typed with a tab behind it."""
    import pty

    program = tmp_path / "continual"
    start = "from continual.cli import main; main(prog_name='continual')"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -c "{start}" "$@"\n')
    program.chmod(0o755)
    ours, theirs = pty.openpty()
    paths = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TERM": "dumb"}
    bash = subprocess.Popen(["bash", "--norc", "--noprofile", "-i"], stdin=theirs, stdout=theirs, stderr=theirs,
                            env=os.environ | paths, start_new_session=True)  # fmt: skip

    def typed(text: str, wanted: str) -> None:
        """Type, and see what is wanted on the terminal."""
        os.write(ours, text.encode())
        seen, end = "", time.monotonic() + 120
        while wanted not in seen:
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 65536).decode(errors="replace")

    try:
        typed("eval \"$(continual completion bash)\"; echo re''ady\n", "ready")
        for line, wanted in {
            "continual run split-digits ewc:dec": "continual run split-digits ewc:decay=",
            "continual run split-digits ewc:label=ar": "continual run split-digits ewc:label=argmax ",
            "continual run split-dig": "continual run split-digits ",
            "continual run --model ml": "continual run --model mlp ",
        }.items():
            typed(f"{line}\t", wanted)
            typed("\x01echo '<\x05>'\n", f"\n<{wanted}>")  # and nothing else is on the line
    finally:
        os.killpg(bash.pid, 9)
        bash.wait()
        os.close(ours)
        os.close(theirs)
