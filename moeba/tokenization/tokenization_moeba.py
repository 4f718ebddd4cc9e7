"""Train a BPE tokenizer on a corpus and use it as any Hugging Face tokenizer.

- Lossless: 256 byte tokens, so that no character is unknown and `decode(encode(text)) == text`. In SentencePiece's form
  one character in all is excepted: `▁` (U+2581) comes back as a space.
- Reproducible: the same texts in the same order give the same files, byte for byte.
- Self-contained: what it saves loads with stock transformers, without Moeba and without remote code.
- Ready to chat: ChatML markers and a template that marks the assistant's tokens for training on replies only.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import TokenizersBackend

from .sentencepiece_form import UNKNOWN, train_backend
from .sentencepiece_model import write_sentencepiece

BYTES = 256
Form = Literal["sentencepiece", "byte_level"]
CHAT_MARKERS = ("<|im_start|>", "<|im_end|>")

# Of the byte-level form, Qwen2's splitting into words: digits one by one, line breaks apart from indentation. Taken
# over exactly, because transformers 5 reads any tokenizer in a folder of type `qwen2` as Qwen2's, whatever it says.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# `generation` marks what the assistant wrote, for `apply_chat_template` with `return_assistant_tokens_mask`.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{{- message['content'] + '<|im_end|>' }}
{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


class MoebaTokenizer(TokenizersBackend):
    """A tokenizer of the Rust backend that can be trained; once trained it behaves as its base class does.

    The class defines no `__init__`: with one, transformers would rebuild the tokenizer from vocabulary and
    merges instead of loading `tokenizer.json` verbatim.
    """

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 32_768,
        *,
        bos_token: str = "<|bos|>",
        eos_token: str = "<|eos|>",
        pad_token: str = "<|pad|>",
        special_tokens: Sequence[str] = CHAT_MARKERS,
        form: Form = "sentencepiece",
        min_frequency: int = 2,
        chat_template: str | None = CHAT_TEMPLATE,
        model_max_length: int | None = None,
        length: int | None = None,
        show_progress: bool = True,
    ) -> MoebaTokenizer:
        """Learn a BPE vocabulary from `texts`.

        Nothing is added around an encoded text: `bos_token` and `eos_token` are for whoever packs documents.
        Batches are padded on the left, which is what generation needs.

        Args:
            texts: The corpus, read once, one document an item.
            vocab_size: Number of tokens, special and byte tokens included. A small corpus, with too few pairs
                that occur `min_frequency` times, gives fewer: size the model by `len(tokenizer)`.
            bos_token: First special token, id 0.
            eos_token: End of a document, id 1.
            pad_token: Padding, id 2. Not `eos_token`: collators would mask the ends of documents.
            special_tokens: Further tokens that are never split, with ids from 3 on.
            form: "sentencepiece" merges characters, spells rare ones in bytes, and is saved as `tokenizer.model` too,
                which llama.cpp's converter takes where a layout's own models have one (Llama, Mistral, Mixtral, …).
                "byte_level" merges bytes of words split as Qwen2 does: the form for folders of type `qwen2`, where
                transformers takes every tokenizer for such a one, and for texts in which `▁` must stay itself.
            min_frequency: How many times a pair of tokens must occur to be merged.
            chat_template: Jinja source for `apply_chat_template`, or None for a tokenizer without one.
            model_max_length: Longest input of the model in tokens, None for no limit.
            length: Number of texts, for the progress bar to show how much is left.
            show_progress: Whether to draw a progress bar on standard error.

        Raises:
            ValueError: A setting that cannot work, an item that is not text, or a corpus without any text.
        """
        if form not in get_args(Form):
            raise ValueError(f"form is {form!r}; pass one of {', '.join(map(repr, get_args(Form)))}.")
        pieces = form == "sentencepiece"
        special = [bos_token, eos_token, pad_token, *special_tokens]
        _check_special_tokens([*special, UNKNOWN] if pieces else special)
        _check_sizes(vocab_size, min_frequency, model_max_length, len(special) + pieces)
        _check_chat_template(chat_template, special)
        learn = train_backend if pieces else _train_byte_level
        backend = learn(
            _checked(texts), vocab_size, special, min_frequency, length=length, show_progress=show_progress
        )
        settings: dict[str, Any] = {} if model_max_length is None else {"model_max_length": model_max_length}
        if pieces:
            settings |= {"unk_token": UNKNOWN, "add_prefix_space": False}
        return cls(
            tokenizer_object=backend,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            extra_special_tokens=list(special_tokens),
            chat_template=chat_template,
            clean_up_tokenization_spaces=False,
            padding_side="left",
            **settings,
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        """Save as the base class does, and as `tokenizer.model` too if it has SentencePiece's form."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        adds = {f"add_{name}_token": bool(getattr(self, f"add_{name}_token")) for name in ("bos", "eos")}
        model = write_sentencepiece(save_directory, adds)
        return saved if model is None else (*saved, model)


