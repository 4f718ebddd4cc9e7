# Copyright 2026 The Moeba Authors. Licensed under the Apache License, Version 2.0.
import sys
from pathlib import Path

import pytest

# For the ranks' fresh interpreters too: multiprocessing hands sys.path on to them
sys.path.insert(0, str(Path(__file__).parent))

UPSTREAM_MARKERS = [
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
    "torch_export_test",
    "is_training_test",
    "is_tensor_parallel_test",
    "is_expert_parallel_test",
    "is_fsdp_test",
    "is_pipeline_test",
    "generate",
]


def pytest_configure(config: pytest.Config) -> None:
    for name in UPSTREAM_MARKERS:
        config.addinivalue_line("markers", f"{name}: used by transformers' own tests")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Importing the test file fetches the sdist, so leave it alone where its tests are deselected anyway."""
    return True if "not upstream" in (config.option.markexpr or "") else None
