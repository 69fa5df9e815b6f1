"""A throw-away certificate for 127.0.0.1, by the program `openssl`: no package is needed for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_NEW_KEY = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2"
_NAMES = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")


def throwaway(folder: Path) -> tuple[Path, Path] | None:
    """Write a certificate that vouches for itself, and its key; None where `openssl` cannot."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [openssl, *_NEW_KEY.split(), *_NAMES, "-keyout", str(key), "-out", str(cert)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=30)
    return (cert, key) if done.returncode == 0 else None
