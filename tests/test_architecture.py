"""The laws of the house that a program can check. Who may import whom is said in setup.cfg (import-linter)."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import moeba
from moeba.conversion.families import FAMILIES

PACKAGE = Path(moeba.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LIMIT = 500
# Of a file that is longer, the reason.
LONGER: dict[str, str] = {
    "modeling/modeling_moeba.py": "transformers wants the base class and every head in one module",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


# Modules of other libraries whose documented names any room may import.
DOCUMENTED = {
    "transformers": {"transformers", "transformers.utils.logging"},
    "accelerate": {"accelerate"},
    "peft": {"peft"},
}


def foreign_names(path: Path) -> list[str]:
    """Undocumented modules and private names of other libraries that a file reaches."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            library = (node.module or "").split(".")[0]
            allowed = DOCUMENTED.get(library)
            found += [name for name in full if "._" in name and not name.startswith("__future__")]
            found += [n for n in full if allowed and node.module not in allowed and n not in allowed]
        elif (
            isinstance(node, ast.Attribute)
            and re.match(r"_[a-zA-Z]", node.attr)
            and node.attr not in OWN_PRIVATE
        ):
            found.append(ast.unparse(node))
    return found


def own_private_names() -> set[str]:
    """Every private name that Moeba itself defines, and those of the standard library that it needs."""
    names = {"_fields"}  # of a NamedTuple, documented
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    names.add(name)
    return names


OWN_PRIVATE = own_private_names()


@pytest.mark.parametrize(
    "code, found",
    [
        ("import torch\ntorch._C.thing()", ["torch._C"]),
        ("from transformers.utils.generic import x", ["transformers.utils.generic.x"]),
        ("from peft.tuners.lora import LoraLayer", ["peft.tuners.lora.LoraLayer"]),
        ("from torch.nn import _reduction", ["torch.nn._reduction"]),
        ("model.config._attn_implementation", ["model.config._attn_implementation"]),
        ("from transformers import AutoModel\nfrom transformers.utils import logging", []),
    ],
)
def test_a_name_that_may_move_is_seen(tmp_path, code, found):
    path = tmp_path / "code.py"
    path.write_text(code)
    assert foreign_names(path) == found


def test_one_room_for_what_moves_in_other_libraries():
    found = [
        f"{name_of(path)}: {name}"
        for path in FILES
        if room_of(path) != "library"
        for name in foreign_names(path)
    ]
    assert not found


def test_versions_are_compared_in_one_place():
    """Everywhere else the feature is asked for."""
    for path in FILES:
        code = code_of(path)
        compares = "packaging" in code or re.search(
            r"\b(torch|transformers|peft|triton) \. __version__ [<>=]", code
        )
        assert not compares or name_of(path) == "library/window.py", name_of(path)


def code_of(path: Path) -> str:
    """A file's names and texts, without comments, docstrings and what config fields mean."""
    source = path.read_text(encoding="utf-8")
    prose = []
    for node in ast.walk(ast.parse(source)):
        match getattr(node, "body", None), node:
            case [ast.Expr(value=ast.Constant(value=str())) as text, *_], _:
                prose.append(text)
            case _, ast.Call(func=ast.Name(id="says"), args=[text]):
                prose.append(text)
    spans = [((text.lineno, text.col_offset), (text.end_lineno, text.end_col_offset)) for text in prose]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = [
        token.string
        for token in tokens
        if token.type != tokenize.COMMENT and not any(start <= token.start < end for start, end in spans)
    ]
    return " ".join(kept).lower()


# First words of family names that are words of transformers or of every day as well.
EVERYDAY = {"dots", "flex", "seed"}


def family_words() -> str:
    """A pattern for the names of families: short ones as whole words, the others wherever they stand."""
    first = {name.split("_")[0].rstrip("0123456789") for name in FAMILIES} - EVERYDAY
    first |= {"gemma", "olmo", "deepseek", "granite"} | set(FAMILIES)
    words = [re.escape(name) if len(name) > 4 else rf"(?<![a-z]){name}(?![a-z])" for name in sorted(first)]
    return "|".join(words)


@pytest.mark.parametrize("room", ["modeling", "configuration"])
def test_parts_know_no_model_family(room):
    found = [
        f"{name_of(path)}: {name}"
        for path in FILES
        if room_of(path) == room
        for name in sorted(set(re.findall(family_words(), code_of(path))))
    ]
    assert not found


def test_no_file_is_too_long():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert [
        f"{name}: {length}" for name, length in lengths.items() if length > LIMIT and name not in LONGER
    ] == []
    assert set(LONGER) <= set(lengths)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_leaves_the_upper_rooms_alone():
    code = "import moeba, sys; print(*(name for name in sys.modules if name.startswith('moeba.')))"
    loaded = {name.split(".")[1] for name in run_python(code).split()}
    assert not loaded & {
        "conversion",
        "surgery",
        "evaluation",
        "hub_card",
        "training",
        "demo",
        "doctor",
        "cli",
    }
    assert {"configuration", "modeling", "tokenization"} <= loaded


def test_public_names_exist_and_are_listed():
    code = "import moeba; [getattr(moeba, name) for name in moeba.__all__]; print(sorted(moeba.__all__) == dir(moeba))"
    assert run_python(code).strip() == "True"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        moeba.nothing  # noqa: B018


def test_registering_twice_is_harmless():
    from transformers import AutoConfig, AutoModelForCausalLM

    moeba.registration.register()
    config = AutoConfig.for_model("moeba")
    assert type(config) is moeba.MoebaConfig
    assert AutoModelForCausalLM._model_mapping[type(config)] is moeba.MoebaForCausalLM
