"""Runs in a process of its own: takes programs as lines of JSON, runs them, and answers each with a line.

A program is Python text; it finds its values as variables and leaves what it has to say in `result`. Waiting is
written down instead of done, so that a test sees how long a push would have waited.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback

WAITS: list[float] = []
time.sleep = WAITS.append


def run(order: dict) -> dict:
    WAITS.clear()
    names = {"result": None, **order["values"]}
    try:
        exec(order["program"], names)
        return {"result": names["result"], "waits": WAITS}
    except BaseException as error:
        details = {"type": type(error).__name__, "text": str(error), "status": getattr(error, "status", None)}
        details["trace"] = traceback.format_exc()
        return {"error": details, "waits": WAITS}


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # so that nothing else gets between the answers
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line)), default=str), file=answers, flush=True)


if __name__ == "__main__":
    main()
