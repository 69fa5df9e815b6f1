"""The budget grammar: a readable sentence in, a `Budget` out, or the column where it goes wrong.

    budget     ::= step "." metric [ statistic ] [ "regression" ] op value
                   [ "over" duration ] [ "in" stage ]
    step       ::= segment { "/" segment }        ; "run" is every root step together
    segment    ::= ( letter | digit | "_" | "-" )+
    metric     ::= what stands after the last dot: a key of METRICS
    statistic  ::= "p" number | "mean" | "max"    ; shares and rates take none, others need one
    op         ::= "<" | "<=" | ">" | ">="
    value      ::= number unit | "$" number       ; 800ms, 500 (tokens), 0.1%, 20/s, $0.002
    duration   ::= number unit                    ; 10s: every window of that length must hold
    stage      ::= segment

    chat.ttft p99 < 800ms in steady
    answer/generate.e2el p99.9 <= 10s
    run.error_rate < 0.1%
    chat.e2el p95 < 4s over 10s
    chat.cost mean < $0.002
    chat.e2el p99 regression < 5%

`regression` limits how much worse a run may be than its baseline. Of a quantile or mean it is the
share by which it grew; of error_rate and goodput, which are shares themselves, it is the difference
in percentage points, a rise of the one and a loss of the other.

A budget that can never hold, or never fail, or that limits the side nobody means (a latency from
below, a throughput from above) is a mistake and is refused before any load starts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, Decimal
from difflib import get_close_matches
from typing import Literal, cast

from harness.errors import BudgetSyntaxError
from harness.metrics import METRICS, Kind, Metric
from harness.units import TimeUnit, parse_duration, parse_money, parse_rate, parse_share

Op = Literal["<", "<=", ">", ">="]

RUN = "run"
SEGMENT = r"[A-Za-z0-9_-]+"
REGRESSION = "regression"
SHORTEST_WINDOW_NS = 1_000_000_000
WINDOW_STEP_NS = 100_000_000  # the finest recording interval: windows are made of whole ones


GOODPUT_METRICS = ("ttft", "ttfo", "tpot", "e2el")

_ALLOWED_VALUE: dict[Kind, str] = {
    "time": "a time, like 800ms or 4s",
    "tokens": "a number of tokens, like 500",
    "share": "a share, like 0.1%",
    "rate": "a rate, like 20/s",
    "money": "an amount of US dollars, like $0.002",
}
_ALLOWED_STATISTIC = "p50, p95, p99, p99.9 (any quantile from p1 to below p100), mean or max"
_OPS = ("<", "<=", ">", ">=")
_MEANT_METRIC = {
    "latency": "e2el",
    "e2e": "e2el",
    "e2e_latency": "e2el",
    "request_latency": "e2el",
    "response_time": "e2el",
    "duration": "e2el",
    "http_req_duration": "e2el",
    "first_token": "ttft",
    "time_to_first_token": "ttft",
    "inter_token_latency": "itl",
    "icl": "itl",
    "tbt": "itl",
    "time_per_output_token": "tpot",
    "errors": "error_rate",
    "error": "error_rate",
    "failures": "error_rate",
    "http_req_failed": "error_rate",
    "throughput": "rate",
    "rps": "rate",
    "qps": "rate",
    "request_rate": "rate",
    "tokens": "output_tokens",
    "price": "cost",
    "costs": "cost",
    "spend": "cost",
    "dollars": "cost",
    "usd": "cost",
}
_MEANT_CHANGE = ("change", "increase", "growth", "delta", "degradation", "worse")
_MEANT_STATISTIC = {"avg": "mean", "average": "mean", "med": "p50", "median": "p50"}
_MEANT_OP = {"=<": "<=", "≤": "<=", "=>": ">=", "≥": ">=", "=": "<=", "==": "<="}

_SUBJECT = re.compile(r"[^\s<>=!≤≥]+")
_OP = re.compile(r"[<>=!≤≥]+")
_VALUE = re.compile(r"[0-9.]+\s+(?!(?:in|over)(?:\s|$))\S+|\S+")
_WORD = re.compile(r"\S+")
_QUANTILE = re.compile(r"p([0-9]{1,3}(?:\.[0-9]{1,6})?)")
_FINEST_QUANTILE = Decimal("0.000001")
_FOREIGN_QUANTILE = re.compile(r"[pP]?[(_]?([0-9]+(?:\.[0-9]+)?)(?:\)|th|%)?")
_TOKENS = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(?:\s*tokens?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A declared limit on one statistic of one metric of one step.

    `limit` is in nanoseconds, tokens, a share of 1, per second or nano-dollars, by the metric's
    kind; of a `regression` it is a share. `stage` is None when each recorded stage is judged by
    itself. `over_ns` is the length of the windows of which each must hold, None for the stage as a
    whole. `abort` ends the load when the budget can no longer be met. `parse_budget(budget.text,
    confidence=budget.confidence, abort=budget.abort)` gives the same budget again.
    """

    text: str
    step: str
    metric: str
    statistic: str
    quantile: float | None
    op: Op
    limit: float
    limit_text: str
    stage: str | None
    confidence: float
    regression: bool = False
    over_ns: int | None = None
    abort: bool = False

    @property
    def upper(self) -> bool:
        """True when the limit must not be exceeded, False when it must be reached."""
        return self.op in ("<", "<=")

    @property
    def threshold(self) -> int:
        """The largest whole value (ns, tokens, n$) that is not over the limit.

        Of a lower limit it is the largest value that is under it.
        """
        inclusive = self.op in ("<=", ">")
        return math.floor(self.limit) if inclusive else math.ceil(self.limit) - 1

    @property
    def counted(self) -> bool:
        """True when the samples above `threshold` decide it: a quantile with a limit of its own."""
        return self.quantile is not None and not self.regression

    @property
    def known_early(self) -> bool:
        """True when it can be known before the end that it will not be met."""
        share = not self.statistic and self.kind == "share" and not self.regression
        return share or self.counted or self.statistic == "max"

    @property
    def kind(self) -> Kind:
        """What the limit is: a time, tokens, a share, a rate or money."""
        return "share" if self.regression else METRICS[self.metric].kind

    @property
    def aspect(self) -> str:
        """What of the metric is limited: `p99`, `p99 regression`, `p99 in each 10s`, or nothing."""
        window = "" if self.over_ns is None else f"in each {_seconds(self.over_ns)}"
        words = (self.statistic, REGRESSION if self.regression else "", window)
        return " ".join(filter(None, words))

    @property
    def measure(self) -> str:
        """What of the step is limited: `ttft p99`, `error_rate`, `e2el p99 in each 10s`."""
        return f"{self.metric} {self.aspect}".rstrip()

    @property
    def subject(self) -> str:
        """What is limited: `chat.ttft p99`, `chat.error_rate`."""
        return f"{self.step}.{self.measure}"

    @property
    def time_unit(self) -> TimeUnit | None:
        """The unit to show observed times in, as the limit was declared; None if not a time."""
        if self.kind != "time":
            return None
        unit = self.limit_text.lstrip("0123456789.")
        return cast("TimeUnit", {"us": "us", "µs": "us", "μs": "us", "ms": "ms"}.get(unit, "s"))

    def __str__(self) -> str:
        return self.text


