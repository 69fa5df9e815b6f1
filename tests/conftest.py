"""What several test files share: other programs that may be missing, and saved synthetic runs."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from harness.budget import Budget, goodput_limits, parse_budget
from harness.recorder import Limits, Recorder, Recording, RunFolder, load_recording

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _nothing_measured_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide what `harness selftest` once kept in the user's cache; matplotlib's fonts stay there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or str(cache / "matplotlib"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def _require(program: str) -> str:
    found = shutil.which(program) or (program if Path(program).exists() else None)
    if found is None:
        missing = f"{program} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{missing}; CI must have it")
        pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def require() -> Callable[[str], str]:
    """Path of a program or file; without it the test is skipped, in CI it fails."""
    return _require


_EXPIRED = """
[ca]
default_ca = ours
[ours]
database = index
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
x509_extensions = here
[any]
commonName = supplied
[here]
subjectAltName = IP:127.0.0.1
basicConstraints = critical,CA:FALSE
"""


@pytest.fixture(scope="session")
def authority(
    tmp_path_factory: pytest.TempPathFactory, require: Callable[[str], str]
) -> dict[str, Path]:
    """A certificate authority of our own: what it says of us, of another, and said too long ago."""
    folder = tmp_path_factory.mktemp("ca")
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

    def openssl(*arguments: str) -> None:
        command = [require("openssl"), *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    def make(name: str, *more: str) -> None:
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl("req", "-x509", "-days", "2", *options, "-subj", f"/CN={name}", *files, *more)

    by_us = ["-CA", "ca.pem", "-CAkey", "ca.key"]
    not_ca = ["-addext", "basicConstraints=critical,CA:FALSE"]
    here = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    make("ca")
    make("cert", *by_us, *not_ca, *here)
    make("other", *by_us, *not_ca, "-addext", "subjectAltName=DNS:other.test")
    (folder / "ca.cnf").write_text(_EXPIRED)
    (folder / "index").touch()
    files = ["-keyout", "expired.key", "-out", "expired.csr"]
    openssl("req", "-new", *options, "-subj", "/CN=expired", *files)
    times = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"]
    files = ["-cert", "ca.pem", "-keyfile", "ca.key", "-in", "expired.csr", "-out", "expired.pem"]
    openssl("ca", "-batch", "-config", "ca.cnf", "-create_serial", "-notext", *times, *files)
    return {name: folder / f"{name}.pem" for name in ("ca", "cert", "other", "expired")}


def stage(
    name: str = "steady", start_s: float = 0, end_s: float = 20, **more: Any
) -> dict[str, Any]:
    """One stage as run.json holds it."""
    load = {"record": True, "load": "poisson 50/s", "planned_rate_per_s": 50.0}
    return {"name": name, "start_s": start_s, "end_s": end_s, **load, **more}


def limits_of(budgets: Iterable[Budget]) -> Limits:
    """The limits that a run with these budgets counts exactly."""
    budgets = tuple(budgets)
    thresholds: dict[tuple[str, str], tuple[int, ...]] = {}
    for budget in budgets:
        if budget.counted:
            key = (budget.step, budget.metric)
            thresholds[key] = (*thresholds.get(key, ()), budget.threshold)
    return Limits(
        thresholds=thresholds, good=lambda stage, step: goodput_limits(budgets, step, stage=stage)
    )


@pytest.fixture
def save_run(tmp_path: Path) -> Callable[..., Recording]:
    """Write a run and read it back: `fill(recorder, i)` records what interval i saw."""

    def save(
        fill: Callable[[Recorder, int], Any],
        *,
        budgets: Iterable[str] = (),
        stages: Iterable[dict[str, Any]] | None = None,
        intervals: int = 20,
        cpu: float | None = 0.2,
        status: str = "complete",
        **run: Any,
    ) -> Recording:
        path = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        described = {"interval_s": 1.0, "stages": list(stages or [stage()]), **run}
        folder = RunFolder.create(path, described)
        folder.begin(1_700_000_000.0)
        recorder = Recorder(limits_of(parse_budget(text) for text in budgets))
        for i in range(intervals):
            fill(recorder, i)
            folder.append(recorder.flush(i, cpu=cpu))
        folder.close()
        folder.update(status=status)
        return load_recording(path)

    return save


def pytest_configure(config: pytest.Config) -> None:
    text = "swarm: runs in a forked process whose sockets gevent has patched, as in a worker"
    config.addinivalue_line("markers", text)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `swarm` in a child, so that the other tests keep their own sockets."""
    if pyfuncitem.get_closest_marker("swarm") is None:
        return None
    read_end, write_end = os.pipe()
    gc.freeze()  # the child shares what there is, and does not look through it
    child = os.fork()
    if child == 0:
        os.close(read_end)
        with os.fdopen(write_end, "w") as told:
            told.write(_run_patched(pyfuncitem))
        os._exit(0)
    gc.unfreeze()
    os.close(write_end)
    try:
        with os.fdopen(read_end) as told:
            failure = told.read()
        _, code = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if failure or code:
        pytest.fail(failure or f"the test's process ended with {code}", pytrace=False)
    return True


def _patch_sockets() -> None:
    """Patch as Locust does, without asking every installed package whether it minds."""
    events = importlib.import_module("gevent.events")
    monkey = importlib.import_module("gevent.monkey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "notify_and_call_entry_points", events.notify)
        monkey.patch_all()


def _run_patched(test: pytest.Function) -> str:
    """Run a test and return its failure as text, empty if it passed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # modules were imported before they are patched
            _patch_sockets()
        hub = importlib.import_module("gevent").get_hub()
        hub.loop.update_now()  # by a parent's clock that stands still, timers would be over at once
        arguments = test._fixtureinfo.argnames
        test.obj(**{name: test.funcargs[name] for name in arguments})
    except BaseException:  # noqa: BLE001 - also what ends a process must reach the report
        return str(test.repr_failure(pytest.ExceptionInfo.from_current())) or "failed"
    return ""
