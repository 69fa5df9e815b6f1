"""Locust's side of a load, in worker processes, and the parent's side of those."""

import sys

# httpx imports its command line with itself, and that rich and pygments: 5 MB in every worker. It
# goes without where the import fails, as it does for who has not installed them.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
