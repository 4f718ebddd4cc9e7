"""What every test may rely on: the libraries log as they do by default, whatever an earlier test made of that."""

from __future__ import annotations

import pytest
from transformers.utils import logging

VERBOSITY = logging.get_verbosity()


@pytest.fixture(autouse=True)
def library_logging():
    """The command line quiets the libraries for its process, and here one process runs many tests."""
    logging.set_verbosity(VERBOSITY)
    logging.enable_progress_bar()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what belongs to a selection of tests/selections.py, where one is asked for."""
    asked = config.option.markexpr or ""
    for name in ("oldest", "processors", "exhaustive"):
        if name in asked:
            import selections

            chosen = getattr(selections, f"in_{name}")
            for item in items:
                if chosen(item):
                    item.add_marker(name)
