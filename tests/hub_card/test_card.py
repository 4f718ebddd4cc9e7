"""The card says what files say, in the right words, and leaves alone what a person wrote."""

import ast
import json
import re

import pytest
import yaml
from card_folders import certificate, provenance, save_model, save_tokenizer, source, write_json
from huggingface_hub import ModelCard

import moeba
from moeba import MoebaConfig, MoebaForCausalLM
from moeba.hub_card import write_card

UNFOUNDED = (
    "verified",
    "sha256",
    "Recipe",
    "Training",
    "license",
    "base_model",
    "pipeline_tag",
    "trust_remote_code",
    "on disk",
    "chat template",
    "from_pretrained",
)


def text_of(folder):
    return write_card(folder).read_text(encoding="utf-8")


def section(text, title):
    """The lines of a section that are not empty."""
    body = re.split(r"^## ", text.split(f"## {title}\n")[1], flags=re.MULTILINE)[0]
    return [line for line in body.splitlines() if line]


def titles(text):
    return re.findall(r"^## (.*)$", text, flags=re.MULTILINE)


def metadata(folder):
    return ModelCard.load(folder / "README.md").data.to_dict()


def test_a_dense_model(dense):
    text = text_of(dense)
    config = MoebaConfig.from_pretrained(dense)
    assert metadata(dense) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["moeba"],
    }
    assert "\n# Dense decoder, " in text
    assert f"| parameters, total | {config.num_params():,} |" in text
    assert titles(text) == ["How to use", "Serving", "Architecture", "Size", "Tokenizer", "Limits"]
    assert "router" not in text.lower() and "certificate" not in text.lower()


def test_the_metadata_is_plain_yaml(dense):
    block = text_of(dense).split("---\n")[1]
    assert yaml.safe_load(block) == metadata(dense)


@pytest.mark.parametrize("missing", ["everything", "all but the config"])
def test_nothing_is_invented(tmp_path, missing):
    if missing == "all but the config":
        MoebaConfig(
            vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4
        ).save_pretrained(tmp_path)
    text = text_of(tmp_path)
    for word in UNFOUNDED:
        assert word not in text, word
    if missing == "everything":
        assert titles(text) == ["Limits"] and metadata(tmp_path) == {}
        assert "nothing is known of the model" in text
    else:
        assert "There are no weights in this folder." in text and "There is no tokenizer" in text


def test_an_untrained_router_is_said_first(upcycled):
    lines = [line for line in text_of(upcycled).split("moeba:metadata")[1].splitlines()[1:] if line]
    assert lines[0].startswith("# Mixture-of-experts decoder")
    assert lines[1].startswith("> **Untrained router.** The experts of this model were made by `upcycle`")
    assert metadata(upcycled)["tags"] == ["moeba", "moe", "upcycled"]
    write_json(
        upcycled, "trainer_state.json", {"global_step": 100, "epoch": 1.0, "log_history": [{"loss": 2.0}]}
    )
    text = text_of(upcycled)
    assert "Untrained" not in text and "untrained" not in text
    assert section(text, "Training") == [
        "- **Optimiser steps:** 100",
        "- **Epochs:** 1",
        "- **Last training loss:** 2",
    ]


def test_training_of_the_parent_is_not_shown(upcycled):
    write_json(upcycled, "parity.json", certificate(upcycled))
    write_json(upcycled, "trainer_state.json", {"global_step": 100})
    text = text_of(upcycled)
    assert "Untrained router" in text and "Training" not in titles(text)


def test_a_certificate_with_its_figures(upcycled):
    write_json(upcycled, "parity.json", certificate(upcycled))
    text = text_of(upcycled)
    lines = section(text, "Certificate")
    assert lines[0].startswith("**verified**")
    assert (
        "| logits | checkpoint | verified | max abs 1.5e-06, tokens 24, by layer at most 3e-07 | float32 |"
        in lines
    )
    assert "| flash attention |  | unsupported |  | no GPU here |" in lines
    assert "| num_experts | `0` | `4` | derived |" in lines
    assert "| gate and up swapped | yes | 2.58 |" in lines
    assert "hidden_size" not in text
    assert "Tensors: 30 in the source, 34 in this model." in lines and "Dropped: `inv_freq`." in lines


