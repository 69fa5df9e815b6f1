"""The embedded reference endpoint: a model server that knows the truth about its own times.

It shares no code with the client that measures it, so that a bug in one cannot hide in the other.
Importing this package loads no server; `serve` does.
"""

from __future__ import annotations

from harness.endpoint.process import running, serve
from harness.endpoint.settings import Settings

__all__ = ["Settings", "running", "serve"]
