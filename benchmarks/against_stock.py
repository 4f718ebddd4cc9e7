"""Moeba against stock transformers on the same architecture, weights and implementations, in one process.

    python benchmarks/against_stock.py

Rounds alternate between the two models, so that a busy machine slows both; medians are compared. A ratio above 1 means
that Moeba takes longer.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from moeba import MoebaForCausalLM
from moeba.conversion.certificate.twin import StateDict
from moeba.conversion.families import FAMILIES
from moeba.conversion.plan import PlannedTensors, plan_export
from moeba.modeling.services import provide

SIZES = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
MODELS = {
    "llama": {},
    "qwen3": {"head_dim": 64},
    "mixtral": {"num_local_experts": 8, "intermediate_size": 512},
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256, "head_dim": 64},
}


def build_pair(model_type: str) -> tuple[PreTrainedModel, MoebaForCausalLM]:
    """A random Moeba model and the stock model with the same weights."""
    family = FAMILIES[model_type]
    native = transformers.CONFIG_MAPPING[model_type](**{**SIZES, **MODELS[model_type]})
    ours = MoebaForCausalLM(family.to_moeba(native))
    stock = AutoModelForCausalLM.from_config(native)
    tensors = dict(ours.state_dict())
    planned = PlannedTensors(plan_export(StateDict(tensors), ours.config, family))
    state = {name: planned.read(name) for name in planned.tensors}
    loaded = type(stock).from_pretrained(None, config=native, state_dict=state)
    return loaded.eval(), ours.eval()


def workloads(ids: torch.Tensor) -> dict[str, Callable[[PreTrainedModel], None]]:
    """What is timed, by name."""

    def prefill(model: PreTrainedModel) -> None:
        with torch.no_grad():
            model(ids, logits_to_keep=1)

    def decode(model: PreTrainedModel) -> None:
        model.generate(ids[:1, :16], max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0)

    def train(model: PreTrainedModel) -> None:
        model.zero_grad(set_to_none=True)
        model(ids, labels=ids, output_router_logits=True if has_experts(model) else None).loss.backward()

    return {f"prefill {ids.shape[1]}": prefill, "decode 32": decode, f"train step {ids.numel()}": train}


def has_experts(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "num_experts", 0))


def seconds(work: Callable[[PreTrainedModel], None], model: PreTrainedModel) -> float:
    start = time.perf_counter()
    work(model)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    provide(None)  # no cards
    torch.manual_seed(0)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, float32, medians of {rounds} alternating rounds\n")
    print("| model | work | stock ms | moeba ms | ratio |\n| --- | --- | --- | --- | --- |")
    for model_type in MODELS:
        stock, ours = build_pair(model_type)
        for name, work in workloads(torch.randint(0, SIZES["vocab_size"], (2, 256))).items():
            timings: dict[str, list[float]] = {"stock": [], "moeba": []}
            for turn in range(rounds + 1):
                for side, model in (("stock", stock), ("moeba", ours)):
                    elapsed = seconds(work, model)
                    if turn:  # the first round warms both up
                        timings[side].append(elapsed)
            a, b = (statistics.median(timings[side]) * 1e3 for side in ("stock", "moeba"))
            print(f"| {model_type} | {name} | {a:.0f} | {b:.0f} | {b / a:.2f} |", flush=True)


if __name__ == "__main__":
    main()
