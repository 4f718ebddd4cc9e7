"""Merging models whose tokens or rows of embeddings differ: whose each row is, the tokenizer, the gap, the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import native
import pytest
import torch
from native import load, read_all
from support import random_ids, randomise
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from moeba import MoebaConfig, MoebaForCausalLM, MoebaTokenizer, merge
from moeba.surgery.merging_parts.vocabulary_rows import TABLES
from moeba.surgery.running.sources import Source

TEXT = "def parse(self, args):\n    return [int(word) for word in args.split()]\n" * 40
SIZE = 300
# An untied head, a tied one, and one with biases.
FIELDS = {
    "llama": dict(
        hidden_size=32, intermediate_size=20, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
        attention_bias=False, mlp_bias=False, hidden_act="silu", tie_word_embeddings=False, head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    ),
    "gpt2": dict(n_layer=2, n_embd=24, n_head=3, n_inner=20, bos_token_id=0, eos_token_id=1, pad_token_id=2,
                 tie_word_embeddings=True),
    "phi": dict(tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2),
}  # fmt: skip
EXPERTS = [{"source_model": "code"}, {"source_model": "prose"}]
RECIPE = {"base_model": "base", "gate_mode": "random", "experts": EXPERTS}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = MoebaTokenizer.train([TEXT], vocab_size=SIZE)
    assert len(tokenizer) <= SIZE
    return tokenizer


def model(
    folder: Path, tokenizer, seed: int, added=(), rows: int | None = None, model_type="llama", **fields
):
    """A random model that differs from its siblings in all weights, with some tokens more, and rows for `rows`."""
    tokenizer.save_pretrained(folder)
    own = AutoTokenizer.from_pretrained(folder)
    own.add_tokens([AddedToken(token, special=token.startswith("<"), normalized=False) for token in added])
    size = rows or len(own)
    native.make(folder, model_type, seed=0, **{**FIELDS[model_type], "vocab_size": size, **fields})
    made = load(AutoModelForCausalLM, folder)
    randomise(made, seed)
    made.tie_weights()
    native.save(made, folder)
    own.save_pretrained(folder)
    return folder


def family(folder: Path, tokenizer, model_type="llama", base=(), code=("<x>", "<y>"), prose=("<z>", "<x>")):
    """Three models, each with the tokens that it was given."""
    for seed, (name, added) in enumerate({"base": base, "code": code, "prose": prose}.items(), start=1):
        model(folder / name, tokenizer, seed, added, model_type=model_type)
    return folder


def moeba_tables(folder: Path) -> dict[str, torch.Tensor]:
    source = Source(folder)
    return {name: source.tensors.read(name) for name in TABLES if name in source.tensors.tensors}


def merged_recipe(folder, **changes):
    """`RECIPE` with the paths of `folder`."""
    experts = [{**expert, "source_model": str(folder / expert["source_model"])} for expert in EXPERTS]
    return {**RECIPE, "base_model": str(folder / "base"), "experts": experts, **changes}


def test_strict_says_which_source_differs_by_how_much_and_what_else_there_is(tmp_path, tokenizer):
    family(tmp_path, tokenizer, prose=())
    size = len(tokenizer)
    with pytest.raises(ValueError) as caught:
        merge(merged_recipe(tmp_path), tmp_path / "out")
    message = str(caught.value)
    assert (
        f"code: {size + 2} rows (2 more), 2 tokens differ: '<x>' {size} (base_model base: absent)" in message
    )
    assert "prose" not in message and all(f"{word} (" in message for word in ("trim", "pad", "union"))
    padded = family(tmp_path / "padded", tokenizer, code=(), prose=())
    model(padded / "code", tokenizer, 2, rows=size + 20)
    with pytest.raises(ValueError, match=f"code: {size + 20} rows .20 more.; say vocab"):
        merge(merged_recipe(padded), padded / "out")
    with pytest.raises(ValueError, match="vocab='all': choose one of strict, trim, pad, union"):
        merge(merged_recipe(padded), padded / "out", vocab="all")
    with pytest.raises(ValueError, match="vocab='trim', but the recipe says vocab: pad"):
        merge(merged_recipe(padded, vocab="pad"), padded / "out", vocab="trim")


@pytest.mark.parametrize("model_type", FIELDS)
@pytest.mark.parametrize("others", ["base", "average", "prose"])
def test_union_takes_each_row_from_the_models_that_know_its_token(tmp_path, tokenizer, model_type, others):
    family(tmp_path, tokenizer, model_type)
    size = len(tokenizer)
    result = merge(merged_recipe(tmp_path, others=others), tmp_path / "moe", vocab="union", certificate=False)
    config = MoebaConfig.from_pretrained(tmp_path / "moe")
    assert config.vocab_size == size + 3
    written = AutoTokenizer.from_pretrained(tmp_path / "moe")
    ids = [written.convert_tokens_to_ids(token) for token in ("<x>", "<y>", "<z>")]
    assert ids == [size, size + 1, size + 2]
    assert written("a<y>b")["input_ids"][1] == size + 1
    assert written.decode([size], skip_special_tokens=True) == ""
    assert (written.bos_token_id, written.chat_template) == (tokenizer.bos_token_id, tokenizer.chat_template)
    merged = read_all(tmp_path / "moe")
    base, code, prose = (moeba_tables(tmp_path / name) for name in ("base", "code", "prose"))
    assert len(base) == {"llama": 2, "gpt2": 1, "phi": 3}[model_type]
    for name in base:
        x = (code[name][size].double() + prose[name][size + 1].double()) / 2  # both know it
        common = {
            "base": base[name],
            "average": (code[name][:size].double() + prose[name][:size].double()) / 2,
            "prose": prose[name][:size],
        }[others]
        new = [prose[name][size + 1] if others == "prose" else x, code[name][size + 1], prose[name][size]]
        assert (merged[name][:size] - common).abs().max() <= 1e-6
        assert (merged[name][size:] - torch.stack(new)).abs().max() <= 1e-6
        if others != "average":
            assert torch.equal(merged[name][:size], common)  # copied bit for bit
    note = next(note for note in result.plan.notes if note.startswith("vocab"))
    assert f"{size + 3} rows" in note and "given '<x>'; '<y>'; '<z>'" in note


def test_union_of_permuted_ids_computes_what_the_models_of_common_tokens_compute(tmp_path, tokenizer):
    """On the base model's tokens the logits are those of a strict merge of the models without the new ones."""
    family(tmp_path, tokenizer)
    size = len(tokenizer)
    cut = tmp_path / "cut"
    for name in ("base", "code", "prose"):
        whole = load(AutoModelForCausalLM, tmp_path / name)
        whole.resize_token_embeddings(size)
        native.save(whole, cut / name)
        tokenizer.save_pretrained(cut / name)
    # In one source the new tokens stand at other ids, the others of its rows with them.
    source = load(AutoModelForCausalLM, tmp_path / "code")
    path = tmp_path / "code" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.__getitem__)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(content))
    with torch.no_grad():
        for table in (source.get_input_embeddings().weight, source.get_output_embeddings().weight):
            table[[vocab[first], vocab[second]]] = table[[vocab[second], vocab[first]]].clone()
    native.save(source, tmp_path / "code")
    for others in ("base", "average"):
        merge(
            merged_recipe(tmp_path, vocab="union", others=others), tmp_path / f"u{others}", certificate=False
        )
        merge(merged_recipe(cut, others=others), tmp_path / f"s{others}", certificate=False)
        ids = random_ids(2, 20, size)
        with torch.no_grad():
            ours, theirs = (load(MoebaForCausalLM, tmp_path / f"{one}{others}")(ids).logits for one in "us")
        assert (ours[..., :size] - theirs).abs().max() <= 1e-5 * theirs.std()


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_union_goes_out_as_a_native_checkpoint_with_its_tokenizer(tmp_path, tokenizer, model_type):
    family(tmp_path, tokenizer, model_type)
    if model_type == "gpt2":
        with pytest.raises(ValueError, match="no native family"):
            merge(merged_recipe(tmp_path, vocab="union"), tmp_path / "out", export=True, dry_run=True)
        return
    merge(merged_recipe(tmp_path, vocab="union"), tmp_path / "out", export=True, certificate=False)
    merge(merged_recipe(tmp_path, vocab="union"), tmp_path / "moe", certificate=False)
    stock = load(AutoModelForCausalLM, tmp_path / "out")
    assert type(stock).__name__ == "MixtralForCausalLM"
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([written("def <x> parse<z>(self)<y>")["input_ids"]])
    assert {len(tokenizer), len(tokenizer) + 1, len(tokenizer) + 2} <= set(ids[0].tolist())
    with torch.no_grad():
        ours = load(MoebaForCausalLM, tmp_path / "moe")(ids).logits
        assert torch.allclose(stock(ids).logits, ours, atol=1e-4)
    generated = stock.generate(ids, max_new_tokens=3, do_sample=False)
    written.decode(generated[0])