@pytest.mark.parametrize("where", ["certificate", "provenance"])
def test_a_lossy_operation_reports_a_gap(upcycled, where):
    checks = [{"name": "user/one", "status": "not applicable", "figures": {"kl": 0.0213}, "detail": ""}]
    lossy = {"lossy": True} if where == "certificate" else {}
    write_json(upcycled, "parity.json", certificate(upcycled, operation="merge", checks=checks, **lossy))
    if where == "provenance":
        write_json(upcycled, "moeba_provenance.json", provenance("merge", lossy=True))
    text = text_of(upcycled)
    assert section(text, "Difference to the source")[0].startswith(
        "`merge` does not keep the function of its source."
    )
    assert "| user/one |  | not applicable | kl 0.0213 |  |" in text
    assert "parity" not in text.lower() and "verified" not in text


@pytest.mark.parametrize("verdict", ["failed", "void"])
def test_a_certificate_that_proves_nothing(upcycled, verdict):
    missed = [{"fault": "gate and up swapped", "caught": False, "max_abs_diff": 0.0}]
    changes = {"negative_controls": missed} if verdict == "void" else {"verdict": "failed"}
    write_json(upcycled, "parity.json", certificate(upcycled, **changes))
    text = text_of(upcycled)
    assert section(text, "Difference to the source")[0].startswith("**unverified**")
    assert ("1.5e-06" in text) == (verdict == "failed")
    assert ("| gate and up swapped | **no** | 0 |" in text) == (verdict == "void")
    assert "same function" not in text and "parity" not in text


def test_a_certificate_of_other_weights_shows_no_figures(upcycled):
    write_json(upcycled, "parity.json", certificate(None))
    text = text_of(upcycled)
    assert "names other weights" in text and "1.5e-06" not in text and "**verified**" not in text


def test_a_status_that_nobody_knows_is_unverified(upcycled):
    write_json(upcycled, "parity.json", certificate(upcycled, checks=[{"name": "x", "status": "excellent"}]))
    assert "| x |  | unverified |  |  |" in text_of(upcycled)


def test_provenance_with_hashes_and_the_recipe_verbatim(upcycled):
    recipe = {"z": "keeps ```its``` order", "a": [1, 2.5], "note": "<!-- moeba:end -->\n<!-- moeba:end -->"}
    first = provenance(
        "convert", source=source(repo_id="user/base", revision="abc", license="mit"), recipe={}
    )
    write_json(upcycled, "moeba_provenance.json", provenance(recipe=recipe, notes=["a | b"], history=[first]))
    text = text_of(upcycled)
    lines = section(text, "Where it comes from")
    assert "### 1. convert (moeba 0.1.0, transformers 5.23.0, torch 2.13.0)" in lines
    assert "From `user/base` at revision `abc` (model type `llama`, licence mit)." in lines
    assert f"| `model.safetensors` | `{'ab' * 32}` |" in lines
    shown = re.search(r"^````json\n(.*?)^````$", text, flags=re.MULTILINE | re.DOTALL)[1]
    assert ast.literal_eval(shown) == recipe and list(ast.literal_eval(shown)) == list(recipe)
    assert "- a \\| b" in lines
    assert "/home/somebody" not in text
    assert write_card(upcycled).read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (provenance(), {}),
        (
            provenance(source=source(repo_id="user/base")),
            {"base_model": "user/base", "base_model_relation": "finetune"},
        ),
        (
            provenance(source=source(base_model="gpt2")),
            {"base_model": "gpt2", "base_model_relation": "finetune"},
        ),
        (provenance(source=source(repo_id="../not an id")), {}),
        (
            provenance("merge", source=None, sources=[source(repo_id="a/one"), source(repo_id="a/two")]),
            {"base_model": ["a/one", "a/two"], "base_model_relation": "merge"},
        ),
        (
            provenance(history=[provenance("convert", source=source(repo_id="a/old", license="mit"))]),
            {"base_model": "a/old", "base_model_relation": "finetune", "license": "mit"},
        ),
        (
            provenance(source=source(license="other", license_name="my licence", license_link="LICENSE")),
            {"license": "other", "license_name": "my licence", "license_link": "LICENSE"},
        ),
    ],
)
def test_base_models_and_licences_are_those_recorded(upcycled, step, expected):
    write_json(upcycled, "moeba_provenance.json", step)
    write_card(upcycled)
    own = ("library_name", "pipeline_tag", "tags")
    assert {key: value for key, value in metadata(upcycled).items() if key not in own} == expected