def parse_budget(
    text: str,
    *,
    stage: str | None = None,
    over_ns: int | None = None,
    confidence: float = 0.95,
    abort: bool = False,
) -> Budget:
    """Read one budget; `stage` is what `in STAGE` would say, `over_ns` what `over DURATION` would.

    Raises BudgetSyntaxError with the 1-based column, what was found and what is allowed.
    """
    reader = _Reader(text)
    step, metric = reader.subject()
    statistic, quantile = reader.statistic(metric)
    regression = reader.regression(metric, statistic)
    op = reader.op(metric, regression=regression)
    limit, limit_text = reader.value(metric, op, regression=regression)
    over_ns = reader.window(over_ns)
    stage = reader.stage(stage)
    budget = Budget(
        text="",
        step=step,
        metric=metric.name,
        statistic=statistic,
        quantile=quantile,
        op=op,
        limit=limit,
        limit_text=limit_text,
        stage=stage,
        confidence=confidence,
        regression=regression,
        over_ns=over_ns,
        abort=abort,
    )
    reader.check(budget)
    return replace(budget, text=_sentence(budget))


def _sentence(budget: Budget) -> str:
    subject = replace(budget, over_ns=None).subject
    window = "" if budget.over_ns is None else f" over {_seconds(budget.over_ns)}"
    where = f" in {budget.stage}" if budget.stage else ""
    return f"{subject} {budget.op} {budget.limit_text}{window}{where}"


