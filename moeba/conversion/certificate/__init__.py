"""The certificate: proof that two checkpoints compute the same function, with planted faults that it must catch."""

from .proof import certify, certify_folders
from .report import Certificate, CertificateError, Check

__all__ = ["Certificate", "CertificateError", "Check", "certify", "certify_folders"]
