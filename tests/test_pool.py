"""Runs of some seeds and of others are as one run of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import continual as cl
from continual import cli
from continual.errors import BadOption
from continual.results import store
from continual.results.pool import pooled
from continual.results.store import Result

RUN: dict[str, Any] = {"seeds_as": "loop", "epochs": 1, "batch": 16, "model": "mlp:layers=8"}
OF = "split-digits:order=seed,tasks=3"


def test_runs_of_some_seeds_and_of_others_are_that_of_all(tmp_path: Path) -> None:
    """Tasks differ in size by the seed, so losses do in length."""
    for strategy in ("finetune", "replay:capacity=20"):
        for seeds in ([5, 2], [7], [2, 1]):
            cl.run(OF, strategy, seeds=seeds, out=tmp_path / "parts", **RUN)
        cl.run(OF, strategy, seeds=[1, 2, 5, 7], out=tmp_path / "whole", **RUN)
    cl.run(OF, "replay:capacity=30", seeds=[2], out=tmp_path / "parts", **RUN)
    parts, whole = store.find(tmp_path / "parts"), store.find(tmp_path / "whole")
    found = pooled(parts)
    assert [(one.name, one.seeds) for one in found] == [
        ("finetune", [1, 2, 5, 7]), ("replay:capacity=20", [1, 2, 5, 7]), ("replay:capacity=30", [2]),
    ]  # fmt: skip
    assert found[2].record is parts[-1].record, "what is one run alone is left as it is"
    assert np.isnan(whole[0].arrays["loss"]).any(), "losses differ in length"
    for one, other in zip(found, whole, strict=False):
        assert one.record["protocol"] == other.record["protocol"] and one.record["strategy"] == other.record["strategy"]
        assert one.arrays.keys() == other.arrays.keys()
        for name, values in one.arrays.items():
            np.testing.assert_array_equal(values, other.arrays[name], err_msg=name)
    assert "time" not in found[0].record, "seed 2 was trained twice"
    (both,) = pooled(parts[:2])
    assert both.record["time"]["seconds"] == pytest.approx(sum(one.record["time"]["seconds"] for one in parts[:2]))

    def said(*words: str) -> Any:
        done = CliRunner().invoke(cli.main, [*words])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    shown, wanted = (said("show", str(tmp_path / name), "--format", "json", "--pool") for name in ("parts", "whole"))
    assert shown[0]["results"] == wanted[0]["results"]
    assert len(said("show", str(tmp_path / "parts"), "--format", "json")) == 4, "a table for each set of seeds"
    tested, alone = (
        said("compare", str(tmp_path / name), "--format", "json", "--pool")[0] for name in ("parts", "whole")
    )
    assert tested["n"] == 4 and {**tested, "p_holm": 0} == {**alone, "p_holm": 0}
    report = CliRunner().invoke(cli.main, ["report", str(tmp_path / "parts"), "--pool"])
    assert report.exit_code == 0
    page = (tmp_path / "parts" / "report.html").read_text().replace("<span>", "").replace("</span>", "")
    assert "--seeds 1-2-5-7" in page and "not all runs were done with the same" not in page
    cl.run(OF, "finetune", seeds=[9], out=tmp_path / "parts", **RUN | {"program": "eager"})
    report = CliRunner().invoke(cli.main, ["report", str(tmp_path / "parts"), "--pool"])
    page = (tmp_path / "parts" / "report.html").read_text()
    assert report.exit_code == 0 and "not all runs were done with the same asked" in page


def made(seeds: list[int], shift: float = 0.0, **record: Any) -> Result:
    protocol = {"benchmark": "b", "model": "m", "training": "t", "seeds": seeds}
    accuracy = np.zeros((len(seeds), 3, 2)) + np.array(seeds)[:, None, None] / 10 + shift
    return Result({"strategy": [{"name": "s"}], "protocol": protocol} | record, {"accuracy": accuracy})


def test_a_seed_that_is_in_two_runs_is_that_of_the_first() -> None:
    lost = [{"seed": seed, "task": 1, "step": 2, "why": "lost"} for seed in (2, 3)]
    (one,) = pooled([made([1, 2]), made([2, 3], shift=0.05, stopped=lost)])
    assert one.seeds == [1, 2, 3] and one.accuracy[:, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.35])
    assert one.record["stopped"] == lost[1:], "the second seed that was stopped takes no part"


@pytest.mark.parametrize("order", [1, -1])
def test_a_seed_that_took_fewer_steps_has_no_losses_behind_them(order: int) -> None:
    longer, shorter = made([1]), made([2])
    longer.arrays["loss"], shorter.arrays["loss"] = np.array([[3.0, 2.0, 1.0]]), np.array([[4.0]])
    (both,) = pooled([longer, shorter][::order])
    np.testing.assert_array_equal(both.arrays["loss"], [[3, 2, 1], [4, np.nan, np.nan]])


def test_runs_that_were_measured_at_other_steps_are_refused() -> None:
    one, other, longer = made([1]), made([2]), made([3])
    for result, steps in ((one, [4, 8]), (other, [4, 9]), (longer, [4, 8, 12])):
        result.arrays.update(trace=np.zeros((1, len(steps), 2)), trace_step=np.array(steps),
                             trace_task=np.zeros(len(steps), np.int64))  # fmt: skip
    for two in ([one, other], [one, longer], [longer, one]):
        with pytest.raises(BadOption, match=f"{two[0].name}: its seeds were measured at different steps"):
            pooled(two)
    longer.arrays["trace"][:] = 0.5
    one.arrays["trace"][:, 1:] = np.nan  # it was stopped
    (both,) = pooled([one, longer])
    assert both.trace is not None and both.trace_step is not None and both.trace_step.tolist() == [4, 8, 12]
    assert np.isnan(both.trace[0, 1:]).all() and (both.trace[1] == 0.5).all()
    other.arrays["trace"][:, 1:] = np.nan  # this one, too: its later steps are nobody's
    for two in ([other, longer], [longer, other]):
        (both,) = pooled(two)
        assert both.trace is not None and both.trace_step is not None and both.trace_step.tolist() == [4, 8, 12]
        assert np.isnan(both.trace[0, 1:]).all() and np.isfinite(both.trace[:, 0]).all()
    one.arrays["trace"], longer.arrays["trace_step"] = np.full((1, 2, 2), 0.5), np.array([4, 9, 12])
    longer.arrays["trace"][:, 1:] = np.nan  # those that count are of the seed that was not stopped, which took fewer
    for two in ([one, longer], [longer, one]):
        (both,) = pooled(two)
        assert both.trace is not None and both.trace_step is not None and both.trace_step.tolist() == [4, 8]
        assert np.isfinite(both.trace[0]).all() and np.isnan(both.trace[1, 1]).all()


def test_how_runs_were_computed_is_said_where_all_were_so() -> None:
    usual: dict[str, Any] = {"device": {"type": "cpu", "name": "x86_64"}, "seeds_as": "map", "threads": 1, "asked": {},
                             "time": {"seconds": 2.0}}  # fmt: skip
    (one,) = pooled([made([1], **usual), made([2], **usual)])
    assert one.record["time"]["seconds"] == 4.0 and one.record["device"] == usual["device"]
    assert one.record["seeds_as"] == "map" and "differing" not in one.record
    other = usual | {"seeds_as": "loop", "asked": {"deterministic": True}}
    (one,) = pooled([made([1], **usual), made([2], **other)])
    assert one.record["differing"] == ["asked", "seeds_as"] and not {"asked", "seeds_as"} & set(one.record)
    assert one.record["threads"] == 1 and one.record["time"]["seconds"] == 4.0
    (one,) = pooled([made([1], **usual), made([2], **usual | {"device": {"type": "cuda", "name": "a GPU"}})])
    assert one.record["differing"] == ["device"] and not {"device", "time"} & set(one.record)


def test_what_differs_in_more_stays_apart() -> None:
    found = [made([1]), made([2], code={"mine": "0" * 64}), made([3], strategy=[{"name": "other"}])]
    assert pooled(found) == found


def test_seeds_of_other_data_stay_apart() -> None:
    found = [made([1], data={"sha256": "a"}), made([2], data={"sha256": "b"}), made([3], data={"sha256": "a"})]
    assert [one.seeds for one in pooled(found)] == [[1, 3], [2]]


def test_an_array_that_not_all_have_is_left_out() -> None:
    old, new = made([1]), made([2])
    new.arrays["test_samples"] = np.array([[3, 4]])
    assert pooled([old, new])[0].arrays.keys() == pooled([new, old])[0].arrays.keys() == {"accuracy"}
