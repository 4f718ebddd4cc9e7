"""Facts come from files: what no file says is absent, and what files say of other weights does not count."""

import json
import pickle
from pathlib import Path

import pytest
from card_folders import EXPERTS, SIZES, certificate, provenance, save_model, source, write_json
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from moeba import MoebaConfig, MoebaForSequenceClassification
from moeba.hub_card import gather_facts


def test_an_empty_folder_has_no_facts(tmp_path):
    facts = gather_facts(tmp_path)
    assert (facts.model, facts.weights, facts.size, facts.tokenizer) == (None, None, None, None)
    assert (facts.steps, facts.certificate, facts.training, facts.router) == ((), None, None, None)


def test_a_missing_folder_and_damaged_weights_are_refused(dense):
    with pytest.raises(ValueError, match="is no folder"):
        gather_facts(dense / "nothing")
    weights = dense / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        gather_facts(dense)


def test_sizes_are_those_of_the_built_model(tmp_path):
    config = save_model(tmp_path, **EXPERTS)
    facts = gather_facts(tmp_path)
    assert facts.size.total == config.num_params() == facts.weights.parameters
    assert facts.size.active == config.num_params(active_only=True) < facts.size.total
    assert facts.size.memory["float32"] == 4 * facts.size.total
    assert facts.size.cache["bfloat16 or float16"] == 1000 * config.kv_cache_bytes_per_token()
    assert facts.weights.files == {"model.safetensors": (tmp_path / "model.safetensors").stat().st_size}
    assert (facts.model.experts, facts.model.experts_per_token) == (4, 2)


def test_a_sliding_layer_caches_no_more_than_its_window(tmp_path):
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    save_model(tmp_path, sliding_window=16, layer_types=kinds)
    per_token = 2 * 2 * 8 * 4  # keys and values, heads, width, bytes
    assert gather_facts(tmp_path).size.cache["float32"] == per_token * (1000 + 16 + 16)


def test_another_head_is_counted_in_the_weight_files(tmp_path):
    config = MoebaConfig(**SIZES, num_experts=4, router_selection_bias=True)
    model = MoebaForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    size = gather_facts(tmp_path).size
    assert size.counted_in == "weights"
    assert size.total == sum(p.numel() for p in model.parameters())
    idle = config.num_params() - config.num_params(active_only=True)
    assert size.total - size.active == idle


def test_layers_may_differ(tmp_path):
    config = MoebaConfig(**SIZES, num_experts=4, per_layer_config={1: {"num_experts": 3}})
    config.save_pretrained(tmp_path)
    assert gather_facts(tmp_path).model.experts == 4


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_native_model_of_a_known_family_is_known_as_well(tmp_path, kind):
    sizes = dict(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    if kind == "dense":
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2))
    else:
        model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4))
    model.save_pretrained(tmp_path)
    facts = gather_facts(tmp_path)
    assert not facts.model.is_moeba
    assert facts.size.total == model.num_parameters()
    assert (facts.size.active < facts.size.total) == facts.model.is_sparse == (kind == "sparse")


def test_of_an_unknown_native_config_only_named_fields_are_facts(tmp_path):
    write_json(tmp_path, "config.json", {"model_type": "alien", "n_layer": 7, "num_experts": "many"})
    facts = gather_facts(tmp_path)
    assert (facts.model.model_type, facts.model.layers) == ("alien", 7)
    assert facts.model.experts is None and facts.model.hidden_size is None and facts.size is None


def test_an_invalid_moeba_config_is_refused(tmp_path):
    write_json(tmp_path, "config.json", {"model_type": "moeba", "hidden_size": -3})
    with pytest.raises((ValueError, StrictDataclassError), match="hidden_size"):
        gather_facts(tmp_path)


def test_the_tokenizer_is_read_without_loading_it(dense):
    tokenizer = gather_facts(dense).tokenizer
    backend = json.loads((dense / "tokenizer.json").read_text())
    added = {token["content"] for token in backend["added_tokens"]}
    assert tokenizer.tokens == len(added | set(backend["model"]["vocab"]))
    assert tokenizer.special_tokens["eos_token"] == "<|eos|>"
    assert tokenizer.has_chat_template
    assert tokenizer.model_max_length is None


def test_a_unigram_vocabulary_and_an_old_style_special_token(tmp_path):
    pairs = [["a", -1.0], ["b", -2.0]]
    write_json(tmp_path, "tokenizer.json", {"model": {"vocab": pairs}, "added_tokens": [{"content": "<s>"}]})
    write_json(
        tmp_path, "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "model_max_length": 10**30}
    )
    tokenizer = gather_facts(tmp_path).tokenizer
    assert (tokenizer.tokens, tokenizer.special_tokens) == (3, {"bos_token": "<s>"})
    assert tokenizer.model_max_length is None and not tokenizer.has_chat_template


