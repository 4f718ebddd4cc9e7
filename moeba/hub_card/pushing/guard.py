"""A copy of a model folder before it is published: what its records say of this machine is taken out."""

from __future__ import annotations

import json
from pathlib import Path

from ...conversion.provenance import OWN_FILES
from ...conversion.selection import LeftOut, names_only, scrub_card, scrub_companions, scrub_records
from ..reading.training_arguments import FILE, PLAIN_FILE, holds_token, read_pickled_arguments
from ..text.training import told_arguments

RECORDS = tuple(sorted(name for name in OWN_FILES if name.endswith(".json")))


def guard(folder: Path) -> tuple[LeftOut, ...]:
    """Change `folder`, which holds copies, in place, and say what was left out.

    Absolute paths in the records of operations and of a Trainer, in settings and in the card's metadata become names. A
    `training_args.bin` with a token, with such a path, or that cannot be looked into gives way to the arguments that
    the card tells.
    """
    scrub_records(folder, RECORDS)
    scrub_companions(folder)
    scrub_card(folder)
    path = folder / FILE
    if not path.is_file():
        return ()
    values = read_pickled_arguments(path)
    if values and values == names_only(values) and not holds_token(path):
        return ()
    told = told_arguments(values)
    if told and not (folder / PLAIN_FILE).exists():
        (folder / PLAIN_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    path.unlink()
    reason = "it holds what stays on this machine" if values else "it cannot be looked into"
    return (LeftOut(FILE, f"{reason}; what the card tells of it is in {PLAIN_FILE}" if told else reason),)
