"""What pip installs today without constraints, and whether Moeba holds there where transformers is newer than tested.

Prints, and never fails: a release of today is no fault of the tree. Run by `make test-unconstrained`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from moeba.library.window import TESTED, installed  # noqa: E402

ENVIRONMENT = ".venv-unconstrained"
# The contract, the model, and what it loads and saves.
TESTS = ("tests/library", "tests/modeling", "tests/configuration")
MINUTES = 8


def resolved() -> dict[str, str]:
    """The versions that a fresh installation would get today; torch stays as it is, for its gigabytes."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as held:
        held.write(f"torch=={(installed('torch') or '').split('+')[0]}\n")
        held.flush()
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--quiet",
            "--report",
            "-",
            "-c",
            held.name,
        ]
        command += ["--upgrade", "--upgrade-strategy", "eager", f"{ROOT}[test]"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    changes = json.loads(done.stdout)["install"]
    return {
        item["metadata"]["name"].lower().replace("-", "_"): item["metadata"]["version"] for item in changes
    }


def newest_torch() -> str:
    command = [sys.executable, "-m", "pip", "index", "versions", "torch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split("(", 1)[1].split(")", 1)[0]


def newer() -> dict[str, str]:
    """The libraries of the window of which there is a newer release than the newest tested one."""
    there = resolved() | {"torch": newest_torch()}
    return {
        name: there[name]
        for name, tested in TESTED.items()
        if name in there and Version(there[name]) > Version(tested.newest)
    }


def try_it() -> str:
    """Run the contract and the model's tests with what pip installs today."""
    make = ["make", f"VENV={ENVIRONMENT}", "CONSTRAINTS=/dev/null", "EXTRAS=test", "venv"]
    subprocess.run(make, cwd=ROOT, check=True, timeout=60 * MINUTES, stdout=subprocess.DEVNULL)
    test = [f"{ENVIRONMENT}/bin/python", "-m", "pytest", "-q", "-n", "2", "-m", "not slow", *TESTS]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        test, cwd=ROOT, env=environment, timeout=60 * MINUTES, stdout=subprocess.PIPE, text=True
    )
    print("\n".join(f"| {line}" for line in done.stdout.splitlines()[-30:]))
    return "hold" if done.returncode == 0 else "DO NOT HOLD"


def main() -> None:
    try:
        found = newer()
        for name, version in found.items():
            print(f"!!! {name} {version} is newer than the newest that was tested, {TESTED[name].newest}")
        if not found:
            print("Nothing that pip installs today is newer than what was tested.")
        elif "transformers" in found:
            print(
                f"!!! with transformers {found['transformers']}, the contract and the model's tests {try_it()}"
            )
    except (subprocess.SubprocessError, OSError, ValueError, KeyError, IndexError) as error:
        print(f"!!! what pip installs today could not be found out: {error}")


if __name__ == "__main__":
    main()
