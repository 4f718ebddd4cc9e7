"""PEFT's methods choose Moeba's modules by themselves, as they do for the model types that PEFT lists."""

from __future__ import annotations

import pytest
from support import random_ids, tiny_model

from moeba.library.peft_tables import fill_peft_tables

peft = pytest.importorskip("peft")

from peft.utils import constants  # noqa: E402

LATENT = dict(
    attention_type="latent", num_key_value_heads=4, kv_lora_rank=16, qk_rope_head_dim=4, q_lora_rank=12
)
MODELS = {
    "dense": ("dense", {}),
    "moe": ("moe", dict(mlp_layer_types=["sparse", "sparse"])),
    "latent": ("dense", LATENT),
    "sandwich": ("capped", {}),
}
TABLES = [table for table in vars(constants).values() if isinstance(table, dict) and "llama" in table]


@pytest.fixture(autouse=True)
def _as_just_imported():
    """PEFT as it is when nobody has asked for Moeba yet, whichever of the two was imported first."""
    for table in TABLES:
        table.pop("moeba", None)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "method, options",
    [("Lora", {}), ("IA3", {}), ("AdaLora", {"total_step": 10}), ("LNTuning", {}), ("LoHa", {})],
)
def test_targets_are_found(name, method, options):
    variant, changes = MODELS[name]
    base = tiny_model(variant, **changes)
    norms = {
        name
        for name, module in base.named_modules()
        if name.endswith("norm") and "self_attn" not in name and any(True for _ in module.parameters())
    }
    model = peft.get_peft_model(base, getattr(peft, f"{method}Config")(**options))
    targeted = set(model.targeted_module_names)
    if method == "LNTuning":
        assert targeted == norms
    else:
        names = {target.rsplit(".")[-1] for target in targeted}
        assert names & ({"q_b_proj", "kv_b_proj"} if name == "latent" else {"q_proj", "k_proj", "v_proj"})
    model(input_ids=random_ids(), labels=random_ids()).loss.backward()
    assert [p for p in model.parameters() if p.requires_grad and p.grad is not None]


def test_every_table_is_filled_once():
    fill_peft_tables("moeba")
    before = [table["moeba"] for table in TABLES]
    assert len(before) > 5 and all(before)
    TABLES[0]["moeba"] = ["o_proj"]
    fill_peft_tables("moeba")
    assert TABLES[0]["moeba"] == ["o_proj"], "what somebody set stays"
