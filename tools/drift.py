"""What has moved in the libraries since the recorded releases, of all that Moeba reaches.

    python tools/drift.py            # compare the installed releases with tools/drift.json
    python tools/drift.py --record   # write tools/drift.json from the installed ones, once a release is taken in

It looks at every name that Moeba imports from another library, at every method of a library that a class of Moeba
overrides, and at the config and the model of every native family. Of each it compares the signature or the fields,
whether it is deprecated, and the code without comments and docstrings.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).with_name("drift.json")
LIBRARIES = ("transformers", "accelerate", "peft", "huggingface_hub", "safetensors", "tokenizers")
Facts = dict[str, str]


def imported_names() -> set[str]:
    """Dotted names of the libraries that a file of Moeba imports."""
    found = set()
    for path in sorted((ROOT / "moeba").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ImportFrom)
                and not node.level
                and (node.module or "").split(".")[0] in LIBRARIES
            ):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def overridden_methods() -> set[str]:
    """Dotted names of the libraries' methods that a class of Moeba's model, config or tokenizer replaces."""
    import moeba
    from moeba.modeling.blocks import BLOCKS

    classes = [getattr(moeba, name) for name in moeba.__all__ if name.startswith("Moeba")]
    found = set()
    for cls in (*classes, *BLOCKS.values()):
        ours = [base for base in cls.__mro__ if base.__module__.startswith("moeba.")]
        names = {
            name for base in ours for name, value in vars(base).items() if callable(inspect.unwrap(value))
        }
        for name in names - {"__init__", "__init_subclass__", "__repr__", "__eq__"}:
            for base in cls.__mro__:
                if base.__module__.split(".")[0] in LIBRARIES and name in vars(base):
                    found.add(f"{base.__module__}.{base.__qualname__}.{name}")
                    break
    return found


def native_families() -> Iterator[tuple[str, Facts]]:
    """Of every family that the installed transformers has: its config's fields, float32 parameters, and its code."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    from moeba.conversion.families import FAMILIES

    for model_type in sorted(FAMILIES):
        if model_type not in CONFIG_MAPPING:
            continue
        config, model = CONFIG_MAPPING[model_type], MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
        fields = {name: repr(getattr(config, name, None)) for name in inspect.get_annotations(config)}
        facts = {f"field {name}": default for name, default in fields.items()}
        facts["in float32"] = str(model._keep_in_fp32_modules_strict)
        facts["tied"] = str(model._tied_weights_keys)
        facts["code"] = code_hash(Path(inspect.getfile(model)).read_text(encoding="utf-8"))
        yield f"family {model_type}", facts


def resolve(name: str) -> Any:
    """The object behind a dotted name; AttributeError or ImportError where it is gone."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def code_hash(source: str) -> str:
    """Of the code alone: comments, docstrings and layout do not count."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant(value=str())), *_]:
                node.body = node.body[1:]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def facts_of(found: Any) -> Facts:
    """Signature, deprecations and hash of an object; an object without source is told by its value's type."""
    facts = {}
    try:
        facts["signature"] = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(found)))
    except (TypeError, ValueError):
        facts["type"] = type(found).__name__
    try:
        source = inspect.getsource(found)
    except (TypeError, OSError):
        return facts
    said = [
        line.strip() for line in source.splitlines() if "deprecate" in line.lower() and "import" not in line
    ]
    if said:
        facts["deprecated"] = " | ".join(said)[:300]
    facts["code"] = code_hash(source)
    return facts


def survey() -> dict[str, Facts]:
    """All that Moeba reaches in the installed libraries."""
    found: dict[str, Facts] = {}
    for name in sorted(imported_names() | overridden_methods()):
        try:
            found[name] = facts_of(resolve(name))
        except (AttributeError, ImportError):
            found[name] = {"gone": "not importable"}
    return found | dict(native_families())


def changes(before: dict[str, Facts], now: dict[str, Facts]) -> list[str]:
    """A line for each name and fact that moved; names of which only the code did come last, together."""
    lines, code_only = [], []
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now:
            lines.append(f"{name}: {'not recorded yet' if name not in before else 'reached no more'}")
            continue
        old, new = before[name], now[name]
        moved = sorted(fact for fact in old.keys() | new.keys() if old.get(fact) != new.get(fact))
        if moved == ["code"]:
            code_only.append(name)
        lines += [
            f"{name}: {fact}\n    was {old.get(fact)}\n    is  {new.get(fact)}"
            for fact in moved
            if fact != "code"
        ]
    return lines + ([f"in code only: {', '.join(code_only)}"] if code_only else [])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--record", action="store_true", help="write the record from what is installed")
    parser.add_argument("--file", type=Path, default=RECORD, help="the record (default: %(default)s)")
    words = parser.parse_args(arguments)
    now = {"releases": {library: version(library) for library in LIBRARIES}, "names": survey()}
    if words.record:
        words.file.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{len(now['names'])} names recorded in {words.file}")
        return 0
    before = json.loads(words.file.read_text(encoding="utf-8"))
    for library, release in now["releases"].items():
        print(f"{library}: recorded {before['releases'].get(library)}, installed {release}")
    lines = changes(before["names"], now["names"])
    print("\n".join(lines) if lines else f"none of {len(now['names'])} names moved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