def test_pad_keeps_ids_and_fills_up(tmp_path, tokenizer):
    size = len(tokenizer)
    # The base's table is padded; a source has a token where the base has padding; another one is not padded.
    family(tmp_path, tokenizer, code=("<x>",), prose=())
    model(tmp_path / "base", tokenizer, 1, rows=size + 7)
    model(tmp_path / "code", tokenizer, 2, added=("<x>",), rows=size + 4)
    recipe = merged_recipe(tmp_path, vocab="pad", pad_to_multiple_of=64)
    result = merge(recipe, tmp_path / "moe", certificate=False)
    merged, base, code = (
        read_all(tmp_path / "moe"), *(moeba_tables(tmp_path / name) for name in ("base", "code"))
    )  # fmt: skip
    rows = -(-(size + 7) // 64) * 64
    for name in base:
        assert len(merged[name]) == rows
        assert torch.equal(merged[name][:size], base[name][:size])
        assert torch.equal(merged[name][size], code[name][size])
        assert torch.equal(merged[name][size + 1 : size + 7], base[name][size + 1 :])
        mean = merged[name][: size + 7].double().mean(0)
        assert (merged[name][size + 7 :] - mean).abs().max() < 1e-6
    ids = random_ids(2, 20, size)
    with torch.no_grad():
        logits = load(MoebaForCausalLM, tmp_path / "moe")(ids).logits
    assert (logits.argmax(-1) < size + 7).all()  # a filling row is never the likeliest
    assert AutoTokenizer.from_pretrained(tmp_path / "moe").convert_tokens_to_ids("<x>") == size
    assert any("the tokenizer is that of code" in note for note in result.plan.notes)
    # Equal vocabularies can be filled up as well.
    merge({**merged_recipe(tmp_path, pad_to_multiple_of=64), "experts": [{"source_model": str(tmp_path / "base")}] * 2},
          tmp_path / "filled", certificate=False)  # fmt: skip
    assert len(read_all(tmp_path / "filled")[TABLES[0]]) == rows


def test_trim_keeps_what_all_share(tmp_path, tokenizer):
    size = len(tokenizer)
    family(tmp_path, tokenizer, base=("<pad>", "<z>"), code=(), prose=("<z>",))
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "pad_token_id": size}))
    (tmp_path / "base" / "generation_config.json").write_text(
        json.dumps(
            {"pad_token_id": size, "eos_token_id": [1, size + 1], "bos_token_id": 0, "do_sample": True}
        )
    )
    merge(merged_recipe(tmp_path, vocab="trim"), tmp_path / "moe", certificate=False)
    merged, base = read_all(tmp_path / "moe"), moeba_tables(tmp_path / "base")
    for name in base:
        assert torch.equal(merged[name], base[name][:size])
    config = MoebaConfig.from_pretrained(tmp_path / "moe")
    assert (config.vocab_size, config.pad_token_id) == (size, 2)  # that of the model whose tokenizer is kept
    settings = json.loads((tmp_path / "moe" / "generation_config.json").read_text())
    assert "pad_token_id" not in settings and "eos_token_id" not in settings and settings["do_sample"] is True
    written = AutoTokenizer.from_pretrained(tmp_path / "moe")
    assert len(written) == size and max(written("<z>")["input_ids"]) < size


