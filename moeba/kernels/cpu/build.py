"""Compiles the C++ kernels for this machine at first use, and keeps the library for the next process.

Nothing is compiled at installation. Without a compiler, or with MOEBA_CPU_KERNELS=0, `library` says why and experts
run through PyTorch; a warning says so once, unless the variable says that it is meant. The library is kept in
`$MOEBA_CACHE`, or `~/.cache/moeba`, under a name made of the source, the compiler, its flags and the instructions of
the processor, so that a folder shared between machines is safe.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

SOURCE = Path(__file__).parent / "source"
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
)


class NoLibraryError(RuntimeError):
    """The kernels cannot be had on this machine; the message says why."""


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    if folder := os.environ.get("MOEBA_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moeba"


@functools.cache
def library() -> ctypes.CDLL | str:
    """The loaded kernels, or why there are none."""
    if os.environ.get("MOEBA_CPU_KERNELS", "1") == "0":
        return "MOEBA_CPU_KERNELS=0"
    try:
        return _load(_build(cache_folder()))
    except (NoLibraryError, OSError, subprocess.SubprocessError) as error:
        logger.warning(
            f"Moeba's C++ kernels do not run on this machine, because {error}. Experts run through PyTorch instead: "
            "the results are the same, but it is slower. With MOEBA_CPU_KERNELS=0 in the environment this is not said."
        )
        return str(error)


def absence() -> str | None:
    """Why `library` found no kernels, which the user has heard; None where it found them or was not asked."""
    found = library() if library.cache_info().currsize else None
    return found if isinstance(found, str) else None


def compiler() -> str:
    """The C++ compiler that is used.

    Raises:
        NoLibraryError: there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise NoLibraryError("no C++ compiler (g++ or clang++) was found")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise NoLibraryError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def _build(folder: Path) -> Path:
    main = SOURCE / "experts.cpp"
    if not main.is_file():
        raise NoLibraryError(f"their sources are not in this installation ({SOURCE}), which is damaged")
    program = compiler()
    # What the compiler defines for -march=native names its version and the processor's instructions.
    machine = _run([program, *FLAGS[1:3], "-dM", "-E", "-x", "c++", os.devnull])
    parts = [
        machine,
        torch.__version__,
        *FLAGS,
        *(path.read_text(encoding="utf-8") for path in sorted(SOURCE.iterdir())),
    ]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    target = folder / f"experts-{name}.so"
    if target.exists():
        return target
    logger.info(f"Compiling the experts kernels into {target} (once for this machine).")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        command = [program, *FLAGS, str(main)]
        try:
            _run([*command, *_torch_flags(), "-o", str(made)])
        except NoLibraryError:  # without PyTorch's headers, and so without the operator
            _run([*command, "-o", str(made)])
        made.replace(target)  # atomic: two processes may build at once
    return target


def _torch_flags() -> list[str]:
    home = Path(torch.__file__).parent
    return [f"-I{home / 'include'}", f"-L{home / 'lib'}", "-ltorch_cpu"]


def _load(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
        for name in ("forward", "backward", "grouped_product", "grouped_gradient"):
            for dtype in ("float32", "bfloat16"):
                getattr(loaded, f"moeba_{name}_{dtype}").argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError) as error:
        raise NoLibraryError(f"a damaged library is in the way, which may be deleted ({error})") from error
    return loaded
