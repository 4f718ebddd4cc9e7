"""Which serving engines know which native layouts by name, and how to start each of them.

An engine finds a model's code by the architecture that config.json names. The names below stand in vLLM's registry of
models, among the entry classes of SGLang's, and in the table of llama.cpp's converter, as read in November 2026.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...configuration import MoebaConfig
from ...conversion.families import FAMILIES, family_of
from ...conversion.targets import candidates


@dataclass(frozen=True)
class Engine:
    """`command` starts it on the folder `{folder}`; `architectures` are those that it registers."""

    name: str
    command: str
    architectures: frozenset[str]


_ALL = """
Llama Mistral Mixtral Qwen2 Qwen2Moe Qwen3 Qwen3Moe Phi Phi3 Gemma Gemma2 Gemma3 Olmo Olmo2 Olmoe Granite GraniteMoe
Glm4 Glm4Moe GptOss GPTBigCode DeepseekV2 DeepseekV3
"""
_VLLM = """
Afmoe Apertus Arcee Bloom Cohere Cohere2 Cwm Dots1 Ernie4_5 Ernie4_5_Moe Exaone4 Falcon FlexOlmo Glm GPTJ GPTNeoX
GraniteMoeShared HunYuanDenseV1 HunYuanMoEV1 Jais2 MiMoV2Flash MiniMaxM2 Mpt Nemotron Olmo3 OPT Persimmon SeedOss
StableLm Starcoder2
"""
_LLAMA_CPP = """
Afmoe Apertus Arcee Bloom Cohere Cohere2 Cohere2Moe Dots1 Ernie4_5 Ernie4_5_Moe Exaone4 Falcon Glm Glm4MoeLite GPTNeoX
GraniteMoeShared HunYuanDenseV1 HunYuanMoEV1 Jais2 Mellum MiMoV2Flash MiniMaxM2 Ministral3 Nemotron Olmo3 SeedOss
SmolLM3 SolarOpen StableLm Starcoder2 Youtu
"""


def _names(*lists: str) -> frozenset[str]:
    return frozenset({f"{name}ForCausalLM" for text in lists for name in text.split()} | {"GPT2LMHeadModel"})


ENGINES = (
    Engine("vLLM", "vllm serve {folder}", _names(_ALL, _VLLM)),
    Engine("SGLang", "python -m sglang.launch_server --model-path {folder}", _names(_ALL)),
    Engine(
        "llama.cpp",
        "python convert_hf_to_gguf.py {folder} --outfile model.gguf\nllama-server -m model.gguf",
        _names(_ALL, _LLAMA_CPP),
    ),
)


def registering(architecture: str | None) -> tuple[Engine, ...]:
    """The engines that know an architecture by its name."""
    return tuple(engine for engine in ENGINES if architecture in engine.architectures)


def holders(config: MoebaConfig) -> Iterator[str]:
    """The families that an engine serves and whose config can say all of a model's, the widest served first."""
    for model_type in candidates("moe" if config.sparse_layers else "dense"):
        if not registering(FAMILIES[model_type].architecture):
            continue
        try:
            family_of(model_type).to_native(config)
        except ValueError:
            continue
        yield model_type


def export_targets(config: MoebaConfig) -> dict[str, tuple[Engine, ...]]:
    """Native families to export to, with the engines that each opens: as few as reach all engines that can be."""
    targets: dict[str, tuple[Engine, ...]] = {}
    missing = set(ENGINES)
    for model_type in holders(config):
        engines = tuple(e for e in registering(FAMILIES[model_type].architecture) if e in missing)
        if engines:
            targets[model_type] = engines
            missing -= set(engines)
        if not missing:
            break
    return targets