def _seconds(ns: int) -> str:
    """`10s`, `2.5s`."""
    return f"{ns / 1e9:.15g}s"


def window_problem(over_ns: int) -> str:
    """Say why a budget cannot be judged in windows of this length; empty when it can."""
    if over_ns >= SHORTEST_WINDOW_NS and over_ns % WINDOW_STEP_NS == 0:
        return ""
    return "allowed is a window of 1s or more, in steps of 100ms, like 10s"


def goodput_limits(
    budgets: Iterable[Budget], step: str, *, stage: str | None = None
) -> dict[str, int]:
    """Return the largest times in nanoseconds that a good request of `step` may take, by metric.

    The strictest `pX` or `max` limit of each of ttft, ttfo, tpot and e2el counts. A root step is
    also held to the budgets of `run`. With `stage`, budgets of other stages are left out.
    """
    steps = (step,) if "/" in step else (step, RUN)
    limits: dict[str, int] = {}
    for budget in budgets:
        elsewhere = stage is not None and budget.stage not in (None, stage)
        if budget.step not in steps or elsewhere or budget.regression or budget.statistic == "mean":
            continue
        if budget.metric in GOODPUT_METRICS:
            most = budget.threshold
            limits[budget.metric] = min(most, limits.get(budget.metric, most))
    return limits


