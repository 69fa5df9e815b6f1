"""stdout and stderr that outlive their readers: what nobody takes any more ends no command."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

from harness.errors import UserError


class _Outlet(io.RawIOBase):
    """Where a stream's bytes go; from the first that are not taken, nowhere.

    `refused` is then the error; it is `told` once.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.refused: OSError | None = None
        self.told = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: Any) -> int | None:
        if self.refused is None:
            try:
                return self._raw.write(data)
            except OSError as error:
                self.refused = error
        return len(data)


def outlive_readers() -> None:
    """Let no write to stdout or stderr raise from now on, nor one of a letter they do not have."""
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


def _outliving(stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed before we began
        nowhere = _Outlet(io.FileIO(os.devnull, "w"))
        nowhere.refused = OSError(errno.EBADF, os.strerror(errno.EBADF))
        return io.TextIOWrapper(io.BufferedWriter(nowhere), encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)  # python -u has no buffer between
    if not isinstance(raw, io.RawIOBase) or isinstance(raw, _Outlet):
        stream.reconfigure(errors="replace")
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Outlet(raw)),
        encoding=stream.encoding,
        errors="replace",  # a terminal without µ is no reason to fail
        line_buffering=stream.line_buffering,
    )


def _untold(stream: TextIO) -> OSError | None:
    """Return why a stream took no more, once; None where it took everything so far."""
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if not isinstance(raw, _Outlet) or raw.told:
        return None
    raw.told = raw.refused is not None
    return raw.refused


def tell_lost_output() -> None:
    """Say on stderr that stdout was not written; a reader that left early needs no telling."""
    error = _untold(sys.stdout)
    if error is not None and error.errno != errno.EPIPE:
        sys.stderr.write(f"harness: warning: stdout cannot be written ({error.strerror})\n")


def print_document(text: str, what: str) -> None:
    """Write a document to stdout. UserError says that not all of it, of `what`, was taken."""
    sys.stdout.write(text)
    error = _untold(sys.stdout)
    if error is not None:
        raise UserError(
            f"{what}: stdout was not written to its end ({error.strerror}); whatever reads it must "
            "take all of it"
        )
