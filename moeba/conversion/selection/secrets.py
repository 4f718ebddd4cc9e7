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
    "an API key": (
        (b"sk-", b"sk_live_", b"rk_live_", b"gsk_", b"r8_", b"dapi"),
        rb"\b(?:sk-(?:[A-Za-z0-9_-]{40,}|[A-Za-z0-9]{32,})|[sr]k_live_[A-Za-z0-9]{20,}|gsk_[A-Za-z0-9]{40,}"
        rb"|r8_[A-Za-z0-9]{37}\b|dapi[0-9a-f]{32}\b)",
    ),
    "a Google key": ((b"AIza",), rb"\bAIza[A-Za-z0-9_-]{35}\b"),
    "a Slack token": ((b"xox",), rb"\bxox[abeoprs]-[A-Za-z0-9-]{20,}"),
    "an NVIDIA key": ((b"nvapi-",), rb"\bnvapi-[A-Za-z0-9_-]{40,}"),
    "a package registry's token": (
        (b"npm_", b"pypi-"),
        rb"\b(?:npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{60,})",
    ),
    "a web token": ((b"eyJ",), rb"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"),
    "a Slack address": ((b"hooks.slack.com/",), rb"hooks\.slack\.com/services/\w+/\w+/\w{20,}"),
    "an Azure key": ((b"AccountKey=",), rb"AccountKey=[A-Za-z0-9/+]{60,}"),
    # `user:password@`, but not what stands for one in an example
    "an address with a password": (
        (b"://",),
        rb"://[^\s/:@\"'<>{}$\[]+:(?!(?:pass(?:word|wd)?|secret|token|x+|\.+|\*+|your\S*)@)"
        rb"[^\s/:@\"'<>{}$]{3,}@[A-Za-z0-9]",
    ),
}
# Settings whose names say what they are, in JSON, YAML, a shell's or an .ini file.
_SETTING = re.compile(
    rb"""(?:aws_?secret_?access_?key|(?:api|secret|private|account)[_-]?key|(?:access|auth|hub|hf|bearer)[_-]?token
    |client[_-]?secret|passw(?:or)?d)["']?\s{0,4}[:=]\s{0,4}["']?([\w/+.~-]{16,})""",
    re.IGNORECASE | re.VERBOSE,
)
_DIFFERENT_CHARACTERS = 10  # of a token; `hf_xxxx…` in a text is an example of one
_UNREAD_WEIGHTS = 1 << 20  # bytes; a larger weight file is not searched for tokens
_LARGEST_SETTINGS = 1 << 20  # bytes; a larger file is no list of settings


def secret_in(path: Path) -> str:
    """Why the file at `path` looks like a secret; empty where it does not."""
    return secret_name(path.name) or _secret_text(path)


def secret_name(name: str) -> str:
    """The same, by its name alone."""
    lower = name.lower()
    is_secret = _matches(lower, _NAMES) and not _matches(lower, _PUBLIC_NAMES)
    return "its name is that of a secret" if is_secret else ""


def secret_in_text(text: str) -> str:
    """The same, for words that are about to be written."""
    return _secret_bytes(text.encode())


def _secret_text(path: Path) -> str:
    size = path.stat().st_size
    if not size or (path.suffix in WEIGHT_SUFFIXES and size > _UNREAD_WEIGHTS):
        return ""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return _secret_bytes(text)


def _secret_bytes(text: bytes | mmap.mmap) -> str:
    """Beginnings are looked for first: that takes some tens of milliseconds for a large tokenizer."""
    for what, (beginnings, pattern) in _TEXTS.items():
        starts = [at for beginning in beginnings if (at := text.find(beginning)) >= 0]
        if not starts:
            continue
        # One byte earlier, so that a word boundary is seen.
        for found in re.compile(pattern).finditer(text, max(0, min(starts) - 1)):
            if _is_mixed(found[0]):
                return f"it holds {what}"
    if len(text) <= _LARGEST_SETTINGS and any(
        _is_mixed(found[1]) and re.search(rb"\d", found[1]) for found in _SETTING.finditer(text)
    ):
        return "it holds what its name calls a key or a password"
    return ""


def _is_mixed(token: bytes) -> bool:
    return len(set(token)) >= _DIFFERENT_CHARACTERS


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
