"""What a real Trainer leaves is read: state, arguments without running a pickle, and router statistics."""

import pickle
import zipfile

import pytest
import torch
from card_folders import EXPERTS, save_model, write_json
from transformers import Trainer, TrainingArguments

from moeba import MoebaForCausalLM
from moeba.hub_card import gather_facts, write_card
from moeba.hub_card.reading.training_arguments import read_training_arguments
from moeba.training import RouterStatisticsCallback


def pack(folder, pickled):
    """`training_args.bin` as torch.save lays it out."""
    with zipfile.ZipFile(folder / "training_args.bin", "w") as archive:
        archive.writestr("training_args/data.pkl", pickled)


def test_a_real_training(tmp_path):
    save_model(tmp_path / "model", **EXPERTS)
    model = MoebaForCausalLM.from_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    arguments = TrainingArguments(
        str(out), max_steps=4, logging_steps=2, per_device_train_batch_size=2, learning_rate=0.003, seed=7,
        lr_scheduler_type="cosine", report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    ids = torch.arange(12) % 300
    data = [{"input_ids": ids, "labels": ids}] * 8
    callback = RouterStatisticsCallback()
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    trainer.save_model(str(out))
    trainer.save_state()

    training = gather_facts(out).training
    assert training.steps == 4 and [step for step, _ in training.losses] == [2, 4]
    assert (
        training.arguments["learning_rate"] == 0.003 and training.arguments["lr_scheduler_type"] == "cosine"
    )
    assert training.arguments["per_device_train_batch_size"] == 2 and training.arguments["seed"] == 7
    assert training.arguments["max_steps"] == 4 and "num_train_epochs" not in training.arguments
    assert sorted(training.max_load) == sorted(training.entropy) == [1, 2]
    assert [load.counts for load in training.experts] == [layer.counts for layer in callback.last]
    assert sum(training.experts[0].counts) == 2 * 2 * 2 * 12  # steps, rows, experts a token, tokens
    text = write_card(out).read_text(encoding="utf-8")
    assert "| `learning_rate` | `0.003` |" in text and str(tmp_path) not in text
    assert len(list((out / "figures").iterdir())) == 3


class Exploding:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('a pickle was run')",))


def test_a_pickle_is_never_run(tmp_path):
    pack(tmp_path, pickle.dumps({"a": Exploding()}))
    assert read_training_arguments(tmp_path) == {}
    holder = TrainingArguments("x", learning_rate=0.5)
    holder.seed = Exploding()
    pack(tmp_path, pickle.dumps(holder))
    values = read_training_arguments(tmp_path)
    assert values["learning_rate"] == 0.5 and values["seed"] == "raise RuntimeError('a pickle was run')"
    facts = gather_facts(tmp_path)  # nothing was run, but such a seed is shown as code
    assert facts.training.arguments["learning_rate"] == 0.5


@pytest.mark.parametrize("text", [b"", b"no pickle", b"PK\x03\x04 no zip", pickle.dumps([1, 2])])
def test_what_cannot_be_read_is_absent(tmp_path, text):
    (tmp_path / "training_args.bin").write_bytes(text)
    assert read_training_arguments(tmp_path) == {}
    pack(tmp_path, text)
    assert read_training_arguments(tmp_path) == {}


def test_a_huge_file_is_left_alone(tmp_path):
    pack(tmp_path, pickle.dumps(TrainingArguments("x")) + bytes(1 << 20))
    assert read_training_arguments(tmp_path) == {}


def test_a_log_with_holes(tmp_path):
    log = [
        {"loss": 3.0, "step": 2},
        {"loss": float("inf"), "step": 3},
        {"loss": "x"},
        {"loss": 2.5, "step": 2},
    ]
    write_json(tmp_path, "trainer_state.json", {"log_history": [*log, {"train_loss": 2.7, "step": 4}]})
    assert gather_facts(tmp_path).training.losses == ((2.0, 2.5),)
