"""MLflow: a run for each strategy, or for each of its seeds, at a tracking server or in a store of its own."""

from __future__ import annotations

import contextlib
import os
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from continual.options import option
from continual.results import store
from continual.tracking.tracker import Ended, Followed, Log, Point, Tracker, Unreachable

MOST = 1000  # values that a server takes at once
MOST_OPTIONS = 100  # and options
LONGEST = 5000  # characters of an option's value
FILE = "sqlite:///"  # a database file, which is MLflow's default
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@dataclass(frozen=True)
class MLflow(Tracker):
    """MLflow: one run of the experiment for each strategy, with its options as parameters.

    Tags tell the protocol that runs share (``protocol``), the strategy and the seed.
    """

    package: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "continual[mlflow]"

    uri: str | None = option(None, "the server, such as http://localhost:5000; none: $MLFLOW_TRACKING_URI, or MLflow's")
    experiment: str = option("continual", "MLflow's experiment that runs are put into, made where there is none")

    def reach(self) -> None:
        """See :meth:`Tracker.reach`; the server answers."""
        super().reach()
        from mlflow import get_tracking_uri

        address = self.uri or get_tracking_uri()
        if address.startswith(FILE):  # its client would try for two minutes
            store.check_writable(Path(address.removeprefix(FILE)).parent)
        with _impatient():
            try:
                self._client().search_experiments(max_results=1)
            except Exception as error:  # whatever its client raises
                raise Unreachable(f"MLflow at {address} cannot be reached: {_reason(error)}; start it "
                                  "('mlflow server') or give another with mlflow:uri=...") from error  # fmt: skip

    def _client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def begin(self, followed: Followed) -> Log:
        """See :meth:`Tracker.begin`."""
        client = self._client()
        known = client.get_experiment_by_name(self.experiment)
        number = known.experiment_id if known else client.create_experiment(self.experiment)
        tags = {"protocol": followed.experiment, "strategy": followed.title, "seed": followed.part}
        own = {"seed": followed.part, "mark": followed.mark}
        there = client.search_runs([number], " and ".join(f"tags.{name} = '{text}'" for name, text in own.items()))
        run = there[0] if there else client.create_run(number, tags=tags | own, run_name=followed.name)
        client.update_run(run.info.run_id, status="RUNNING")
        return MLflowRun(client, run.info.run_id, followed, bool(there))


class MLflowRun(Log):
    """One run there, which may have been begun before: what is written in it already is not written again."""

    def __init__(self, client: Any, number: str, followed: Followed, begun: bool) -> None:
        from mlflow.entities import Param

        self.client, self.number, self.begun = client, number, begun
        self.last: dict[str, int] = {}
        options = [Param(_allowed(name), str(value)[:LONGEST]) for name, value in followed.flat.items()]
        for first in range(0, len(options), MOST_OPTIONS):
            client.log_batch(number, params=options[first : first + MOST_OPTIONS])

    def write(self, points: Sequence[Point]) -> None:
        """See :meth:`Log.write`."""
        self._values([(name, value, point.at) for point in points for name, value in point.values.items()])

    def _values(self, values: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), value, now, at) for name, value, at in values if self._is_new(name, at)]
        for first in range(0, len(metrics), MOST):
            self.client.log_batch(self.number, metrics=metrics[first : first + MOST])

    def _is_new(self, name: str, at: int) -> bool:
        if self.begun and name not in self.last:
            history = self.client.get_metric_history(self.number, _allowed(name))
            self.last[name] = max((one.step for one in history), default=-1)
        return at > self.last.get(name, -1)

    def end(self, ended: Ended) -> None:
        """See :meth:`Log.end`."""
        self._values([(f"summary/{name}", value, 0) for name, value in ended.metrics.items()])
        for name, text in ended.facts.items():
            self.client.set_tag(self.number, name, text[:LONGEST])
        self.client.set_terminated(self.number, "FINISHED")

    def fail(self) -> None:
        """See :meth:`Log.fail`."""
        self.client.set_terminated(self.number, "FAILED")


def _allowed(name: str) -> str:
    """A name with what MLflow takes in names: letters, digits and ``_-. /``."""
    return "".join(sign if sign.isalnum() or sign in "_-. /" else "-" for sign in name)


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an error, in a line: 'Connection refused', and not what each layer made of it."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return textwrap.shorten(said, 300, placeholder=" ...")


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Within it, MLflow tries once instead of for minutes, unless the user says how often."""
    changed = {name: value for name, value in IMPATIENT.items() if name not in os.environ}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name in changed:
            del os.environ[name]
