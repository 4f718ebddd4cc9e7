"""Random native checkpoints: a valid config of each family, its stock model with every tensor random, and its files."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import torch
from support import randomise
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.families import FAMILIES

DENSE = [name for name, family in FAMILIES.items() if family.kind == "dense"]
SPARSE = [name for name, family in FAMILIES.items() if family.kind == "moe"]
LENGTH = 40  # tokens: past every window and original context drawn here


def rope(rng: random.Random, head_dim: int, kinds: tuple[str, ...] = ()) -> dict[str, Any]:
    """Rope settings of a random type, with an original context that `LENGTH` passes."""
    theta = rng.choice([10000.0, 500.0, 1e6])
    kind = rng.choice(kinds or ("default", "linear", "dynamic", "yarn", "longrope", "llama3"))
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    if kind != "default":
        found["factor"] = rng.choice([2.0, 4.0])
    if kind in ("yarn", "longrope", "llama3"):
        found["original_max_position_embeddings"] = 16
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            found[name] = [rng.uniform(1, 4) for _ in range(head_dim // 2)]
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return found


def windows(rng: random.Random, layers: int) -> dict[str, Any]:
    """Qwen's ways to say which layers slide."""
    choice = rng.choice(["off", "stale", "from", "listed", "never"])
    found: dict[str, Any] = {"use_sliding_window": choice != "off", "sliding_window": rng.choice([1, 3, 9])}
    if choice == "stale":
        found["sliding_window"] = None
    elif choice == "from":
        found["max_window_layers"] = rng.randrange(layers)
    elif choice == "never":
        found["max_window_layers"] = layers + 1
    elif choice == "listed":
        kinds = ["full_attention", "sliding_attention"]
        found["layer_types"] = [rng.choice(kinds) for _ in range(layers)]
    return found


def llama_like(rng: random.Random, layers: int, free_width: bool = True) -> dict[str, Any]:
    """Fields that all but GPT-2 have."""
    kv_heads, head_dim = rng.choice([1, 2, 3]), rng.choice([4, 8, 16])
    heads = kv_heads * rng.choice([1, 2, 4])
    width = rng.choice([4, 6, 10]) if free_width else head_dim
    fields = dict(
        vocab_size=rng.choice([67, 90]),
        hidden_size=heads * width,
        intermediate_size=rng.choice([24, 37]),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_act=rng.choice(["silu", "gelu", "gelu_pytorch_tanh", "relu"]),
        max_position_embeddings=rng.choice([32, 64]),
        rms_norm_eps=rng.choice([1e-6, 1e-5, 1e-3]),
        tie_word_embeddings=rng.random() < 0.5,
        rope_parameters=rope(rng, head_dim),
        attention_dropout=rng.choice([0.0, 0.1]),
    )
    return {**fields, "head_dim": head_dim} if free_width else fields


def experts(rng: random.Random, count_name: str) -> dict[str, Any]:
    """A number of experts that is mostly no power of two, and all, one or some of them a token."""
    count = rng.choice([1, 3, 12, 13, 16])
    per_token = rng.choice([1, count, min(3, count)])
    return {
        count_name: count,
        "num_experts_per_tok": per_token,
        "router_aux_loss_coef": rng.choice([0.0, 0.02]),
    }


def draw(model_type: str, seed: int) -> PreTrainedConfig:
    """A valid stock config of the family, the same for the same seed."""
    rng = random.Random(f"{model_type} {seed}")
    layers = rng.choice([1, 2, 3])
    config_class = CONFIG_MAPPING[model_type]
    if model_type == "gpt2":
        heads = rng.choice([1, 2, 3])
        return config_class(
            vocab_size=rng.choice([67, 90]),
            n_embd=heads * rng.choice([4, 5, 16]),
            n_layer=layers,
            n_head=heads,
            n_positions=64,
            n_inner=rng.choice([None, 37, 64]),
            activation_function=rng.choice(["gelu_new", "gelu", "relu", "silu"]),
            layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
            scale_attn_weights=rng.random() < 0.6,
            tie_word_embeddings=rng.random() < 0.7,
        )
    fields = llama_like(rng, layers, free_width=model_type != "qwen2")
    if model_type == "llama":
        fields |= {"attention_bias": rng.random() < 0.5, "mlp_bias": rng.random() < 0.5}
    if model_type in ("qwen2", "qwen3"):
        fields |= windows(rng, layers)
    if model_type in ("qwen3", "qwen3_moe"):
        fields["attention_bias"] = rng.random() < 0.5
    if model_type == "mixtral":
        fields |= experts(rng, "num_local_experts") | {"sliding_window": rng.choice([None, 1, 5])}
    if model_type == "qwen3_moe":
        fields |= experts(rng, "num_experts") | {"moe_intermediate_size": rng.choice([16, 21])}
        fields |= {"use_sliding_window": rng.random() < 0.5, "sliding_window": rng.choice([None, 1, 5])}
        fields |= {"norm_topk_prob": rng.random() < 0.5, "decoder_sparse_step": rng.choice([1, 1, 2])}
        fields["mlp_only_layers"] = rng.choice([None, [], [0], [layers - 1]])
    return config_class(**fields)


def build(config: PreTrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The stock model of a config, every parameter and buffer random."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.tie_weights()
    model = model.to(dtype).eval()
    model.config.dtype = dtype
    return model


def save(model: PreTrainedModel, folder: Path, shards: bool = False) -> Path:
    """As stock transformers writes it, in one file or many."""
    model.save_pretrained(folder, max_shard_size="4KB" if shards else "5GB")
    return folder


def make(folder: Path, model_type: str, seed: int = 0, **overrides: Any) -> Path:
    """A native checkpoint of the family's draw, with some fields set."""
    config = draw(model_type, seed)
    return save(build(CONFIG_MAPPING[model_type](**{**plain(config), **overrides})), folder)


def plain(config: PreTrainedConfig) -> dict[str, Any]:
    """A config's fields, to build another one from."""
    values = config.to_dict()
    for name in ("model_type", "transformers_version", "architectures", "dtype"):
        values.pop(name, None)
    return values


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder by its name on disk."""
    opened = Checkpoint(folder)
    return {name: opened.read(name) for name in opened.tensors}


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Assert the same names, shapes, dtypes and bytes."""
    assert sorted(first) == sorted(second)
    for name, a in first.items():
        b = second[name]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)), name


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(model_class: Any, folder: Path, **kwargs: Any) -> PreTrainedModel:
    """A model whose tensors were all in the files, and no other ones."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    wrong = {
        name: info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[name]
    }
    assert not wrong, wrong
    if getattr(model.config, "num_experts", 0):
        model.set_experts_implementation("eager")
    return model.eval()
