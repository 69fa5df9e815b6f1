"""Latency-budget load tests for model endpoints.

In a Locust file: `from harness import ModelUser, step`. Everything else is the `harness` command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["ModelUser", "RequestFailed", "__version__", "step", "task"]

if TYPE_CHECKING:
    from locust import task

    from harness.errors import RequestFailed
    from harness.swarm.scenario import ModelUser, step

_HOMES = {
    "ModelUser": "harness.swarm.scenario",
    "step": "harness.swarm.scenario",
    "RequestFailed": "harness.errors",
    "task": "locust",
}


def __getattr__(name: str) -> Any:
    """Import the scenario API when a scenario asks for it: it brings Locust and gevent with it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