def test_a_hard_limit_of_positions_and_a_tokenizer_too_large(dense):
    save_model(dense, position_embedding_type="learned", max_position_embeddings=64, vocab_size=100)
    text = text_of(dense)
    assert "Inputs longer than 64 tokens fail" in text
    assert "but the model embeds only 100" in text


def test_the_same_folder_gives_the_same_bytes(upcycled, tmp_path):
    write_json(upcycled, "parity.json", certificate(upcycled))
    first = text_of(upcycled)
    assert text_of(upcycled) == first
    moved = upcycled.rename(tmp_path / "another name")
    (moved / "README.md").unlink()
    assert text_of(moved) == first


def test_what_a_person_wrote_survives(upcycled):
    path = write_card(upcycled)
    text = path.read_text(encoding="utf-8")
    text = text.replace(
        "library_name:", "language:\n- de\ndatasets:\n- user/corpus\nlicense: mit\nlibrary_name:"
    )
    text = text.replace("- moe\n", "- mine\n").replace("text-generation", "text2text-generation", 1)
    text = (
        text.replace("<!-- moeba:start -->", "Written above.\n\n<!-- moeba:start -->")
        + "\n## Mine\r\n\r\n| table |\n"
    )
    path.write_bytes(text.encode())
    write_json(upcycled, "trainer_state.json", {"global_step": 7})
    renewed = write_card(upcycled).read_bytes().decode()
    values = metadata(upcycled)
    assert (values["language"], values["datasets"], values["license"]) == (["de"], ["user/corpus"], "mit")
    assert values["pipeline_tag"] == "text2text-generation"
    assert values["tags"] == ["moeba", "mine", "upcycled"]
    assert "\nWritten above.\n\n<!-- moeba:start -->" in renewed
    assert renewed.endswith("<!-- moeba:end -->\n\n## Mine\r\n\r\n| table |\n")
    assert "Optimiser steps:** 7" in renewed and "Untrained" not in renewed
    assert write_card(upcycled).read_bytes().decode() == renewed


def test_our_own_metadata_goes_when_it_no_longer_holds(upcycled):
    write_json(upcycled, "moeba_provenance.json", provenance(source=source(repo_id="a/b", license="mit")))
    write_card(upcycled)
    assert metadata(upcycled)["license"] == "mit"
    (upcycled / "moeba_provenance.json").unlink()
    write_card(upcycled)
    assert metadata(upcycled) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["moeba", "moe"],
    }


def test_a_card_without_markers_keeps_all_its_text(dense):
    results = [{"task": {"type": "text-generation"}, "dataset": {"name": "W", "type": "w"},
                "metrics": [{"type": "perplexity", "value": 12.5}]}]  # fmt: skip
    values = {"license": "mit", "tags": ["x"], "model-index": [{"name": "m", "results": results}]}
    body = "# My model\n\nText.\n"
    (dense / "README.md").write_text(f"---\n{yaml.safe_dump(values)}---\n\n{body}", encoding="utf-8")
    text = text_of(dense)
    assert text.endswith(f"<!-- moeba:end -->\n\n{body}")
    read = yaml.safe_load(text.split("---\n")[1])
    assert (read["license"], read["tags"], read["model-index"]) == (
        "mit",
        ["x", "moeba"],
        values["model-index"],
    )
    assert text_of(dense) == text