def _train_byte_level(
    texts: Iterable[str],
    vocab_size: int,
    special: Sequence[str],
    min_frequency: int,
    *,
    length: int | None,
    show_progress: bool,
) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special),
        # Sorted, because the order of `alphabet()` is that of a hash set.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    backend = _empty_backend()
    backend.train_from_iterator(texts, trainer, length=length)
    return backend


def _empty_backend() -> Tokenizer:
    """A byte-level BPE without any merge, any normalizer and any space put before the text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """Hand on `texts`; ValueError at the first item that is not text, or at the end if there was none."""
    if isinstance(texts, str):
        raise ValueError("texts is one str, which would be read letter by letter; pass a list of texts.")
    found = False
    for index, text in enumerate(texts):
        _check_text(index, text)
        found = found or bool(text)
        yield text
    if not found:
        raise ValueError(
            "texts holds no text at all; pass at least one that is not empty (is it a used iterator?)."
        )


def _check_text(index: int, text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(
            f"texts[{index}] is {text!r:.80}, of type {type(text).__name__}; every text must be a str."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"texts[{index}] holds {text[error.start]!r} at position {error.start}, half of a character "
            "that UTF-8 cannot write; decode its source with errors='replace'."
        ) from error


def _check_special_tokens(special: list[str]) -> None:
    for token in special:
        if not isinstance(token, str) or not token:
            raise ValueError(f"special tokens include {token!r}; each must be a str that is not empty.")
    twice = sorted(token for token, count in Counter(special).items() if count > 1)
    if twice:
        raise ValueError(
            f"special tokens include {twice} more than once; give bos_token, eos_token, pad_token "
            "and each item of special_tokens a text of its own."
        )
    single = sorted(token for token in special if token in pre_tokenizers.ByteLevel.alphabet())
    if single:
        raise ValueError(f"special tokens include {single}, which already stand for bytes; use longer texts.")


def _check_sizes(vocab_size: int, min_frequency: int, model_max_length: int | None, special: int) -> None:
    if vocab_size < BYTES + special:
        raise ValueError(
            f"vocab_size is {vocab_size}; it must hold {BYTES} bytes and {special} special tokens, "
            f"so pass at least {BYTES + special}."
        )
    if min_frequency < 1:
        raise ValueError(f"min_frequency is {min_frequency}; pass 1 or more.")
    if model_max_length is not None and model_max_length < 1:
        raise ValueError(f"model_max_length is {model_max_length}; pass 1 or more, or None for no limit.")


def _check_chat_template(chat_template: str | None, special: list[str]) -> None:
    missing = [marker for marker in CHAT_MARKERS if marker not in special]
    if chat_template == CHAT_TEMPLATE and missing:
        raise ValueError(
            f"special_tokens lacks {missing}, which the default chat_template writes; add them, or pass a "
            "chat_template of your own or None."
        )
