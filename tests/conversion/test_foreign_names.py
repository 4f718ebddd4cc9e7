"""A prefix that a wrapper put before all names is one thing to say; and lists in errors end after ten items."""

from __future__ import annotations

import json

import native
import pytest
from safetensors.torch import load_file, save_file

from moeba import convert, export
from moeba.conversion import foreign_names
from moeba.conversion.families import FAMILIES
from moeba.conversion.json_files import listing

WEIGHTS = "model.safetensors"
CASES = {
    "_orig_mod.": ("torch.compile", None),
    "module.": ("save model.module", None),
    "base_model.model.": ("merge_and_unload", None),
    "model.": ("without it", None),  # as Lightning has it
    "module._orig_mod.": ("torch.compile", None),
    "model.language_model.": ("save its text model", "model."),
    "language_model.model.": ("save its text model", "model."),
    "text_model.": ("save its text model", ""),
    "anything.at.all.": ("write the file again", None),
}


def rewrite(folder, change):
    """Give the tensors of a folder other names."""
    tensors = load_file(folder / WEIGHTS)
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def refusal(call) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and "missing model" not in message
    return message


@pytest.mark.parametrize("prefix", CASES)
def test_a_common_prefix_is_named_and_not_every_tensor(tmp_path, prefix):
    remedy, replaced = CASES[prefix]

    def renamed(name: str) -> str:
        if replaced and not name.startswith(replaced):
            return name  # the head of such a model stands outside
        return prefix + name.removeprefix(replaced or "")

    native.make(tmp_path / "source", "llama", num_hidden_layers=3, tie_word_embeddings=False)
    count = len(load_file(tmp_path / "source" / WEIGHTS))
    rewrite(tmp_path / "source", renamed)
    message = refusal(lambda: convert(tmp_path / "source", tmp_path / "out"))
    assert remedy in message and f"of {count} tensors" in message
    assert all(repr(word) in message for word in ("module.", "_orig_mod.") if word in prefix)
    named = {"module._orig_mod.": "_orig_mod.", "language_model.model.": "language_model."}.get(
        prefix, prefix
    )
    assert repr(named) in message
    assert message.count("model.layers.0.") <= 1
    assert not (tmp_path / "out").exists()


def test_a_word_inside_the_names_is_named(tmp_path):
    native.make(tmp_path / "source", "gpt_neox", num_hidden_layers=2)
    rewrite(tmp_path / "source", lambda name: name.replace(".layers.1.", ".layers.1._fsdp_wrapped_module."))
    with pytest.raises(ValueError, match="missing gpt_neox.layers.1"):
        convert(
            tmp_path / "source", tmp_path / "out"
        )  # half of the names are as they should be: the others are listed
    rewrite(tmp_path / "source", lambda name: name.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."))
    message = refusal(lambda: convert(tmp_path / "source", tmp_path / "out"))
    assert "'_fsdp_wrapped_module.'" in message and "FSDP" in message and "'module.'" not in message


def test_unmerged_adapters_are_named(tmp_path):
    peft = pytest.importorskip("peft")
    native.make(tmp_path / "source", "llama", num_hidden_layers=2)
    model = native.build(native.draw("llama", 0))
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    model.config.save_pretrained(tmp_path / "source")
    state = {name: tensor.detach().clone() for name, tensor in wrapped.state_dict().items()}
    save_file(state, tmp_path / "source" / WEIGHTS, {"format": "pt"})
    message = refusal(lambda: convert(tmp_path / "source", tmp_path / "out"))
    assert "merge_and_unload" in message and "'base_layer.'" in message


def test_a_moeba_folder_too(tmp_path):
    native.make(tmp_path / "source", "qwen3_moe")
    convert(tmp_path / "source", tmp_path / "moeba", certificate=False)
    rewrite(tmp_path / "moeba", lambda name: f"module.{name}")
    message = refusal(lambda: export(tmp_path / "moeba", tmp_path / "out"))
    assert "does not fit its config" in message and "DataParallel" in message


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "mixtral"])
def test_what_is_merely_missing_is_listed_and_ends_after_ten(tmp_path, model_type):
    native.make(tmp_path / "source", model_type)
    tensors = load_file(tmp_path / "source" / WEIGHTS)
    names = sorted(tensors)[:12]
    save_file({name: tensor for name, tensor in tensors.items() if name not in names},
              tmp_path / "source" / WEIGHTS, {"format": "pt"})  # fmt: skip
    with pytest.raises(ValueError, match="; … and [0-9]+ more") as caught:
        convert(tmp_path / "source", tmp_path / "out")
    assert str(caught.value).count("missing ") == 10


def test_no_list_in_an_error_is_longer_than_ten(tmp_path):
    assert listing([*"abcdefghij"]) == "a; b; c; d; e; f; g; h; i; j"
    assert listing([*"abcdefghijkl"]).endswith("j; … and 2 more")
    # A model that many fields keep from a family; the fields of a source that are not supported; the families.
    native.make(tmp_path / "source", "qwen3_moe")
    convert(tmp_path / "source", tmp_path / "moeba", certificate=False)
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config["model_type"] = "no_such_model"
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        convert(tmp_path / "source", tmp_path / "out")
    assert sum(name in str(caught.value) for name in FAMILIES) < 25
    with pytest.raises(ValueError, match="cannot hold this model") as caught:
        export(tmp_path / "moeba", tmp_path / "out", to="bloom")
    assert str(caught.value).count("(there: ") == 10 and "more" in str(caught.value)


def test_names_that_have_nothing_in_common_are_not_explained_away():
    expected = [f"model.layers.{layer}.up.weight" for layer in range(4)]
    assert foreign_names.describe_foreign_names([], expected) is None
    assert foreign_names.describe_foreign_names(["x.y", "z"], expected) is None
    assert foreign_names.describe_foreign_names(expected, []) is None
    assert foreign_names.describe_foreign_names(expected[:3], expected) is None
    bare = [name.removeprefix("model.") for name in expected]
    assert foreign_names.describe_foreign_names(bare[:3], expected, "model.") is None
    assert "'a.'" in str(
        foreign_names.describe_foreign_names([f"a.{name}" for name in bare[:2]], expected, "model.")
    )
