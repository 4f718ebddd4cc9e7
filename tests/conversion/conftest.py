"""The case of one family and seed that the family tests share."""

from __future__ import annotations

import pytest
from family_case import CASES, Case


@pytest.fixture(scope="session", params=CASES, ids=[f"{model_type}-{seed}" for model_type, seed in CASES])
def case(request, tmp_path_factory) -> Case:
    """Pytest runs the tests of one case after each other, so that it is built once and then forgotten."""
    model_type, seed = request.param
    return Case.drawn(model_type, seed, tmp_path_factory.mktemp(f"{model_type}-{seed}"))
