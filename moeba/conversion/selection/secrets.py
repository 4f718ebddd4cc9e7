"""What looks like a secret, by a file's name or by its bytes. The secret itself is never shown."""

from __future__ import annotations

import mmap
import re
from fnmatch import fnmatchcase
from pathlib import Path

from ..weight_files import WEIGHT_SUFFIXES

_NAMES = (
    *(
        ".env",
        ".env.*",
        "*.env",
        "*.pem",
        "*.key",
        "*.p12",
        "*.pfx",
        "*.jks",
        "*.keystore",
        "*.kdbx",
        "*.ppk",
    ),
    *("id_rsa", "id_dsa", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".git-credentials", ".htpasswd"),
    *(".npmrc", ".pypirc", "credentials*", ".credentials*", "*_credentials", "*_credentials.*", ".boto"),
    *("secret", "secret.*", "secrets", "secrets.*", ".secret*", "client_secret*.json", "passwords.*"),
    *("token", "token.txt", "token.json", "tokens.txt", ".token", "*.token", "hf_token*", "*_token.txt"),
    *("stored_tokens", "access_token*", "api_key*", "apikey*", "service_account*.json", "kubeconfig"),
)
_PUBLIC_NAMES = ("*.pub", ".env.example", ".env.sample", ".env.template")
# How each begins, for a quick look, and how it goes on.
_TEXTS = {
    "a Hugging Face token": ((b"hf_",), rb"\bhf_[A-Za-z0-9]{30,}"),
    "a private key": ((b"-----BEGIN ",), rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY"),
    "a GitHub token": (
        (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
        rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})",
    ),
    "a GitLab token": ((b"glpat-",), rb"\bglpat-[A-Za-z0-9_-]{20,}"),
    "an AWS key": ((b"AKIA", b"ASIA"), rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "an API key": ((b"sk-",), rb"\bsk-(?:[A-Za-z0-9_-]{40,}|[A-Za-z0-9]{32,})"),
    "a Google key": ((b"AIza",), rb"\bAIza[A-Za-z0-9_-]{35}\b"),
    "a Slack token": ((b"xox",), rb"\bxox[abeoprs]-[A-Za-z0-9-]{20,}"),
    "an NVIDIA key": ((b"nvapi-",), rb"\bnvapi-[A-Za-z0-9_-]{40,}"),
    "a package registry's token": (
        (b"npm_", b"pypi-"),
        rb"\b(?:npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{60,})",
    ),
}
_DIFFERENT_CHARACTERS = 10  # of a token; `hf_xxxx…` in a text is an example of one
_UNREAD_WEIGHTS = 1 << 20  # bytes; a larger weight file is not searched for tokens


def secret_in(path: Path) -> str:
    """Why the file at `path` looks like a secret; empty where it does not."""
    return secret_name(path.name) or _secret_text(path)


def secret_name(name: str) -> str:
    """The same, by its name alone."""
    lower = name.lower()
    is_secret = _matches(lower, _NAMES) and not _matches(lower, _PUBLIC_NAMES)
    return "its name is that of a secret" if is_secret else ""


def _secret_text(path: Path) -> str:
    size = path.stat().st_size
    if not size or (path.suffix in WEIGHT_SUFFIXES and size > _UNREAD_WEIGHTS):
        return ""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for what, (beginnings, pattern) in _TEXTS.items():
            starts = [at for beginning in beginnings if (at := text.find(beginning)) >= 0]
            if not starts:
                continue
            # One byte earlier, so that a word boundary is seen.
            for found in re.compile(pattern).finditer(text, max(0, min(starts) - 1)):
                if len(set(found[0])) >= _DIFFERENT_CHARACTERS:
                    return f"it holds {what}"
    return ""


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
