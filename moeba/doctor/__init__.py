"""Whether Moeba works on this machine: versions, processor, experts kernels, and a short way through everything."""

from .report import Report, examine

__all__ = ["Report", "examine"]
