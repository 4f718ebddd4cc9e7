"""The code that travels with a saved model: `trust_remote_code=True` loads it where moeba is not installed.

Remote code must lie flat: one folder, `from .sibling import name` only. Installed, the same modules live in
`library/`, `configuration/` and `modeling/`; flattening them is one substitution, which leaves flat files as they
are. What travels is what `modeling_moeba` imports, directly or through a sibling.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

AUTO_MAP = {
    "AutoConfig": "configuration_moeba.MoebaConfig",
    "AutoModel": "modeling_moeba.MoebaModel",
    "AutoModelForCausalLM": "modeling_moeba.MoebaForCausalLM",
    "AutoModelForSequenceClassification": "modeling_moeba.MoebaForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_moeba.MoebaForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_moeba.MoebaForQuestionAnswering",
}

_NESTED_IMPORT = re.compile(r"^from \.\.(?:configuration|library)\.", flags=re.MULTILINE)
_FIRST_READ = "configuration_moeba.py"
# transformers keeps the classes of a folder under its name and a hash of the file that it reads first and of all that
# this one imports, directly or not. Without this, two folders whose other code differs run the first one's.
_NAMES_THE_REST = """

if False:  # read as text alone: it makes a hash of this file cover all the others
    from .modeling_moeba import MoebaModel  # noqa: F401
"""
_SIBLING = re.compile(r"^from \.(\w+) import ", flags=re.MULTILINE)


def code_files() -> dict[str, str]:
    """File name -> flattened text of every module that the model consists of."""
    here = Path(__file__).parent
    rooms = (here, here.parent / "configuration", here.parent / "library")

    def flattened(name: str) -> str:
        path = next(room / name for room in rooms if (room / name).exists())
        text = _NESTED_IMPORT.sub("from .", path.read_text(encoding="utf-8"))
        return text.removesuffix(_NAMES_THE_REST)

    files = _reachable(flattened)
    files[_FIRST_READ] += _NAMES_THE_REST
    return files


def code_in(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The same of a model folder's own code, whichever release wrote it; a file that is missing is empty."""

    def read(name: str) -> str:
        path = Path(folder) / name
        return path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""

    return _reachable(read)


def _reachable(read: Callable[[str], str]) -> dict[str, str]:
    """What `modeling_moeba` imports, directly or through a sibling, and itself."""
    files: dict[str, str] = {}
    pending = ["modeling_moeba"]
    while pending:
        name = f"{pending.pop()}.py"
        if name not in files:
            files[name] = read(name)
            pending += _SIBLING.findall(files[name])
    return dict(sorted(files.items()))


def write_code(folder: str | os.PathLike[str]) -> list[str]:
    """Write the code files into a model folder and return their names."""
    files = code_files()
    for name, text in files.items():
        (Path(folder) / name).write_bytes(text.encode("utf-8"))
    return list(files)
