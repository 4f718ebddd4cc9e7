"""The certificate: proof that two checkpoints compute the same function, with planted faults that it must catch."""

from .proof import certify, certify_folders
from .report import Certificate, CertificateError, Check, Status
from .sides import Kind

__all__ = ["Certificate", "CertificateError", "Check", "Kind", "Status", "certify", "certify_folders"]
