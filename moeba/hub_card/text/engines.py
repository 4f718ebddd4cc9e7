"""Which serving engines know which native layouts by name, and how to start each of them.

An engine finds a model's code by the architecture that config.json names. The names below stand in vLLM's registry of
models (0.33), among the entry classes of SGLang's (0.5.23), as read in November 2026, and in the table of llama.cpp's
converter, as measured then.

vLLM and SGLang run what they do not know by name through transformers: the base model's own code, with attention,
experts, RMS norms, embedding and head replaced by theirs. What either leaves out of a Moeba folder served as it is
says `left_out_as_it_is`, as read in both then (vLLM of late takes sinks and a head's bias, SGLang neither).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
Afmoe Apertus Arcee Cohere Cohere2 Cohere2Moe DeepseekV2 DeepseekV3 Ernie4_5_Moe Exaone4 ExaoneMoe Gemma Gemma2 Gemma3
Glm4 Glm4Moe Glm4MoeLite GPTBigCode GptOss Granite GraniteMoe GraniteMoeShared GraniteMoeSWA GraniteSWA HunYuanDenseV1
HYV3 Llama MiniMaxM2 Ministral3 Mistral Mixtral Olmo Olmo2 Olmoe Phi Phi3 Qwen2 Qwen2Moe Qwen3 Qwen3Moe StableLm
Starcoder2
"""
_VLLM_AND_SGLANG = """
Dbrx GPTJ HunYuanMoEV1 Laguna Mellum MiMoV2Flash MiniCPM3 OPT PhiMoE
"""
_VLLM = """
AXK1 Bloom Cwm Ernie4_5 Falcon FlexOlmo Flint Glm GPTNeoX HyperCLOVAX Jais2 Nemotron Olmo3 SeedOss SmolLM3 VaultGemma
"""
_SGLANG = """
Persimmon
"""
# Exports to these were put through llama.cpp (benchmarks/through_llama_cpp.py), and its logits are transformers',
# within what LIMITS says. Left out is what it knows and computes otherwise (PhiMoE, Laguna), or what was not brought to
# run with small sizes (Dbrx, HunYuanMoEV1, Mellum, MiMoV2Flash, MiniCPM3, SolarOpen).
_LLAMA_CPP = """
Bloom Dots1 Ernie4_5 Falcon Glm GPTNeoX Jais2 MPT Nemotron Olmo3 SeedOss SmolLM3 Youtu
"""
_FEW_LAYERS = "a model without q_lora_rank loads at 26 or 27 layers only"
_GEMMA = "scores are scaled by the width of a head, whatever query_pre_attn_scalar says"
_ONE_TOKENIZER = "its converter takes no tokenizer that was trained with Moeba in this layout"
LIMITS = {
    "DeepseekV2": f"of groups of experts the two best experts count, not the best one; {_FEW_LAYERS}",
    "DeepseekV3": _FEW_LAYERS,
    "Falcon": "its converter refuses a model whose heads share one key/value head if num_kv_heads says otherwise",
    "Gemma2": _GEMMA,
    "Gemma3": _GEMMA,
    "GPTNeoX": "its converter needs transformers 4",
    "GptOss": "yarn's bounds are rounded to whole dimensions, also where truncate is false",
    "Nemotron": _ONE_TOKENIZER,
    "Phi3": _ONE_TOKENIZER,
}
"""What llama.cpp does otherwise than transformers, by architecture, as measured in November 2026."""


def _names(*lists: str) -> frozenset[str]:
    return frozenset({f"{name}ForCausalLM" for text in lists for name in text.split()} | {"GPT2LMHeadModel"})


ENGINES = (
    Engine("vLLM", "vllm serve {folder}", _names(_ALL, _VLLM_AND_SGLANG, _VLLM)),
    Engine(
        "SGLang",
        "python -m sglang.launch_server --model-path {folder}",
        _names(_ALL, _VLLM_AND_SGLANG, _SGLANG),
    ),
    Engine(
        "llama.cpp",
        "python convert_hf_to_gguf.py {folder} --outfile model.gguf\nllama-server -m model.gguf",
        _names(_ALL, _LLAMA_CPP),
    ),
)


