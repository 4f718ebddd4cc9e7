"""Text from any model folder, streamed to stdout."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TextStreamer, set_seed

from ..conversion import resolve
from ..conversion.stock_loading import load_stock, load_tokenizer


def continue_text(
    model: str,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    chat: bool,
    stream: bool,
) -> str:
    """The text that a model adds to `prompt`; with `stream` it is printed as it comes, after the prompt.

    Raises:
        ValueError: the folder has no tokenizer, or `chat` finds no chat template, or the prompt is empty.
    """
    folder = resolve(model, any_type=True)
    tokenizer = load_tokenizer(folder)
    inputs = _encode(tokenizer, prompt, chat)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_stock(AutoModelForCausalLM, folder, dtype="auto").to(device)
    rows = network.get_input_embeddings().weight.shape[0]
    if (largest := int(inputs["input_ids"].max())) >= rows:
        raise ValueError(
            f"the tokenizer of {folder} makes token {largest} of the prompt, but the model embeds only {rows}: the two "
            "do not belong together"
        )
    set_seed(seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
    if stream and not chat:
        sys.stdout.write(prompt)
    try:
        output = network.generate(
            **inputs.to(device),
            **sampling,
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=False,
            pad_token_id=tokenizer.pad_token_id
            if tokenizer.pad_token_id is not None
            else tokenizer.eos_token_id,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None,
        )
    except (
        RuntimeError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:  # of settings that loading did not look at
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder} loads, but what its config.json and generation_config.json say does not generate: {reason}"
        ) from error
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _encode(tokenizer: Any, prompt: str, chat: bool) -> Any:
    if not chat:
        inputs = tokenizer(prompt, return_tensors="pt")
        if inputs["input_ids"].shape[1] == 0:
            raise ValueError("the prompt is empty: give some text to go on from")
        return inputs.to("cpu")
    if not tokenizer.chat_template:
        raise ValueError(f"{tokenizer.name_or_path} has no chat template: leave out --chat")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