@pytest.mark.parametrize("marker", ["<!-- moeba:start -->\n", "<!-- moeba:end -->\n"])
def test_a_lost_marker_is_refused_and_nothing_is_lost(dense, marker):
    path = write_card(dense)
    damaged = path.read_text(encoding="utf-8").replace(marker, "")
    path.write_text(damaged, encoding="utf-8")
    with pytest.raises(ValueError, match="once each and in this order"):
        write_card(dense)
    assert path.read_text(encoding="utf-8") == damaged
    assert not list(dense.glob(".README*"))


def test_a_linked_card_is_replaced_and_not_written_through(dense, tmp_path):
    snapshot = tmp_path / "models--user--name" / "snapshots" / "abc"  # as in the cache of the Hub
    snapshot.parent.mkdir(parents=True)
    dense.rename(snapshot)
    blob = tmp_path / "models--user--name" / "blob"
    blob.write_text("# Cached\n", encoding="utf-8")
    (snapshot / "README.md").symlink_to(blob)
    assert "# Cached" in text_of(snapshot)
    assert blob.read_text(encoding="utf-8") == "# Cached\n"


def snippets(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_snippets_run(upcycled, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    save_tokenizer(upcycled)
    found = snippets(text_of(upcycled))
    assert len(found) == 4  # with Moeba, without it, Trainer, PEFT
    for snippet in found:
        ast.parse(snippet)
    ids = list(range(8))
    names = {"dataset": [{"input_ids": ids, "labels": ids}] * 2}
    exec(found[0].replace("user/name", str(upcycled)), names)  # it also generates
    assert isinstance(names["model"], MoebaForCausalLM) and len(names["tokenizer"]) == 265
    exec(found[2].replace('("output")', '("output", max_steps=1, use_cpu=True, report_to="none")'), names)
    assert names["trainer"].state.global_step == 1
    exec(found[3], names)
    assert type(names["model"]).__name__ == "PeftModelForCausalLM"


def test_without_its_code_a_folder_does_not_claim_to_load_alone(dense):
    assert "trust_remote_code" in text_of(dense)
    code = (dense / "router.py").read_bytes()
    (dense / "router.py").unlink()
    assert "trust_remote_code" not in text_of(dense)
    (dense / "router.py").write_bytes(code + b"import os\n")  # nor to run what is not Moeba's
    assert "trust_remote_code" not in text_of(dense)
    (dense / "router.py").write_bytes(code)
    assert "trust_remote_code" in text_of(dense)
    values = json.loads((dense / "tokenizer_config.json").read_text())
    write_json(
        dense, "tokenizer_config.json", {**values, "auto_map": {"AutoTokenizer": ["x/y--evil.Evil", None]}}
    )
    assert "trust_remote_code" not in text_of(dense)


def test_a_sparse_native_folder(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = dict(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4)).save_pretrained(
        tmp_path
    )
    text = text_of(tmp_path)
    assert "# Mixture-of-experts decoder (mixtral), " in text
    assert metadata(tmp_path)["tags"] == ["moe"]
    assert "import moeba" not in text and "AutoModelForCausalLM.from_pretrained(model_id)" in text


def test_the_records_of_a_real_conversion_are_understood(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "native")
    moeba.convert(tmp_path / "native", tmp_path / "ours")
    text = text_of(tmp_path / "ours")
    assert section(text, "Certificate")[0].startswith("**verified**")
    assert "### 1. convert (moeba " in text and "From `native` (model type `llama`)." in text
    assert str(tmp_path) not in text and "unnamed" not in text and "| unverified |" not in text
