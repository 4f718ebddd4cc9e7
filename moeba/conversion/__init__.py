"""Native checkpoints in and out: rows, plans, files, and the certificate that nothing changed."""

from .certificate import Certificate, CertificateError, certify
from .checkpoint import Checkpoint, resolve
from .convert import convert, export, read_native
from .families import FAMILIES, family_of
from .job import Result

__all__ = [
    "FAMILIES",
    "Certificate",
    "CertificateError",
    "Checkpoint",
    "Result",
    "certify",
    "convert",
    "export",
    "family_of",
    "read_native",
    "resolve",
]
