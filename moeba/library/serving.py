"""transformers' own server, which is undocumented as a function and looks classes up in its package by name.

The same in 5.23 and 5.24. `known_by_name` can go when the server asks the Auto classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import transformers


def known_by_name(model_class: type) -> None:
    """Let `transformers.<name>` be this class, as servers find a model by the `architectures` of its config."""
    if not hasattr(transformers, model_class.__name__):
        setattr(transformers, model_class.__name__, model_class)


def transformers_serve(words: Sequence[str]) -> None:
    """`transformers serve` with these words, in this process; returns when the server is stopped.

    Raises:
        ImportError: the server's libraries are not installed.
    """
    from transformers.cli.transformers import app

    app(["serve", *words], prog_name="moeba", standalone_mode=False)


__all__ = ["known_by_name", "transformers_serve"]
