"""The same figures through the evaluate library, and from the stock Trainer's evaluation."""

import json
import math

import pytest
import torch
from support import tiny_model
from transformers import Trainer, TrainingArguments

evaluate_library = pytest.importorskip("evaluate")

import moeba  # noqa: E402
from moeba.evaluation import Tally  # noqa: E402
from moeba.evaluation.metric import LanguageModelingMetric, compute_metrics, token_scores  # noqa: E402

ROWS = dict(log_likelihood=[-12.5, -3.25, -7.0], correct=[2, 1, 0], tokens=[4, 2, 3], bytes=[17, 6, 9])


@pytest.mark.parametrize("keep_in_memory", [True, False])
def test_the_figures_are_the_tallys_in_whatever_batches(tmp_path, keep_in_memory):
    metric = LanguageModelingMetric(keep_in_memory=keep_in_memory, cache_dir=str(tmp_path))
    expected = Tally(-22.75, 9, 3, 32)
    for _ in range(2):  # a metric can be used again
        metric.add(**{name: values[0] for name, values in ROWS.items()})
        metric.add_batch(**{name: values[1:] for name, values in ROWS.items()})
        assert metric.compute() == {**expected.metrics(), **expected.counts()}


def test_it_combines_with_other_metrics(tmp_path):
    first = LanguageModelingMetric(keep_in_memory=True, cache_dir=str(tmp_path))
    both = evaluate_library.combine([first], force_prefix=True)
    assert both.compute(**ROWS)["language_modeling_metric_perplexity"] == pytest.approx(math.exp(22.75 / 9))


def test_unknown_bytes_leave_bits_out(tmp_path):
    metric = LanguageModelingMetric(keep_in_memory=True, cache_dir=str(tmp_path))
    assert metric.compute(**{**ROWS, "bytes": [17, 0, 9]})["bits_per_byte"] is None


def test_the_trainer_measures_what_moeba_evaluate_does(sparse, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))
    texts = ["the dog saw a cat", "a naïve mat: 中文", "log"]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (expected,) = moeba.evaluate(sparse, tmp_path / "texts.jsonl")
    rows = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in texts]

    def padded(batch):
        longest = max(len(row["input_ids"]) for row in batch)
        ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch]
        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]
        ids, mask = torch.tensor(ids), torch.tensor(mask)
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    trainer = Trainer(
        model=moeba.MoebaForCausalLM.from_pretrained(sparse),
        args=TrainingArguments(
            str(tmp_path / "out"), per_device_eval_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True
        ),
        data_collator=padded,
        preprocess_logits_for_metrics=token_scores,
        compute_metrics=compute_metrics,
    )
    found = trainer.evaluate([{"input_ids": row} for row in rows])
    for name in ("perplexity", "token_accuracy"):
        assert found[f"eval_{name}"] == pytest.approx(expected.metrics[name], rel=1e-5)
    assert found["eval_tokens"] == expected.counts["tokens"]
    assert "eval_bits_per_byte" not in found


def test_only_two_numbers_a_token_are_kept():
    model = tiny_model()
    ids = torch.randint(1, 67, (2, 9))
    kept = token_scores(model(ids).logits, ids)
    assert kept.shape == (2, 9, 2)
    assert not kept[:, -1].any()
