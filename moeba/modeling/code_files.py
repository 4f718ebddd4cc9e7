"""The code that travels with a saved model, so that `trust_remote_code=True` loads it where moeba is not installed.

Remote code must lie flat: one folder, `from .sibling import name` only. Installed, the same modules live in
`configuration/` and `modeling/`; flattening them is one substitution, which changes nothing in files already flat.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

AUTO_MAP = {
    "AutoConfig": "configuration_moeba.MoebaConfig",
    "AutoModel": "modeling_moeba.MoebaModel",
    "AutoModelForCausalLM": "modeling_moeba.MoebaForCausalLM",
    "AutoModelForSequenceClassification": "modeling_moeba.MoebaForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_moeba.MoebaForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_moeba.MoebaForQuestionAnswering",
}

_NESTED_IMPORT = re.compile(r"^(\s*from )\.\.configuration\.", flags=re.MULTILINE)


def code_files() -> dict[str, str]:
    """File name -> text of every module that the model consists of, flattened."""
    here = Path(__file__).parent
    # In a Hub snapshot or the dynamic-module cache there is no second folder, and all files lie here.
    folders = [folder for folder in (here.parent / "configuration", here) if (folder / "__init__.py").exists()] or [here]
    if (here / "configuration_moeba.py").exists():
        folders = [here]
    files = {}
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py":
                files[path.name] = _NESTED_IMPORT.sub(r"\1.", path.read_text(encoding="utf-8"))
    return files


def write_code(folder: str | os.PathLike) -> list[str]:
    """Write the code files into a model folder and return their names."""
    files = code_files()
    for name, text in files.items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
    return sorted(files)
