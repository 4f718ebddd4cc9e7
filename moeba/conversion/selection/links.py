"""What lies behind a name in a folder: a file of its own, or something that must not be opened or copied."""

from __future__ import annotations

import stat
from pathlib import Path

from ...modeling.folders import leads_out

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def what_it_is(path: Path, folder: Path) -> str:
    """Why `path`, in `folder`, cannot be taken for a file of that folder; empty where it can. Nothing is opened.

    A link may lead to a file of the folder itself, or of the repository in the Hub's cache: see `leads_out`.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, RuntimeError):  # links that lead nowhere, or in a circle
        return "a link that leads nowhere" if path.is_symlink() else "no file that can be read"
    if kind != stat.S_IFREG:
        return _KINDS.get(kind, "no file")
    return "a link that leads out of the folder" if leads_out(path, folder) else ""
