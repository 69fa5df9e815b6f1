"""Stalls of the loop and garbage collections are measured, each once."""

from __future__ import annotations

import gc
import time

import gevent
import load  # noqa: F401 - imports Locust without its patching
import pytest
from load import MS

from harness.swarm.pauses import Pauses

pytestmark = pytest.mark.swarm


def block(ns: int) -> None:
    until = time.monotonic_ns() + ns
    while time.monotonic_ns() < until:
        pass


def test_a_stall_is_measured_once_and_as_long_as_it_was() -> None:
    with Pauses() as pauses:
        gevent.sleep(0.01)
        pauses.take()
        block(200 * MS)
        gevent.sleep(0.05)
        stall_ns, _ = pauses.take()
        assert stall_ns >= 150 * MS
        gevent.sleep(0.05)
        assert pauses.take()[0] < stall_ns


def test_the_longest_collection_is_measured_while_it_is_watched_and_not_after() -> None:
    pauses = Pauses()
    with pauses:
        gc.collect()
        _, collection_ns = pauses.take()
        assert collection_ns > 0
    gc.collect()
    assert pauses.take()[1] == 0
