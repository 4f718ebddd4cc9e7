"""`model.push_to_hub`, `save_pretrained(push_to_hub=True)`, `Trainer.push_to_hub`: above all, whose card goes along."""

from __future__ import annotations

import json
import re

from hub_state import File
from huggingface_hub import ModelCard

from moeba.modeling.code_files import code_files

LOAD = "from moeba import MoebaForCausalLM; model = MoebaForCausalLM.from_pretrained(folder); "
TRAIN = """
import torch
from transformers import Trainer, TrainingArguments, default_data_collator
from moeba import MoebaForCausalLM
from moeba.hub_card import keep_card

model = MoebaForCausalLM.from_pretrained(source)
rows = [{"input_ids": list(range(1 + i, 9 + i)), "labels": list(range(1 + i, 9 + i))} for i in range(8)]
arguments = TrainingArguments(
    output, max_steps=4, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1, report_to=[],
    use_cpu=True, disable_tqdm=True, push_to_hub=True, save_steps=2, **settings,
)
trainer = Trainer(model, arguments, train_dataset=rows, data_collator=default_data_collator)
keep_card(trainer)
keep_card(trainer)
trainer.train()
trainer.push_to_hub(**words)
result = type(trainer).__module__
"""


def card_of(hub, repo: str = "ada/model", branch: str = "main") -> ModelCard:
    return ModelCard(hub.repos[repo].branches[branch].files["README.md"].data.decode())


def test_a_new_repository_gets_the_card_and_the_code(hub, client, moe):
    program = LOAD + "result = str(model.push_to_hub('ada/model', private=True))"
    assert client.done(program, folder=moe).startswith(f"{hub.url}/ada/model/commit/")
    repo = hub.repos["ada/model"]
    (commit,) = repo.commits
    assert repo.private and commit.title == "Upload MoebaForCausalLM"
    assert {"config.json", "model.safetensors", *code_files()} < set(repo.files)
    assert "moe" in card_of(hub).data.tags and "<!-- moeba:start -->" in card_of(hub).text


def test_a_persons_words_on_the_hub_stay(hub, client, moe):
    client.push(moe)
    repo = hub.repos["ada/model"]
    (moe / "README.md").unlink(missing_ok=True)
    text = "---\nlicense: mit\n---\nWritten by a person\n"
    repo.add("main", "edit", {**repo.files, "README.md": File(text.encode(), is_lfs=False)})
    client.done(LOAD + "model.push_to_hub('ada/model')", folder=moe)
    card = card_of(hub)
    assert card.data.license == "mit" and "Written by a person" in card.text
    assert "<!-- moeba:start -->" in card.text


def test_the_card_of_the_folder_the_model_came_from_goes_along(hub, client, moe):
    (moe / "README.md").write_bytes("---\nlicense: mit\n---\nMein Modell: für alle\n".encode())
    client.done(LOAD + "model.push_to_hub('ada/model', tags=['sft'])", folder=moe)
    card = card_of(hub)
    assert card.data.license == "mit" and "Mein Modell: für alle" in card.text and "sft" in card.data.tags


def test_saving_with_push(hub, client, moe, tmp_path):
    """The repository is named after the folder, whose other files go along, however deep they lie."""
    deep = tmp_path / "deep" / "my-model"
    (deep / "a" / "b").mkdir(parents=True)
    (deep / "a" / "b" / "c.txt").write_text("c")
    words = "push_to_hub=True, revision='dev', commit_message='Step 3'"
    client.done(LOAD + f"model.save_pretrained(target, {words})", folder=moe, target=deep)
    repo = hub.repos["ada/my-model"]
    assert not repo.commits and repo.branches["dev"].title == "Step 3"
    assert repo.branches["dev"].files["a/b/c.txt"].data == b"c"


def test_a_pull_request(hub, client, moe):
    client.push(moe)
    program = LOAD + "result = model.push_to_hub('ada/model', create_pr=True, token='hf_other').pr_url"
    assert client.done(program, folder=moe) == f"{hub.url}/ada/model/discussions/1"
    assert len(hub.repos["ada/model"].commits) == 1


def test_errors_are_sentences(hub, client, moe):
    said = client.run(LOAD + "model.push_to_hub('bob/model')", folder=moe)
    assert said.error["type"] == "PushError" and "may not write to bob/model (403)" in said.text


def test_the_history_of_a_model_from_the_hub_goes_along(hub, client, moe):
    record = {"format_version": 1, "operation": "upcycle", "history": [], "notes": ["from the tests"]}
    (moe / "moeba_provenance.json").write_text(json.dumps(record))
    client.push(moe)
    client.done(LOAD + "model.push_to_hub('ada/tuned')", folder="ada/model")
    assert json.loads(hub.repos["ada/tuned"].files["moeba_provenance.json"].data) == record
    assert "from the tests" in card_of(hub, "ada/tuned").text


