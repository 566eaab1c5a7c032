"""What all tests share: the installed package, a data root that is not the user's, and MNIST where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the processor already
CHECKOUT = Path(__file__).resolve().parent.parent
INSTALL = f"install it first: pip install -e '{CHECKOUT}[test]'"


def pytest_configure() -> None:
    """Tests run against what is installed: in a bare source folder half of the package is missing."""
    try:
        import continual
    except ModuleNotFoundError as error:
        pytest.exit(f"the package continual cannot be imported ({error}); {INSTALL}", returncode=4)
    folder = Path(continual.__file__).resolve().parent
    try:
        import continual.strategies
    except ModuleNotFoundError as error:
        if folder == CHECKOUT / "continual":
            pytest.exit(f"Python took the bare source folder {folder} for the package continual, which is not "
                        f"installed ({error}); {INSTALL}", returncode=4)  # fmt: skip
        raise


@pytest.fixture(scope="session", autouse=True)
def _own_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test packs data into the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTINUAL_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the published MNIST files, into which a test may write."""
    given = os.environ.get("CONTINUAL_TEST_DATA")
    files = sorted(Path(given, "MNIST", "raw").glob("*.gz")) if given else []
    if not files:
        pytest.skip("set CONTINUAL_TEST_DATA to a data root with MNIST/raw/*.gz")
    root = tmp_path_factory.mktemp("mnist")
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file.resolve())
    return root


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, too, a step is recorded when it has been done once."""
    monkeypatch.setattr("continual.learning.capture.LEAST", 1)
    monkeypatch.setattr("continual.learning.train.OFTEN", 1)


# the same examples every time: what fails here fails elsewhere too
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")
