"""Run plans against a real model server and check each run against what is known about it.

    python tests/real/run.py [PLAN ...]     without names: all plans of this folder

Every expectation is one printed sentence; the program ends with 1 when one of them does not hold.
The reports stay in `reports/real-*/`. An INVALID run says that this machine was too busy to measure,
not that the harness is wrong, so it is run again, twice at most.
"""

# ruff: noqa: T201 - what it found is for people to read

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama
import pauses
import truth

from harness.errors import ExitCode
from harness.recorder import Recording, load_recording

ROOT = llama.HERE.parents[1]
HARNESS = Path(sys.executable).with_name("harness")
FILES = ("report.html", "report.md", "verdict.json", "junit.xml", "latency.hlog", "requests.jsonl")
FIRST_TOKEN_CLOSE = 0.10  # share of the measured time by which the median may be off
GENERATION_CLOSE = 0.05  # one token of 16 more or less would be 7 %
RUN_LIMIT_S = 120
AGAIN = 2  # further attempts at a plan whose measurement was INVALID
REQUESTS_PER_CONNECTION = 100  # after that many llama.cpp answers `Connection: close`


@dataclass(slots=True)
class Ledger:
    """Counts expectations as they are printed."""

    passed: int = 0
    failed: int = 0

    def expect(self, sentence: str, holds: bool) -> None:
        """Print one expectation with `ok` or `FAILED`."""
        self.passed += holds
        self.failed += not holds
        print(f"  {'ok    ' if holds else 'FAILED'}  {sentence}", flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One run of `harness run`: its exit code, verdict.json, recording, and pairs of times."""

    name: str
    code: int
    verdict: dict[str, Any]
    recording: Recording
    pairs: list[truth.Pair] = field(default_factory=list)

    def outcomes(self) -> dict[str, str]:
        """Return each budget's outcome by its text."""
        return {budget["text"]: budget["outcome"] for budget in self.verdict["budgets"]}


def check_alone(ran: Ran, ledger: Ledger) -> None:
    n = ran.recording.requests("alone", "chat").n
    ledger.expect(f"all {n} replies carry the server's own times", len(ran.pairs) == n > 0)
    gap = truth.first_token_gap(ran.pairs)
    ledger.expect(
        f"without a queue the first token is seen {gap:.1%} after prompt_ms, at most "
        f"{FIRST_TOKEN_CLOSE:.0%}",
        0 <= gap <= FIRST_TOKEN_CLOSE,
    )
    _check_generation(ran, ledger)
    _check_reply_times(ran, ledger)


def check_chat(ran: Ran, ledger: Ledger) -> None:
    ledger.expect("there were replies enough, 59 at least,", len(ran.pairs) >= 59)
    _check_generation(ran, ledger)
    _check_reply_times(ran, ledger)


def check_completions(ran: Ran, ledger: Ledger) -> None:
    tokens = {pair.tokens[1] for pair in ran.pairs}
    ledger.expect("every completion has the 16 tokens that were asked for", tokens == {16})
    _check_generation(ran, ledger)
    _check_reply_times(ran, ledger)


def check_must_fail(ran: Ran, ledger: Ledger) -> None:
    broken = [text for text, outcome in ran.outcomes().items() if outcome == "FAIL"]
    kept = [text for text, outcome in ran.outcomes().items() if outcome == "PASS"]
    ledger.expect(
        "the budget of 1 ms alone is broken, the others pass",
        broken == ["chat.ttft p50 < 1ms"] and len(kept) == len(ran.outcomes()) - 1,
    )


def check_too_long(ran: Ran, ledger: Ledger) -> None:
    requests = ran.recording.requests("closed", "completion")
    refused = requests.kinds.get("status 400", 0)
    ledger.expect(
        f"every third prompt, {refused} of {requests.n}, is a failure of the kind `status 400`",
        requests.kinds == {"status 400": refused} and abs(3 * refused - requests.n) <= 3,
    )
    e2el = ran.recording.series("closed", "completion", "e2el")
    ledger.expect(
        "a refused prompt leaves no latency among the successes",
        e2el is not None and int(e2el.n.sum()) == requests.n - refused,
    )
    said = {
        span.detail["error"] for j in ran.recording.journeys for span in j.steps if span.failure
    }
    ledger.expect(
        "the server's reason is kept with the failures",
        bool(said) and all("exceeds the available context size" in text for text in said),
    )


def check_embeddings(ran: Ran, ledger: Ledger) -> None:
    for step, texts in ("embedding", 1), ("batch", 8):
        tokens = ran.recording.series("steady", step, "input_tokens")
        ledger.expect(
            f"the server counted the input tokens of every {step}",
            tokens is not None
            and int(tokens.n.sum()) == ran.recording.requests("steady", step).n
            and (tokens.total.min or 0) >= texts,
        )
        ledger.expect(
            f"a reply that does not stream has no time to first token ({step})",
            not {"ttft", "itl", "tpot"} & {*ran.recording.metrics("steady", step)},
        )


def check_pauses(ran: Ran, ledger: Ledger) -> None:
    requests = ran.recording.requests("kept", "embedding")
    connects = ran.recording.series("kept", "embedding", "connect")
    opened = 0 if connects is None else int(connects.n.sum())
    full = requests.n // REQUESTS_PER_CONNECTION
    ledger.expect(
        f"{requests.n:,} requests went over {opened} kept connections, a new one after each 100th "
        "and after the pause",
        full >= 1 and full <= opened <= full + 3,
    )
    idle_s = max(b - a for a, b in pairwise([0.0, *requests.t_s]))
    ledger.expect(
        f"requests went on after an idle time of about {idle_s:.0f} s",
        bool(idle_s > pauses.PAUSE_S - 2 * ran.recording.interval_s),
    )


def _check_generation(ran: Ran, ledger: Ledger) -> None:
    gap = truth.generation_gap(ran.pairs)
    ledger.expect(
        f"first to last token took as long as predicted_ms, {gap:.1%} off, at most "
        f"{GENERATION_CLOSE:.0%}",
        gap <= GENERATION_CLOSE,
    )


def _check_reply_times(ran: Ran, ledger: Ledger) -> None:
    ledger.expect(
        "no reply has its first token before the server's prompt_ms is over",
        bool(ran.pairs) and all(pair.ttft >= pair.prompt for pair in ran.pairs),
    )
    ledger.expect(
        "input and output tokens of every reply are the server's prompt and predicted tokens",
        bool(ran.pairs) and all(pair.tokens == pair.server_tokens for pair in ran.pairs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One plan of this folder, the server it needs and what it must come to."""

    server: str
    code: ExitCode
    check: Callable[[Ran, Ledger], None]
    clean: bool = True
    """No request may fail, not one: whatever the server does to its connections."""


CASES = {
    "alone": Case(server="chat", code=ExitCode.PASS, check=check_alone),
    "chat": Case(server="chat", code=ExitCode.PASS, check=check_chat),
    "completions": Case(server="chat", code=ExitCode.PASS, check=check_completions),
    "must_fail": Case(server="chat", code=ExitCode.FAIL, check=check_must_fail),
    "too_long": Case(server="chat", code=ExitCode.FAIL, check=check_too_long, clean=False),
    "embeddings": Case(server="embedding", code=ExitCode.PASS, check=check_embeddings),
    "pauses": Case(server="embedding", code=ExitCode.PASS, check=check_pauses),
}


def run_case(name: str, url: str, ledger: Ledger) -> Ran | None:
    """Run one plan and check it; None when it left no verdict."""
    case = CASES[name]
    out = ROOT / "reports" / f"real-{name.replace('_', '-')}"
    began = time.monotonic()
    done = _harness_run(name, url, out)
    for _ in range(AGAIN):
        if done.returncode != ExitCode.INVALID:
            break
        why = " ".join(done.stdout.split("\n\n")[0].split())
        print(f"{name}: once more, as the machine was too busy: {why}", flush=True)
        done = _harness_run(name, url, out)
    ran = _read(name, done.returncode, out)
    outcome = ran.verdict["outcome"] if ran else "no verdict"
    page = (out / "report.html").relative_to(ROOT)
    took_s = time.monotonic() - began
    print(f"{name}: {outcome}, exit code {done.returncode}, {took_s:.0f} s, {page}", flush=True)
    held = ledger.failed
    wanted = f"{case.code.name} (exit code {int(case.code)})"
    right = done.returncode == case.code and outcome == case.code.name
    ledger.expect(f"the run ends with {wanted}", right)
    if ran is not None:
        missing = [file for file in FILES if not _has_content(out / file)]
        ledger.expect("its reports and records are there", not missing)
        if case.clean:
            _check_no_failure(ran, ledger)
        case.check(ran, ledger)
    if ledger.failed > held:
        print(f"{done.stdout}\n{done.stderr[-4000:]}")
    return ran


def _has_content(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _check_no_failure(ran: Ran, ledger: Ledger) -> None:
    recorded = [stage.name for stage in ran.recording.stages if stage.record]
    ended = [ran.recording.requests(stage, "run") for stage in recorded]
    total, failed = sum(r.n for r in ended), sum(r.n_failed for r in ended)
    retries = ran.recording.run["retries"]
    kinds = " and ".join(dict.fromkeys(kind for r in ended for kind in r.kinds))
    ledger.expect(
        f"no request of {total:,} failed ({kinds or 'none'}); {retries} were sent again because the "
        "server had closed a kept connection",
        failed == 0 < total,
    )


def _harness_run(name: str, url: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Run a plan as a user would; one that does not end is killed and has no exit code of its own."""
    shutil.rmtree(out, ignore_errors=True)
    command = [HARNESS, "run", llama.HERE / f"{name}.yaml", "--target", url, "--out", out]
    try:
        return subprocess.run(
            [*command, "-v", "-q"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        said = f"did not end within {RUN_LIMIT_S} s"
        return subprocess.CompletedProcess(command, -1, stdout=said, stderr="")


def _read(name: str, code: int, out: Path) -> Ran | None:
    """Return the run in a folder; None when it has no verdict."""
    try:
        verdict = json.loads((out / "verdict.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    recording = load_recording(out)
    pairs = truth.pairs_of(recording)
    return Ran(name=name, code=code, verdict=verdict, recording=recording, pairs=pairs)


def main(names: list[str]) -> int:
    """Run the named plans, or all; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what it started
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"no plan {', '.join(unknown)}; there are {', '.join(CASES)}")
    print(llama.prepare(), flush=True)
    ledger, measured = Ledger(), dict[str, list[truth.Pair]]()
    for kind in dict.fromkeys(case.server for case in CASES.values()):
        wanted = [n for n, c in CASES.items() if c.server == kind and n in (names or CASES)]
        if not wanted:
            continue
        with llama.serving(kind) as url:
            print(f"the {kind} server answers on {url}", flush=True)
            for name in wanted:
                ran = run_case(name, url, ledger)
                measured[name] = ran.pairs if ran else []
    print("\nMeasured by the client, and said by the server of the same replies")
    print(truth.table(measured))
    print(f"\n{ledger.passed} passed, {ledger.failed} failed")
    return 1 if ledger.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
