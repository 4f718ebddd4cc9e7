"""The stock Trainer evaluates and predicts with a model that returns its cache, as every stock model does."""

from __future__ import annotations

import numpy as np
import pytest
from support import random_ids, tiny_model
from transformers import Trainer, TrainingArguments


@pytest.mark.parametrize("variant", ["dense", "moe"])
def test_predictions_are_without_the_cache(variant, tmp_path):
    model, ids = tiny_model(variant, use_cache=True), random_ids(3, 6)
    data = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(tmp_path, report_to="none", use_cpu=True, disable_tqdm=True)
    found = Trainer(model, arguments).predict(data)
    parts = found.predictions if isinstance(found.predictions, tuple) else (found.predictions,)
    assert not any(hasattr(part, "get_seq_length") for part in parts)
    np.testing.assert_allclose(parts[-1], model(ids).logits.detach().numpy(), atol=1e-5)
