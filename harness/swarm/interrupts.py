"""What Ctrl-C, SIGTERM and SIGHUP do to a run: before its load, while it runs, and after it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from harness.swarm.collect import Workers

_ENDING = (signal.SIGTERM, signal.SIGHUP)  # the second comes when a terminal is closed
_Handler = Callable[[int, FrameType | None], object]


class Interrupts:
    """The signals that came while a load runs: the first drains it, the second ends it at once.

    `running` names the workers that are to be told, at the time of the signal.
    """

    def __init__(self, running: Callable[[], Iterable[Workers]]) -> None:
        self._running = running
        self._came = 0

    @property
    def came(self) -> bool:
        """True once a signal came."""
        return self._came > 0

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Obey the signals that come inside."""
        with _handled(self._obey, signal.SIGINT, *_ENDING):
            yield

    def _obey(self, _signal: int, _frame: FrameType | None) -> None:
        self._came += 1
        for workers in self._running():
            if self._came == 1:
                workers.stop()
            else:
                workers.kill()


@contextmanager
def signals_like_ctrl_c() -> Iterator[None]:
    """Let a SIGTERM or SIGHUP end what runs inside as a Ctrl-C does."""
    with _handled(signal.default_int_handler, *_ENDING):
        yield


@contextmanager
def _handled(handler: _Handler, *numbers: signal.Signals) -> Iterator[None]:
    obeyed = [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in obeyed}  # nohup stays in force
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)