def near_miss(word: str, known: Iterable[str]) -> str:
    """`; did you mean "chat"?`, or nothing when no known word is close."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


class _Reader:
    """Reads one part after another and remembers the column."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.metric_column = 0
        self.statistic_column = 0

    def take(self, pattern: re.Pattern[str]) -> tuple[str, int]:
        """Return the next match, empty if there is none, and its 0-based column."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        start = self.at
        found = pattern.match(self.text, start)
        if found:
            self.at = found.end()
        return (found[0] if found else ""), start

    def rest(self) -> str:
        """Return what follows, for a message."""
        rest = self.text[self.at :].strip()
        return f'found "{rest}"' if rest else "the budget ends"

    def fail(self, column: int, problem: str) -> BudgetSyntaxError:
        return BudgetSyntaxError(self.text, column + 1, problem)

    def subject(self) -> tuple[str, Metric]:
        word, column = self.take(_SUBJECT)
        if not word:
            raise self.fail(
                column, f"{self.rest()} where STEP.METRIC must stand, like chat.ttft p99 < 800ms"
            )
        step, dot, name = word.rpartition(".")
        if not dot:
            raise self.fail(column, _without_step(word))
        self._check_step(step, column)
        if name not in METRICS:
            meant = _MEANT_METRIC.get(name.lower())
            hint = f'; did you mean "{meant}"?' if meant else near_miss(name.lower(), METRICS)
            raise self.fail(
                column + len(step) + 1,
                f'found the metric "{name}"; known are {", ".join(METRICS)}{hint}',
            )
        self.metric_column = column + len(step) + 1
        return step, METRICS[name]

    def _check_step(self, step: str, column: int) -> None:
        if re.fullmatch(f"{SEGMENT}(/{SEGMENT})*", step):
            return
        good = re.match(f"({SEGMENT}(/(?={SEGMENT}))?)*", step)
        raise self.fail(
            column + (good.end() if good else 0),
            f'found the step "{step}"; a step is words of letters, digits, _ and - joined with /, '
            "like answer/generate",
        )

    def statistic(self, metric: Metric) -> tuple[str, float | None]:
        before = self.at
        word, column = self.take(_SUBJECT)
        self.statistic_column = column
        if metric.kind in ("share", "rate"):
            if word == REGRESSION:
                self.at = before
            elif word:
                raise self.fail(
                    column,
                    f'found "{word}", but {metric.name} takes no statistic; '
                    f"an operator ({', '.join(_OPS)}) comes next",
                )
            return "", None
        if not word:
            raise self.fail(
                column,
                f"{metric.name} needs a statistic here: {_ALLOWED_STATISTIC}; {self.rest()}",
            )
        if word in ("mean", "max"):
            return word, None
        return self._quantile(word, column)

    def _quantile(self, word: str, column: int) -> tuple[str, float]:
        found = _QUANTILE.fullmatch(word)
        if not found:
            raise self.fail(
                column, f'found "{word}"; allowed are {_ALLOWED_STATISTIC}{_meant_statistic(word)}'
            )
        percent = Decimal(found[1])
        if not 1 <= percent < 100:
            meant = "max" if percent == 100 else _meant_quantile(percent)
            hint = f'; did you mean "{meant}"?' if meant else ""
            raise self.fail(
                column, f'found "{word}"; allowed is a quantile from p1 to below p100{hint}'
            )
        return f"p{percent.normalize():f}", float(percent / 100)

    def regression(self, metric: Metric, statistic: str) -> bool:
        word, column = self.take(_SUBJECT)
        if not word:
            return False
        if word != REGRESSION:
            meant = word.lower() in _MEANT_CHANGE or near_miss(word.lower(), [REGRESSION])
            hint = f'; did you mean "{REGRESSION}"?' if meant else ""
            raise self.fail(
                column,
                f'found "{word}" after the statistic; {REGRESSION} or an operator '
                f"({', '.join(_OPS)}) comes next{hint}",
            )
        if statistic == "max" or metric.kind == "rate":
            what = "the maximum" if statistic == "max" else f"the {metric.name}"
            raise self.fail(
                column,
                f'found "{REGRESSION}" of {what}, a fact about one run that has no interval to '
                "compare; allowed are quantiles, mean, error_rate and goodput",
            )
        return True

    def op(self, metric: Metric, *, regression: bool) -> Op:
        word, column = self.take(_OP)
        allowed = ", ".join(_OPS)
        if not word:
            raise self.fail(column, f"{self.rest()} where an operator must stand: {allowed}")
        if word not in _OPS:
            meant = _MEANT_OP.get(word)
            hint = f'; did you mean "{meant}"?' if meant else ""
            raise self.fail(column, f'found the operator "{word}"; allowed are {allowed}{hint}')
        upper = word in ("<", "<=")
        if regression and not upper:
            raise self.fail(
                column,
                f'found "{word}", but a {REGRESSION} should be small, so its limit is an upper '
                f'one; did you mean "{word.replace(">", "<")}"?',
            )
        if regression:
            return cast("Op", word)
        if upper and metric.name in ("goodput", "rate"):
            raise self.fail(
                column,
                f'found "{word}", but {metric.name} should be high, so its limit is a lower one; '
                f'did you mean "{word.replace("<", ">")}"?',
            )
        if not upper and (metric.kind in ("time", "money") or metric.name == "error_rate"):
            raise self.fail(
                column,
                f'found "{word}", but {metric.name} should be low, so its limit is an upper one; '
                f'did you mean "{word.replace(">", "<")}"?',
            )
        return cast("Op", word)

    def value(self, metric: Metric, op: Op, *, regression: bool) -> tuple[float, str]:
        word, column = self.take(_VALUE)
        kind: Kind = "share" if regression else metric.kind
        allowed = "a share, like 5%" if regression else _ALLOWED_VALUE[kind]
        if not word:
            raise self.fail(column, f"the budget ends where its limit must stand: {allowed}")
        try:
            limit = _limit(kind, word)
        except ValueError as error:
            what = f"a {REGRESSION}" if regression else metric.name
            raise self.fail(column, f"{what} is limited by {allowed}; {error}") from None
        limit_text = "".join(word.split())
        if regression:
            problem = "" if limit else "no run can show that nothing grew; allow a margin, like 5%"
        else:
            problem = _pointless(metric, op, limit, limit_text)
        if problem:
            raise self.fail(column, f'found "{op} {word}": {problem}')
        return limit, limit_text

    def window(self, given_ns: int | None) -> int | None:
        before = self.at
        word, _ = self.take(_WORD)
        if word != "over":
            self.at = before
            return given_ns
        text, column = self.take(_VALUE)
        if not text:
            raise self.fail(
                column, "the budget ends where a window's length must stand, like over 10s"
            )
        try:
            over_ns = parse_duration(text)
            problem = window_problem(over_ns)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise self.fail(column, f'found "over {text}"; {problem}')
        if given_ns not in (None, over_ns):
            raise self.fail(
                column, f'found "over {text}", but its "over" says "{_seconds(given_ns or 0)}"'
            )
        return over_ns

    def check(self, budget: Budget) -> None:
        """Refuse windows and an early end where they mean nothing for what is limited."""
        column = self.statistic_column if budget.statistic else self.metric_column
        share = not budget.statistic and budget.kind == "share"
        if budget.over_ns is not None and (budget.regression or not (budget.quantile or share)):
            raise self.fail(
                column,
                f"{_seconds(budget.over_ns)} windows count what is beyond the limit, and "
                f"{replace(budget, over_ns=None).measure} has no such count; allowed are "
                "quantiles, error_rate and goodput",
            )
        if budget.abort and not budget.known_early:
            raise self.fail(
                column,
                f"found abort: true, but whether {budget.measure} will hold is not known before "
                "the end; allowed are quantiles, max, error_rate and goodput",
            )

    def stage(self, given: str | None) -> str | None:
        word, column = self.take(_WORD)
        if not word:
            return given
        if word != "in":
            raise self.fail(
                column,
                f'found "{word}" after the limit; only "over DURATION" and then "in STAGE" may '
                "follow it",
            )
        name, column = self.take(_WORD)
        if not re.fullmatch(SEGMENT, name):
            found = f'found "{name}"' if name else "the budget ends"
            raise self.fail(column, f'{found} where a stage\'s name must stand, like "in steady"')
        if given not in (None, name):
            raise self.fail(column, f'found the stage "{name}", but its "stage" says "{given}"')
        after, end = self.take(re.compile(r".+"))
        if after:
            raise self.fail(end, f'found "{after.strip()}" after the stage; nothing may follow it')
        return name


def _without_step(word: str) -> str:
    name = _MEANT_METRIC.get(word, word)
    example = f"{RUN}.{name}" if name in METRICS else f"{word}.ttft"
    return f'found "{word}" without a dot; STEP.METRIC must stand here, like {example}'


def _meant_statistic(word: str) -> str:
    meant = _MEANT_STATISTIC.get(word.lower())
    quantile = _FOREIGN_QUANTILE.fullmatch(word)
    if quantile:
        meant = _meant_quantile(Decimal(quantile[1]))
    if not meant and word.lower() in ("mean", "max"):
        meant = word.lower()
    return f'; did you mean "{meant}"?' if meant else ""


def _meant_quantile(percent: Decimal) -> str | None:
    """Return the quantile that a number is likely to stand for, 0.95 being p95; None for none."""
    percent = percent * 100 if Decimal("0.5") <= percent < 1 else percent
    if not 1 <= percent < 100:
        return None
    return f"p{percent.quantize(_FINEST_QUANTILE, ROUND_DOWN).normalize():f}"


def _limit(kind: Kind, text: str) -> float:
    if kind == "time":
        return float(parse_duration(text))
    if kind == "share":
        return parse_share(text)
    if kind == "rate":
        return parse_rate(text)
    if kind == "money":
        return float(parse_money(text))
    found = _TOKENS.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not one")
    return float(found[1])


def _pointless(metric: Metric, op: Op, limit: float, text: str) -> str:
    """Why no result could break, or none could meet, the limit; empty when both are possible."""
    everything = metric.kind == "share" and limit == 1
    if limit == 0 and metric.kind == "time":
        return "nothing takes no time"
    if limit == 0 and op == "<":
        return f'it can never be met; did you mean "<= {text}"?'
    if limit == 0 and op == ">=":
        return f'it can never be broken; did you mean "> {text}"?'
    if everything and op == ">":
        return f'it can never be met; did you mean ">= {text}"?'
    if everything and op == "<=":
        return "it can never be broken"
    return ""