def test_history_comes_oldest_first_and_paths_stay_private(upcycled):
    first = provenance("convert", source=source(repo_id="user/base", revision="abc"), recipe={})
    write_json(upcycled, "moeba_provenance.json", provenance(history=[first]))
    old, new = gather_facts(upcycled).steps
    assert (old.operation, old.sources[0].name, old.sources[0].revision) == ("convert", "user/base", "abc")
    assert (new.operation, new.sources[0].name) == ("upcycle", "dense-model")
    assert new.versions == {"moeba": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0"}


def test_records_of_another_shape_are_absent_facts(upcycled):
    strange = {"operation": 3, "source": "x", "recipe": [1], "notes": "n", "history": {"a": 1}}
    write_json(upcycled, "moeba_provenance.json", strange)
    write_json(
        upcycled, "parity.json", {"verdict": None, "checks": [3, {}], "negative_controls": "x", "keys": 1}
    )
    facts = gather_facts(upcycled)
    assert len(facts.steps) == 1 and facts.steps[0].sources == () and facts.steps[0].recipe == {}
    assert facts.certificate.outcome == "failed"
    assert [check.name for check in facts.certificate.checks] == ["unnamed check"]


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "verified"),
        ({"verdict": "failed"}, "failed"),
        ({"verdict": "void"}, "void"),
        ({"negative_controls": [{"fault": "f", "caught": False, "max_abs_diff": 0.0}]}, "void"),
        ({"negative_controls": [{"fault": "f"}]}, "void"),
        ({"lossy": True}, "gap"),
        ({"verdict": "something new"}, "failed"),
    ],
)
def test_what_a_certificate_is_worth(upcycled, changes, outcome):
    write_json(upcycled, "parity.json", certificate(upcycled, **changes))
    assert gather_facts(upcycled).certificate.outcome == outcome


def test_a_certificate_of_other_weights_counts_for_nothing(upcycled):
    write_json(upcycled, "parity.json", certificate(None))
    assert gather_facts(upcycled).certificate.outcome == "other weights"


def test_a_certificate_without_hashes_is_not_tied_to_the_weights(upcycled):
    write_json(upcycled, "parity.json", certificate(upcycled, target={}))
    facts = gather_facts(upcycled).certificate
    assert facts.is_of_these_weights is None and facts.outcome == "verified"


def train(folder: Path, steps: int = 5) -> None:
    write_json(folder, "trainer_state.json", {"global_step": steps, "log_history": []})


def test_a_router_is_untrained_until_a_trainer_took_a_step(upcycled):
    assert gather_facts(upcycled).router == "untrained"
    train(upcycled, steps=0)
    assert gather_facts(upcycled).router == "untrained"
    train(upcycled)
    assert gather_facts(upcycled).router == "trained"


def test_training_files_of_the_parent_do_not_train_the_router(upcycled):
    write_json(upcycled, "parity.json", certificate(upcycled))
    train(upcycled)
    facts = gather_facts(upcycled)
    assert facts.router == "untrained" and facts.training.is_of_source


def test_arguments_alone_leave_the_router_unknown(upcycled):
    (upcycled / "training_args.bin").write_bytes(pickle.dumps(Exploding()))
    assert gather_facts(upcycled).router == "unknown"


class Exploding:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('a pickle was opened')",))


def test_after_a_later_operation_the_router_is_unknown_unless_hashes_tell(upcycled):
    made = provenance("upcycle")
    write_json(upcycled, "moeba_provenance.json", provenance("export", history=[made]))
    assert gather_facts(upcycled).router == "unknown"
    made["target"] = {"files": {"model.safetensors": "ab" * 32}}  # what the export then read
    write_json(upcycled, "moeba_provenance.json", provenance("export", history=[made]))
    assert gather_facts(upcycled).router == "untrained"


def test_a_model_without_routers_has_no_router_state(dense):
    write_json(dense, "moeba_provenance.json", provenance("densify", history=[provenance()]))
    assert gather_facts(dense).router is None


def test_training_facts(dense):
    log = [
        {"loss": 3.0, "step": 1},
        {"eval_loss": 2.5, "eval_runtime": 9.0, "step": 2},
        {"loss": 2.0, "step": 3},
    ]
    state = {"global_step": 3, "epoch": 0.5, "num_input_tokens_seen": 0, "log_history": log,
             "best_model_checkpoint": "/home/somebody/secret"}  # fmt: skip
    write_json(dense, "trainer_state.json", state)
    write_json(dense, "training_args.json", {"learning_rate": 1e-4, "output_dir": "/home/somebody/secret"})
    training = gather_facts(dense).training
    assert (training.steps, training.epochs, training.tokens, training.train_loss) == (3, 0.5, None, 2.0)
    assert training.evaluation == {"eval_loss": 2.5}
    assert training.arguments == {"learning_rate": 1e-4}
