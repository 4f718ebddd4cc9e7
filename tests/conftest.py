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
