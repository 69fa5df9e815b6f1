"""`python -m harness.endpoint`: one line of JSON with the URL on stdout, then silence."""

from __future__ import annotations

from harness.endpoint.process import main

if __name__ == "__main__":
    main()
