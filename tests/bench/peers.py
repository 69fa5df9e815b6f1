"""The load-testing tools aiperf and guidellm: how they are installed, run, and what they report.

    python tests/bench/peers.py     installs them, each into an environment of its own in .bench/

One that does not install leaves the reason behind, for the table; that is no failure. Their release
is pinned, what they depend on is bounded by them. They need no model hub: prompts come from a file,
token counts from the server, and the tokenizer that aiperf loads is two small files written here.
"""

# ruff: noqa: T201 - an installation says what it does

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCH = HERE.parents[1] / ".bench"
INSTALL_TIMEOUT_S = 900
_READY, _WHY = ".ready", "not-installed.txt"
_PREFIX = "chatcmpl-"  # what the exact server puts before an id in its events


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A closed loop of `users` that ends after so many `requests`."""

    url: str
    folder: Path
    """Where the prompts are, and where the report goes."""
    users: int
    requests: int

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    def prepare(self) -> None:
        """Write the prompts, one for each request, and a tokenizer of two words."""
        prompt = json.dumps({"text": "Say something."})
        self.prompts.write_text(f"{prompt}\n" * self.requests, encoding="utf-8")
        words = {"type": "WordLevel", "vocab": {"[UNK]": 0, "something": 1}, "unk_token": "[UNK]"}
        model = {"version": "1.0", "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": words}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
        self.tokenizer.mkdir()
        for name, content in (("tokenizer", model), ("tokenizer_config", config)):
            path = self.tokenizer / f"{name}.json"
            path.write_text(json.dumps({**content, "added_tokens": []}), encoding="utf-8")


Reported = dict[str, tuple[float, float]]
"""TTFT and E2E in ns, by the server's id of the reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One tool."""

    name: str
    version: str
    words: Callable[[Work], list[str]]
    """Its command line, from the subcommand on."""
    read: Callable[[Path], Reported]
    """Reads what it has left in the work's folder."""
    last_write: int
    """Where its E2E ends, as an index of the reply's writes: -2 is the last token, -1 the tail."""
    how: str = ""
    """What sets this way to run it apart from the others."""
    stand_ins: tuple[Path, ...] = ()
    """Packages installed in place of what it asks for."""

    @property
    def release(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def title(self) -> str:
        return f"{self.release}, {self.how}" if self.how else self.release

    @property
    def home(self) -> Path:
        return BENCH / self.name

    @property
    def missing(self) -> str | None:
        """Why it is not installed; None when it is."""
        if self.is_installed:
            return None
        why = self.home / _WHY
        return why.read_text(encoding="utf-8") if why.exists() else "`make bench` installs it"

    @property
    def is_installed(self) -> bool:
        ready = self.home / _READY
        return ready.exists() and ready.read_text(encoding="utf-8") == self.release

    def command(self, work: Work) -> list[str]:
        return [str(self.home / "bin" / self.name), *self.words(work)]

    def install(self) -> None:
        """Install it, or leave the reason why not."""
        shutil.rmtree(self.home, ignore_errors=True)
        try:
            self._install()
        except (OSError, subprocess.SubprocessError) as error:
            self.home.mkdir(parents=True, exist_ok=True)
            (self.home / _WHY).write_text(reason(error), encoding="utf-8")
        else:
            (self.home / _READY).write_text(self.release, encoding="utf-8")

    def _install(self) -> None:
        _do([sys.executable, "-m", "venv", str(self.home)])
        pip = [str(self.home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            copies = [shutil.copytree(one, Path(scratch) / one.name) for one in self.stand_ins]
            wanted = [*map(str, copies), f"{self.name}=={self.version}"]
            _do([*pip, "install", "--quiet", *wanted])


def _do(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)


def reason(error: Exception) -> str:
    """Say in one line why an installation failed: pip's first error, where there is one."""
    said = [line.strip() for line in str(getattr(error, "stderr", None) or "").splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return (errors or said[-1:] or [str(error)])[0]


def _aiperf(work: Work) -> list[str]:
    return [
        *("profile", "--model", "truth", "--url", work.url, "--endpoint-type", "chat"),
        *("--streaming", "--tokenizer", str(work.tokenizer)),
        *("--custom-dataset-type", "single-turn", "--input-file", str(work.prompts)),
        *("--concurrency", str(work.users), "--request-count", str(work.requests)),
        *("--no-gpu-telemetry", "--no-server-metrics", "--ui", "none"),
        *("--artifact-dir", str(work.folder / "aiperf")),
    ]


def _aiperf_usage(work: Work) -> list[str]:
    return [*_aiperf(work), "--use-server-token-count"]


def _read_aiperf(folder: Path) -> Reported:
    """Read a line of JSON for each request; the id is the one that it sent as x-request-id."""

    def times(line: str) -> tuple[str, tuple[float, float]]:
        record = json.loads(line)
        ttft, e2e = (
            record["metrics"][name]["value"] * 1e6
            for name in ("time_to_first_token", "request_latency")
        )
        return record["metadata"]["x_request_id"], (ttft, e2e)

    with (folder / "aiperf" / "profile_export.jsonl").open(encoding="utf-8") as lines:
        return dict(map(times, lines))


def _guidellm(work: Work) -> list[str]:
    return [
        *("run", "--backend", f"kind=openai_http,target={work.url},model=truth"),
        *("--profile", f"kind=concurrent,streams={work.users}"),
        *("--constraint", f"kind=max_requests,count={work.requests}"),
        *("--data", f"kind=json_file,path={work.prompts}"),
        *("--output", f"kind=json,path={work.folder / 'guidellm.json'}", "--disable-console"),
    ]


def _read_guidellm(folder: Path) -> Reported:
    """Read one JSON; the id is the one that the server gave."""
    report = json.loads((folder / "guidellm.json").read_bytes())
    return {
        one["response_id"].removeprefix(_PREFIX): (
            one["time_to_first_token_ms"] * 1e6,
            one["request_latency"] * 1e9,
        )
        for one in report["benchmarks"][0]["requests"]["successful"]
    }


AIPERF = Peer(name="aiperf", version="0.13.0", words=_aiperf, read=_read_aiperf, last_write=-2)
AIPERF_USAGE = replace(AIPERF, words=_aiperf_usage, how="the server's token counts")
GUIDELLM = Peer(
    name="guidellm",
    version="0.8.1",
    words=_guidellm,
    read=_read_guidellm,
    last_write=-1,
    stand_ins=(HERE / "torch_stand_in",),
)
INSTALLED = (AIPERF, GUIDELLM)


def environment(folder: Path) -> dict[str, str]:
    """Return this process's environment, with caches of the model hub's libraries in `folder`."""
    own = {"HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **own}


def install(peers: Iterable[Peer] = INSTALLED) -> None:
    """Install those that are not, telling what happens."""
    for peer in peers:
        if peer.is_installed:
            continue
        print(f"installing {peer.release}", flush=True)
        peer.install()
        if peer.missing:
            print(f"NOT INSTALLED  {peer.release}: {peer.missing}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    install()
