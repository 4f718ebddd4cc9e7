"""Whether Triton kernels can run here, found out without importing Triton."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

OLDEST = (3, 5)


def _why_not() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    for distribution in ("triton", "pytorch-triton"):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            return f"Triton {version} is older than {'.'.join(map(str, OLDEST))}"
    return None


WHY_NOT = _why_not()


def interpreting() -> bool:
    """Whether kernels imported now run in Triton's interpreter (`TRITON_INTERPRET=1`), on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
