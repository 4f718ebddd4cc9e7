"""Which release of each library is installed, and whether the tests have passed on it."""

from __future__ import annotations

from dataclasses import dataclass

from ..library import window
from ..version import __version__

NEEDED = (
    "python",
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "numpy",
)
# And what the others are installed for.
OPTIONAL = {
    "peft": "adapters",
    "datasets": "moeba demo and moeba evaluate",
    "evaluate": "the metric of the evaluate library",
    "triton": "experts kernels on GPUs",
}


@dataclass(frozen=True)
class Release:
    """One library. `tested` is the oldest and the newest release that the tests have passed on, where that is told."""

    name: str
    installed: str | None
    place: window.Place
    tested: window.Tested | None
    use: str | None = None

    @property
    def misses(self) -> bool:
        """Whether something is lacking: a library that is needed, or a younger release of one that is installed."""
        return self.place == "older" or self.place == "missing" and self.use is None

    def line(self) -> str:
        known = f" ({' to '.join(dict.fromkeys(self.tested))})" if self.tested else ""
        words = {
            "missing": f"not installed (only for {self.use})" if self.use else "NOT INSTALLED",
            "older": f"OLDER than tested{known}",
            "tested": f"tested{known}",
            "newer": f"newer than tested{known}",
            "unlisted": "installed",
        }
        return f"{self.name:<16} {self.installed or '-':<14} {words[self.place]}".rstrip()


def releases() -> list[Release]:
    """Of everything that decides whether Moeba works."""
    own = Release("moeba", __version__, "unlisted", None)  # this very code, whatever is installed
    return [own, *map(_release, NEEDED), *(_release(name, use) for name, use in OPTIONAL.items())]


def _release(name: str, use: str | None = None) -> Release:
    tested = window.TESTED.get(name)
    return Release(name, window.installed(name), window.place(name), tested, use)


def remedy(found: list[Release]) -> str | None:
    """What to type where a library is missing or too old."""
    wrong = [release.name for release in found if release.misses]
    wanted = " ".join(f'"{window.requirement(name)}"' for name in wrong if name != "python")
    steps = [f"pip install {wanted}"] if wanted else []
    if "python" in wrong:
        steps.insert(0, f"make an environment with Python {window.TESTED['python'].oldest} or newer")
    return ", then ".join(steps) or None


def back_to_tested(found: list[Release]) -> str | None:
    """What to type to leave releases that are newer than tested."""
    newer = [release for release in found if release.place == "newer" and release.name != "python"]
    wanted = " ".join(f'"{release.name}=={window.TESTED[release.name].newest}"' for release in newer)
    return f"pip install {wanted}" if wanted else None
