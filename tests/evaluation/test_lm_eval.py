"""lm-evaluation-harness takes a Moeba model as it is, and finds what `moeba evaluate` finds."""

import json
import math
import os
import subprocess
import sys

import pytest
import yaml
from support import randomise
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import moeba

pytest.importorskip("lm_eval")

TEXTS = ["the dog saw a cat", "a naïve mat: 中文", "log", "the cat sat on the mat and saw the dog"]


@pytest.fixture
def tasks(tmp_path, quiz):
    """A folder with two tasks of the harness on local files."""
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    common = {"dataset_path": "json", "test_split": "train", "metadata": {"version": 1.0}}

    def metrics(*names):
        return [{"metric": name} for name in names]

    reading = {
        "task": "moeba_texts",
        "dataset_kwargs": {"data_files": {"train": str(tmp_path / "texts.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": metrics("byte_perplexity", "bits_per_byte"),
    }
    asking = {
        "task": "moeba_quiz",
        "dataset_kwargs": {"data_files": {"train": str(quiz)}},
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": metrics("acc", "acc_norm"),
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for task in (reading, asking):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    return folder


def agrees(results, folder, tmp_path, quiz):
    (text,) = moeba.evaluate(folder, tmp_path / "texts.jsonl")
    found = results["moeba_texts"]
    assert found["bits_per_byte,none"] == pytest.approx(text.metrics["bits_per_byte"], rel=1e-5)
    assert found["byte_perplexity,none"] == pytest.approx(2 ** text.metrics["bits_per_byte"], rel=1e-5)
    assert math.isfinite(found["bits_per_byte,none"])
    (answers,) = moeba.evaluate(folder, quiz, prompt="{question}", choices="choices", label="answer")
    found = results["moeba_quiz"]
    assert found["acc,none"] == answers.metrics["accuracy"]
    assert found["acc_norm,none"] == answers.metrics["accuracy_norm"]
    assert found["acc_stderr,none"] == pytest.approx(answers.errors["accuracy"], rel=1e-4)


def test_in_python(sparse, tasks, tmp_path, quiz):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = moeba.MoebaForCausalLM.from_pretrained(sparse)
    accuracies = set()
    for seed in (0, 1):
        folder = tmp_path / f"moe-{seed}"
        randomise(model, seed).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(sparse)
        if seed:
            begin = (tokenizer.eos_token, tokenizer.eos_token_id)
            tokenizer.bos_token = begin[0]
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{begin[0]} $A", pair=f"{begin[0]} $A {begin[0]} $B", special_tokens=[begin]
            )
            assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        tokenizer.save_pretrained(folder)
        results = {}
        # As the README says it, of a tokenizer that begins each text.
        for task, settings in (("moeba_texts", {"add_bos_token": False}), ("moeba_quiz", {})):
            results |= simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, **settings),
                tasks=[task],
                task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
                bootstrap_iters=2,
            )["results"]
        agrees(results, folder, tmp_path, quiz)
        accuracies.add((results["moeba_quiz"]["acc,none"], results["moeba_quiz"]["acc_norm,none"]))
    assert len(accuracies) > 1, "all models answer alike: the comparison cannot fail"


@pytest.mark.slow
def test_on_its_own_command_line(sparse, tasks, tmp_path, quiz):
    """As its users call it, where nothing imports moeba: the folder's own code is run."""
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--device",
        "cpu",
        "--batch_size",
        "2",
    ]
    command += [
        "--model_args",
        f"pretrained={sparse},trust_remote_code=True",
        "--tasks",
        "moeba_texts,moeba_quiz",
    ]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    agrees(json.loads(written.read_text())["results"], sparse, tmp_path, quiz)
