"""litgpt's own model on the same weights, where litgpt is installed and knows the architecture."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel

from .layer import STEPS, random_ids
from .timing import LOOSE, Call
from .whole import CONTEXT

FAMILIES = ("mixtral", "qwen3_moe")


def available() -> bool:
    return find_spec("litgpt") is not None


class LitgptPeer:
    """Its calls by work; the model is built once a dtype. Experts, embeddings and head share the original's memory."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = build(model)
        self.tolerance = None if model.dtype == torch.float32 else LOOSE

    def __call__(self, model: PreTrainedModel, work: str) -> dict[str, Call]:
        kind, size = work.split(" ")
        makers = {"decode": self.decode, "prefill": self.prefill, "train": self.train}
        return {"litgpt": makers[kind](model, int(size))} if kind in makers else {}

    def decode(self, model: PreTrainedModel, batch: int) -> Call:
        ids = random_ids(model, batch, CONTEXT + STEPS)
        positions = torch.arange(CONTEXT + STEPS, device=ids.device)

        def fill() -> None:
            self.cached(batch, CONTEXT + STEPS)
            with torch.no_grad():
                self.model(ids[:, :CONTEXT], positions[:CONTEXT], CONTEXT)

        def run() -> list[torch.Tensor]:
            with torch.no_grad():
                return [
                    self.model(ids[:, i : i + 1], positions[i : i + 1], i + 1)
                    for i in range(CONTEXT, CONTEXT + STEPS)
                ]

        return Call(fill, run, list, self.tolerance)

    def prefill(self, model: PreTrainedModel, length: int) -> Call:
        """It has logits of every token; the last ones are compared."""
        ids = random_ids(model, 1, length)
        positions = torch.arange(length, device=ids.device)

        def run() -> torch.Tensor:
            with torch.no_grad():
                return self.model(ids, positions, length)[:, -1:]

        return Call(lambda: self.cached(1, length), run, lambda logits: [logits], self.tolerance)

    def train(self, model: PreTrainedModel, tokens: int) -> Call:
        ids = random_ids(model, 2, tokens // 2)

        def clear() -> None:
            self.model.clear_kv_cache()
            self.model.max_seq_length = tokens // 2
            self.model.train().zero_grad(set_to_none=True)

        def run() -> torch.Tensor:
            logits = self.model(ids)[:, :-1].flatten(0, 1).float()
            loss = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
            loss.backward()
            return loss.detach()

        def collect(loss: torch.Tensor) -> list[torch.Tensor]:
            first, *_, last = (block.mlp.experts for block in self.model.transformer.h)
            ends = [self.model.transformer.wte.weight.grad]
            for experts in (first, last):
                gate_up = [torch.cat([gradient(e.fc_1), gradient(e.fc_2)]) for e in experts]
                ends += [torch.stack(gate_up), torch.stack([gradient(e.proj) for e in experts])]
            return [loss, *ends, self.model.lm_head.weight.grad]

        return Call(clear, run, collect, self.tolerance)

    def cached(self, batch: int, length: int) -> None:
        self.model.eval().clear_kv_cache()
        self.model.max_seq_length = length
        weight = self.model.lm_head.weight
        self.model.set_kv_cache(batch, length, device=weight.device, dtype=weight.dtype)


def gradient(linear: nn.Linear) -> torch.Tensor:
    return torch.zeros_like(linear.weight) if linear.weight.grad is None else linear.weight.grad


def build(model: PreTrainedModel) -> nn.Module:
    from litgpt import GPT, Config

    ours = model.config
    mixtral = ours.model_type == "mixtral"
    config = Config(
        block_size=ours.max_position_embeddings, vocab_size=ours.vocab_size, padded_vocab_size=ours.vocab_size,
        n_layer=ours.num_hidden_layers, n_head=ours.num_attention_heads, n_embd=ours.hidden_size,
        n_query_groups=ours.num_key_value_heads, head_size=ours.head_dim, rotary_percentage=1.0,
        parallel_residual=False, bias=False, norm_class_name="RMSNorm", norm_eps=ours.rms_norm_eps,
        rope_base=ours.rope_parameters["rope_theta"], norm_qk=not mixtral, mlp_class_name="LLaMAMoE",
        intermediate_size=ours.intermediate_size,
        moe_intermediate_size=ours.intermediate_size if mixtral else ours.moe_intermediate_size,
        n_expert=ours.num_local_experts if mixtral else ours.num_experts,
        n_expert_per_token=ours.num_experts_per_tok,
    )  # fmt: skip
    with torch.device("meta"):
        theirs = GPT(config)
    theirs.load_state_dict(mapped(model), assign=True)
    for parameter in theirs.parameters():
        parameter.requires_grad_()
    theirs.cos, theirs.sin = theirs.rope_cache(device=model.device)
    return theirs.eval()


def mapped(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """litgpt's names; experts are views of the fused tensors."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    found = {
        "transformer.wte.weight": state["model.embed_tokens.weight"],
        "transformer.ln_f.weight": state["model.norm.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    for i in range(model.config.num_hidden_layers):
        theirs, ours = f"transformer.h.{i}", f"model.layers.{i}"
        found[f"{theirs}.norm_1.weight"] = state[f"{ours}.input_layernorm.weight"]
        found[f"{theirs}.norm_2.weight"] = state[f"{ours}.post_attention_layernorm.weight"]
        found[f"{theirs}.attn.qkv.weight"] = torch.cat(
            [state[f"{ours}.self_attn.{part}_proj.weight"] for part in "qkv"]
        )
        found[f"{theirs}.attn.proj.weight"] = state[f"{ours}.self_attn.o_proj.weight"]
        for part in "qk":
            if (norm := f"{ours}.self_attn.{part}_norm.weight") in state:
                found[f"{theirs}.attn.norm_{part}.weight"] = state[norm]
        found[f"{theirs}.mlp.gate.weight"] = state[f"{ours}.mlp.gate.weight"]
        gate_up, down = (state[f"{ours}.mlp.experts.{part}_proj"] for part in ("gate_up", "down"))
        for expert, (inner, outer) in enumerate(zip(gate_up, down, strict=True)):
            name = f"{theirs}.mlp.experts.{expert}"
            found[f"{name}.fc_1.weight"], found[f"{name}.fc_2.weight"] = inner.chunk(2)
            found[f"{name}.proj.weight"] = outer
    return found