def test_without_the_package_the_cards_stay(hub, client, moe):
    """What a model does whose code came from the Hub: no service of the package is there."""
    (moe / "README.md").write_text("---\nlicense: mit\n---\nMine\n")
    program = """
from moeba import MoebaForCausalLM
from moeba.modeling.services import provide, provided

services = provided()
provide(None)
try:
    model = MoebaForCausalLM.from_pretrained(folder)
    model.push_to_hub("ada/model", tags=["sft"], private=True)
    model.push_to_hub("ada/model", revision="dev", commit_message="Again")
finally:
    provide(services)
"""
    client.done(program, folder=moe)
    repo = hub.repos["ada/model"]
    assert len(repo.commits) == 1 and repo.private and repo.branches["dev"].title == "Again"
    assert card_of(hub).data.license == "mit" and card_of(hub).data.tags == ["sft"]
    assert set(code_files()) < set(repo.files)


def test_a_trainer_keeps_the_card(hub, client, moe, tmp_path):
    """The stock Trainer: what it pushes at the end has our card, with what its training was."""
    words = {"tags": "mine", "language": "en", "commit_message": "Done"}
    values = dict(source=moe, output=tmp_path / "run", settings={"hub_strategy": "end"}, words=words)
    assert client.done(TRAIN, **values) == "transformers.trainer"
    repo = hub.repos["ada/run"]
    (commit,) = repo.commits
    assert commit.title == "Done" and not any(path.startswith("checkpoint-") for path in repo.files)
    card = card_of(hub, "ada/run")
    assert {"moe", "mine", "generated_from_trainer"} <= set(card.data.tags)
    assert card.data.language == "en"
    assert "<!-- moeba:start -->" in card.text and "More information needed" not in card.text
    assert json.loads(repo.files["trainer_state.json"].data)["global_step"] == 4
    assert re.search(r"steps\W+4\b", card.text, re.IGNORECASE), card.text
    assert set(code_files()) < set(repo.files)

    text = str(card) + "\n## My words\n"
    repo.add("main", "edit", {**repo.files, "README.md": File(text.encode(), is_lfs=False)})
    values["output"] = tmp_path / "again" / "run"
    client.done(TRAIN, **values)
    assert "## My words" in card_of(hub, "ada/run").text


def test_a_trainer_pushes_what_loads_while_it_trains(hub, client, moe, tmp_path):
    settings = {"hub_strategy": "every_save", "hub_always_push": True}
    client.done(TRAIN, source=moe, output=tmp_path / "run", settings=settings, words={})
    history = hub.repos["ada/run"].branches["main"].history()
    (step,) = [commit for commit in history if commit.title == "Training in progress, step 2"]
    assert {"config.json", "model.safetensors", "README.md", *code_files()} < set(step.files)
    assert "<!-- moeba:start -->" in step.files["README.md"].data.decode()
    assert json.loads(step.files["trainer_state.json"].data)["global_step"] == 2


def test_a_trainers_token_is_not_in_what_it_pushes(hub, client, moe, tmp_path):
    """Neither while it trains, in the folder and in its last checkpoint, nor at the end; and it is still used."""
    settings = {
        "hub_strategy": "checkpoint",
        "hub_always_push": True,
        "hub_token": "hf_writer",
        "save_total_limit": 1,
    }
    client.done(TRAIN, source=moe, output=tmp_path / "run", settings=settings, words={})
    history = hub.repos["ada/run"].branches["main"].history()
    arguments = [name for commit in history for name in commit.files if name.endswith("training_args.bin")]
    assert {"training_args.bin", "last-checkpoint/training_args.bin"} <= set(arguments)
    for commit in history:
        for name, file in commit.files.items():
            assert b"hf_writer" not in file.data, f"{name} of {commit.title!r}"


def test_training_goes_on_where_the_card_cannot_be_written(hub, client, moe, tmp_path):
    hub.fail("GET /api/models/ada/run", 403, times=1)
    settings = {"hub_strategy": "every_save", "hub_always_push": True}
    client.done(TRAIN, source=moe, output=tmp_path / "run", settings=settings, words={})
    assert json.loads(hub.repos["ada/run"].files["trainer_state.json"].data)["global_step"] == 4


def test_without_the_call_a_trainer_writes_its_own_draft(hub, client, moe, tmp_path):
    """As for any other model; the folder has its code all the same."""
    program = TRAIN.replace("keep_card(trainer)\n", "")
    values = dict(source=moe, output=tmp_path / "run", settings={"hub_strategy": "end"}, words={})
    client.done(program, **values)
    assert "More information needed" in card_of(hub, "ada/run").text
    assert set(code_files()) < set(hub.repos["ada/run"].files)


def test_other_models_are_refused(client, tmp_path):
    program = """
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from moeba.hub_card import keep_card

sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
arguments = TrainingArguments(output, use_cpu=True, report_to=[])
keep_card(Trainer(LlamaForCausalLM(LlamaConfig(**sizes)), arguments))
"""
    said = client.run(program, output=tmp_path / "run")
    assert said.error["type"] == "ValueError" and "LlamaForCausalLM, and no Moeba model" in said.text