def test_the_gap_is_measured_on_the_tokens_that_both_know(tmp_path, tokenizer):
    family(tmp_path, tokenizer, code=("<x>", "parse"), prose=("<z>",))
    (tmp_path / "code.txt").write_text(TEXT.replace("args", "<x>"))
    recipe = merged_recipe(tmp_path, gate_mode="calibration", vocab="union")
    recipe["experts"] = [
        {**expert, "calibration": str(tmp_path / "code.txt")} for expert in recipe["experts"]
    ]
    recipe["experts"][1]["negative_prompts"] = ["return"]
    result = merge(recipe, tmp_path / "moe")
    merged = load(MoebaForCausalLM, tmp_path / "moe")
    size = len(tokenizer)
    to_merged = {"code": [*range(size + 2)], "prose": [*range(size), size + 2]}
    for item in result.gap["per_source"]:
        name = item["name"]
        own = AutoTokenizer.from_pretrained(tmp_path / name)
        ids = own((tmp_path / "code.txt").read_text(), add_special_tokens=False)["input_ids"]
        assert (size in ids) == (name == "code")  # the source reads its own tokens
        ids = torch.tensor(ids)[: len(ids) // 64 * 64].view(-1, 64)
        places = torch.tensor(to_merged[name])
        assert item["shared_tokens"] == len(places)
        with torch.no_grad():
            theirs = load(AutoModelForCausalLM, tmp_path / name)(ids).logits[:, :-1].log_softmax(-1)
            ours = merged(places[ids]).logits[:, :-1, places].log_softmax(-1)
        for scores, key in ((theirs, "source_nll"), (ours, "target_nll")):
            nll = torch.nn.functional.nll_loss(scores.flatten(0, 1), ids[:, 1:].flatten())
            assert abs(nll.item() - item[key]) < 1e-3
    record = json.loads((tmp_path / "moe" / "surgery.json").read_text())
    assert record["gap"] == result.gap and record["recipe"]["vocabulary"]["added"] == ["<x>", "parse", "<z>"]
    assert str(tmp_path) not in json.dumps(record["recipe"]["vocabulary"])


def test_without_tokenizers_rows_are_what_ids_say(tmp_path, tokenizer):
    family(tmp_path, tokenizer, code=("<x>",), prose=())
    for name in ("base", "code", "prose"):
        for file in (tmp_path / name).iterdir():
            if "token" in file.name or file.suffix == ".jinja":
                file.unlink()
    size = len(tokenizer)
    for mode, rows in (("trim", size), ("pad", size + 1)):
        result = merge(merged_recipe(tmp_path, vocab=mode), tmp_path / mode)
        merged, base, code = (
            read_all(tmp_path / mode),
            *(moeba_tables(tmp_path / n) for n in ("base", "code")),
        )
        for name in base:
            assert torch.equal(merged[name], torch.cat([base[name], code[name][size:]])[:rows])
        assert [item["shared_tokens"] for item in result.gap["per_source"]] == [rows, size]
    with pytest.raises(
        ValueError, match="base_model base has no tokenizer that loads: say vocab: pad or trim"
    ):
        merge(merged_recipe(tmp_path, vocab="union"), tmp_path / "out")


def test_what_no_mode_can_put_together_is_refused_with_the_mode_that_can(tmp_path, tokenizer):
    family(tmp_path, tokenizer)
    size = len(tokenizer)
    with pytest.raises(
        ValueError, match=rf"prose has '<z>' at {size}, where another has '<x>'.*say vocab: union"
    ):
        merge(merged_recipe(tmp_path, vocab="pad"), tmp_path / "out")
    other = MoebaTokenizer.train(
        ["Once upon a time there was a quiet evening by the sea. " * 40], vocab_size=SIZE
    )
    model(tmp_path / "code", other, 2)
    with pytest.raises(ValueError, match="code has [0-9]+ tokens that are no additions"):
        merge(merged_recipe(tmp_path, vocab="union"), tmp_path / "out")
    with pytest.raises(ValueError, match="all models mean the same by the first [0-9]+ ids only"):
        merge(merged_recipe(tmp_path, vocab="trim"), tmp_path / "out")
    model(tmp_path / "code", tokenizer, 2, added=("<x>",))
    content = json.loads((tmp_path / "code" / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][::-1]
    (tmp_path / "code" / "tokenizer.json").write_text(json.dumps(content))
    for mode in ("trim", "union"):
        with pytest.raises(ValueError, match="code: the same tokens, but a text is cut into others"):
            merge(merged_recipe(tmp_path, vocab=mode), tmp_path / "out")
    assert not (tmp_path / "out").exists()
