"""Evaluations are shown where they are of these weights, in the text and in both forms the Hub reads."""

import pytest
import yaml
from card_folders import evaluation, write_json
from huggingface_hub import ModelCard

from moeba.hub_card import gather_facts, write_card


def test_in_the_text_and_in_the_metadata(merged):
    text = write_card(merged).read_text(encoding="utf-8")
    assert "| dataset | perplexity | bits per byte | how |" in text
    assert "| user/corpus, small, test | 21.8 | 1.02 | window 512, stride 256; revision abc |" in text
    assert "| **Evaluation** | perplexity 21.8 on user/corpus, small, test |" in text
    data = ModelCard(text).data
    assert data.metrics == ["perplexity", "bits_per_byte"] and "records an evaluation" not in text
    results = {result.metric_type: result for result in data.eval_results}
    assert results["perplexity"].metric_value == 21.83
    assert (results["perplexity"].dataset_type, results["perplexity"].dataset_revision) == (
        "user/corpus",
        "abc",
    )
    assert write_card(merged).read_text(encoding="utf-8") == text


def test_of_other_weights_nothing_is_shown(merged):
    write_card(merged)
    write_json(merged, "evaluation.json", evaluation(None))
    text = write_card(merged).read_text(encoding="utf-8")
    assert "perplexity" not in text and "model-index" not in text and "records an evaluation" in text


def test_leaderboard_files_alone(dense):
    (dense / ".eval_results").mkdir()
    entry = {"dataset": {"id": "user/bench", "task_id": "main"}, "value": 0.41, "notes": "5 shots"}
    (dense / ".eval_results" / "a.yaml").write_text(yaml.safe_dump([entry, {"value": 1}]), encoding="utf-8")
    text = write_card(dense).read_text(encoding="utf-8")
    assert "| user/bench | 0.41 | notes 5 shots |" in text


def test_a_damaged_leaderboard_file_is_named(dense):
    (dense / ".eval_results").mkdir()
    (dense / ".eval_results" / "a.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.yaml is not valid YAML"):
        write_card(dense)


def test_results_of_another_shape_are_absent(dense):
    write_json(dense, "evaluation.json", {"results": [{"metrics": {"x": "good"}}, 3]})
    assert gather_facts(dense).evaluation is None