# What the replaced parts do not compute: they are given queries, keys, values, a scale and a window, experts get the
# activation that is read off the architecture's name, which is silu for every name but those of two families, and the
# head gets `logit_scale` and `final_logit_softcapping` of the config.
_LEFT_OUT: tuple[tuple[Callable[[MoebaConfig], bool], str], ...] = (
    (
        lambda c: bool(c.sparse_layers) and (c.feed_forward_type, c.hidden_act) != ("gated", "silu"),
        "the experts' activation (silu is taken for every mixture)",
    ),
    (lambda c: bool(c.attention_sink_layer_types), "attention sinks"),
    (lambda c: c.attn_logit_softcapping is not None, "the cap on attention scores"),
    (
        lambda c: c.position_embedding_type in ("alibi", "relative"),
        "the bias of positions on attention scores",
    ),
    (lambda c: c.attention_type == "latent", "values narrower than keys (latent attention)"),
    (
        lambda c: c.logit_scale != 1.0 and c.logit_scale_operation == "divide",
        "the divisor of the logits, which they take for a factor",
    ),
    (lambda c: c.lm_head_bias, "the head's bias"),
    (lambda c: c.embedding_size != c.hidden_size, "a head narrower than the layers"),
    (lambda c: c.is_heterogeneous, "sizes that differ between layers"),
)


def left_out_as_it_is(config: MoebaConfig) -> list[str]:
    """What the Transformers backends of vLLM and SGLang leave out of a Moeba folder; if nothing, it may be served."""
    return [words for applies, words in _LEFT_OUT if applies(config)]


def advice(config: MoebaConfig) -> str:
    """Whether engines may serve a Moeba folder as it is, and else what to export it to: one sentence or two."""
    lost = left_out_as_it_is(config)
    if not lost:
        return (
            "The Transformers backends of vLLM and SGLang may serve this folder as it is (--trust-remote-code); "
            "an export is faster there."
        )
    target = next(iter(export_targets(config)), None)
    instead = f"export it first (--to {target})" if target else "serve it with transformers (moeba serve)"
    return (
        "Not to be served as it is by the Transformers backends of vLLM and SGLang, which leave out "
        f"{', '.join(lost)}: {instead}."
    )


# llama.cpp's converter tells how a byte-level tokenizer splits text into words by a hash of the ids of one long text.
# They hang on the vocabulary, so none that a user trained can stand in its table. Moeba's splits as Qwen2's.
OWN_TOKENIZER = (
    "llama.cpp's converter refuses byte-level tokenizers that it has not met (`BPE pre-tokenizer was not recognized`). "
    "This one was trained with Moeba and splits text as Qwen2's, so tell the converter once:"
)
OWN_TOKENIZER_COMMAND = (
    "grep -rl --include='*.py' 'pre-tokenizer was not recognized - update' llama.cpp | xargs sed -i "
    '\'s/raise NotImplementedError("BPE pre-tokenizer was not recognized.*/res = "qwen2"/\''
)
PIECES_REFUSED = (
    "llama.cpp's converter does not take a tokenizer of SentencePiece's form, as this one is, in that layout: it reads "
    "it in those of Llama, Mistral, Mixtral, Granite and Gemma among others. Elsewhere it takes one that was trained "
    'with `MoebaTokenizer.train(..., form="byte_level")`, once told how that splits.'
)


def limit_of_llama_cpp(architecture: str | None) -> str:
    """A sentence on what llama.cpp does otherwise with an architecture; empty if nothing is known."""
    words = LIMITS.get((architecture or "").removesuffix("ForCausalLM"))
    return f" llama.cpp: {words}." if words else ""


def registering(architecture: str | None) -> tuple[Engine, ...]:
    """The engines that know an architecture by its name."""
    return tuple(engine for engine in ENGINES if architecture in engine.architectures)


def holders(config: MoebaConfig) -> Iterator[str]:
    """The families that an engine serves and whose config can say all of a model's, the widest served first."""
    for model_type in candidates("moe" if config.sparse_layers else "dense"):
        if not registering(FAMILIES[model_type].exported_architecture):
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
        engines = tuple(e for e in registering(FAMILIES[model_type].exported_architecture) if e in missing)
        if engines:
            targets[model_type] = engines
            missing -= set(engines)
        if not missing:
            break
    return targets
