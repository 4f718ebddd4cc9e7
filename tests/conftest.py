"""What every test may rely on: the libraries log as they do by default, whatever an earlier test made of that."""

from __future__ import annotations

import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True)
def library_logging():
    """The command line quiets the libraries for its process, and here one process runs many tests."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
