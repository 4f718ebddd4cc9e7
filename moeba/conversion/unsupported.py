"""Causal language models of transformers that Moeba does not take, and why: said once, by reason."""

from __future__ import annotations

_REASONS: dict[str, str] = {
    # Another way to mix tokens than attention.
    "its layers are Mamba's state spaces, without attention": "falcon_mamba mamba mamba2",
    "some of its layers are Mamba's state spaces": (
        "bamba falcon_h1 granitemoehybrid jamba nemotron_h zamba zamba2"
    ),
    "some of its layers have linear attention": (
        "bailing_hybrid kimi_linear lara_mini minimax olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next "
        "qwen4_exp_text"
    ),
    "some of its layers are short convolutions": "lfm2 lfm2_moe lfm3",
    "some of its layers run in loops, with short convolutions of keys and values": "inkling2_loop_text",
    "keys and values pass through short convolutions before they are attended to": "inkling2_text inkling_text",
    "it is recurrent, without attention": "rwkv xlstm",
    "some of its layers are gated linear recurrences": "recurrent_gemma",
    # Attention of another kind.
    "an indexer chooses which keys each query attends to": (
        "axk2 deepseek_v32 dots3_note_text glm_moe_dsa minimax_m3_vl_text"
    ),
    "an indexer chooses the keys of each query, and hyper-connections replace the residual stream": "hy_v4",
    "it has compressed attention, hyper-connections, and experts looked up by token id": "deepseek_v4",
    "its attention is the difference of two softmaxes": "diffllama",
    "a mask computed from the values thins out attention, and its experts are found by product keys": "doge",
    "attention heads are experts too, chosen by a router": "jetmoe",
    "its attention works in chunks and its router scales what enters the experts": "llama4_text",
    "its layers hold two attentions each, and some experts do nothing": "longcat_flash",
    "its attention is compressed by convolutions, and its router is a network with a memory across layers": "zaya",
    "attention is by locality-sensitive hashing in reversible layers": "reformer",
    "it attends in two streams over permuted positions": "xlnet",
    "its prompt is attended to in both directions, with relative positions of segments": "cpmant",
    # Blocks and heads of another kind.
    "norms stand inside its attention and its feed-forward": "bitnet",
    "its residual stream is scaled by depth": "beam",
    "its router adds the selection bias to raw logits instead of scores": "kolibri1",
    "the attention output of its last layer alone has a bias": "gpt_neox_japanese",
    "a dense layer, an activation and a norm stand between its last layer and its head": "modernbert-decoder",
    "its layers run in loops over a stream of unit norm": "dory",
    "two stacks of layers run over the same tokens again and again": "hrm_text",
    "later layers reuse keys and values, and streams and embeddings of each layer are mixed in": "gemma3n_text",
    "later layers reuse keys and values, and each layer has embeddings of its own": "gemma4_text",
    "layers may reuse other layers' keys and values, values are normed, and each layer is scaled": (
        "gemma4_unified_text"
    ),
    "it drafts tokens from another model's hidden states": "gemma4_assistant gemma4_unified_assistant",
    "it reads bytes, grouped into patches by an entropy model": "blt",
    # More than text.
    "it takes images beside text": (
        "emu3 fuyu gemma3 git got_ocr2 llama4 mllama"
    ),
    "it takes images, and some of its layers have linear attention": "qwen3_5 qwen3_5_moe qwen4_exp",
    "it takes images and sound beside text": (
        "dots3_note gemma3n gemma4 gemma4_unified phi4_multimodal"
    ),
    "it takes and makes sound": "moshi musicgen musicgen_melody",
    "it takes sound": "moss_transcribe_diarize",
    # Made for something else.
    "it is the decoder of an encoder-decoder model, whose layers attend to the encoder": (
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper"
    ),
    "it is an encoder: its embeddings tell token types apart and a dense layer and a norm stand before its head": (
        "bert big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta roberta-prelayernorm "
        "roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
    ),
    "it is an encoder of both directions, with embeddings of languages": "xlm",
}  # fmt: skip

# The release of transformers that brought them; all others are as old as the oldest one that Moeba runs with.
SINCE = dict.fromkeys(("dory", "inkling2_loop_text", "lara_mini"), "5.24")

# model_type -> why it is refused, in one sentence.
UNSUPPORTED: dict[str, str] = dict(
    sorted((name, reason) for reason, names in _REASONS.items() for name in names.split())
)
