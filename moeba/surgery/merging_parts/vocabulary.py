"""The vocabulary of a merge whose models differ in tokens or in rows: which row is which model's token.

- `strict`: they must not differ.
- `trim`: the first rows, as far as all models mean the same token by them; tokens beyond are given up.
- `pad`: as many rows as the largest has. Ids stay; no model may mean another token by one.
- `union`: tokens by their text. The base model's ids stay, and what other models were given in addition is appended.

A row is the mean of the kept models that know its token, or else the base model's, or else the mean of those that do
know it. A row without a token is one that a model has there without a token; where none has one, it is the mean of all
other rows, so that its logit is never the largest.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...configuration import MoebaConfig
from ...conversion.json_files import listing, read_json
from ...tokenization.adopt import copy_tokenizer, tokenizer_files
from .merge_recipe import BASE
from .model_tokens import ModelTokens
from .tokenizer_union import append_tokens

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Vocabulary:
    """What the rows of the merged embedding and head are.

    Attributes:
        mode: one of `VOCABULARIES`; never `strict`, which needs none of this.
        size: rows.
        home: the model whose tokenizer is kept, and `added`: the tokens that it is given.
        tokenizer: the merged model's; None where no model has one.
        rows: by model `[size]`: its own row for the token at that place, -1 where it does not know it.
        spare: by model `[size]`: its own row without a token, for places that have none.
    """

    mode: str
    size: int
    home: str
    models: Mapping[str, ModelTokens]
    tokenizer: Any
    added: tuple[Any, ...]
    rows: Mapping[str, torch.Tensor]
    spare: Mapping[str, torch.Tensor]

    def chosen(self, donors: Sequence[str]) -> dict[str, torch.Tensor]:
        """By model `[size]`: its own row where that counts for the merged one, else -1.

        Args:
            donors: the models whose tensors outside of the experts are kept.
        """
        found = {name: torch.full((self.size,), -1) for name in self.rows}
        nobody = torch.ones(self.size, dtype=torch.bool)
        for kind in (self.rows, self.spare):
            for names in (donors, (BASE,), tuple(found)):
                free = nobody.clone()
                for name in names:
                    taken = free & (kind[name] >= 0)
                    found[name][taken] = kind[name][taken]
                    nobody &= ~taken
        return found

    def shared(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids of the tokens that a model and the merged one know, in the one and in the other, `[tokens]` each."""
        rows = self.rows[name]
        if self.tokenizer is None:  # ids are all that is known of the tokens
            rows = self.spare[name]
        places = (rows >= 0).nonzero().flatten()
        return rows[places], places

    def read(self, name: str) -> Any:
        """Cuts a text into a model's own ids, of tokens that the merged model knows; None without a tokenizer."""
        own = self.tokenizer if self.mode == "trim" else (self.models[name].tokenizer or self.tokenizer)
        if own is None:
            return None
        known = set(self.shared(name)[0].tolist())

        def read(text: str, **kwargs: Any) -> dict[str, list[int]]:
            return {"input_ids": [token for token in own(text, **kwargs)["input_ids"] if token in known]}

        return read

    def write_tokenizer(self, folder: Path) -> None:
        """Make the tokenizer in `folder`, which is the base model's, the merged model's."""
        if self.tokenizer is None:
            return
        for file in tokenizer_files(folder):
            file.unlink()
        copy_tokenizer(self.models[self.home].folder, folder)
        if self.added:
            append_tokens(folder, self.tokenizer, self.added)

    def record(self) -> dict[str, Any]:
        """For the recipe: what decides the rows, so that an unfinished run continues only with the same tokenizers."""
        digest = hashlib.sha256()
        for kind in (self.rows, self.spare):
            for name, places in sorted(kind.items()):
                digest.update(name.encode() + places.numpy().tobytes())
        return {
            "mode": self.mode,
            "rows": self.size,
            "tokenizer": self.home,
            "added": [token.content for token in self.added],
            "map": digest.hexdigest(),
        }

    def describe(self, donors: Sequence[str]) -> str:
        """One sentence: how many rows, and whose they are."""
        chosen = self.chosen(donors)
        counts = torch.stack([rows >= 0 for rows in chosen.values()]).sum(0)
        parts = []
        for name, rows in chosen.items():
            if own := int(((rows >= 0) & (counts == 1)).sum()):
                parts.append(f"{own} from {self.models[name].called}")
        if shared := int((counts > 1).sum()):
            parts.append(f"{shared} the mean of several models that know the token")
        if empty := int((counts == 0).sum()):
            parts.append(f"{empty} that no model has, the mean of all others")
        sizes = ", ".join(f"{model.called} {model.rows}" for model in self.models.values())
        text = f"vocab '{self.mode}': {self.size} rows ({sizes}): {', '.join(parts)}"
        if self.added:
            text += f"; the tokenizer is given {listing([repr(token.content) for token in self.added])}"
        elif self.home != BASE:
            text += f"; the tokenizer is that of {self.models[self.home].called}"
        return f"{text}; gaps are measured on the tokens that a source and the merge share"


def fitted_config(
    config: MoebaConfig, vocabulary: Vocabulary | None, configs: Mapping[str, MoebaConfig]
) -> MoebaConfig:
    """The base model's config with the merged number of rows, and special tokens that the merged model has.

    Args:
        configs: of all models.
    """
    if vocabulary is None:
        return config
    values = copy.deepcopy(config.to_dict())
    values["vocab_size"] = vocabulary.size
    for name in _SPECIAL:
        if _outside(values.get(name), vocabulary.size):
            values[name] = getattr(configs[vocabulary.home], name)
            if _outside(values[name], vocabulary.size):
                values[name] = None
    return MoebaConfig.from_dict(values)


def write_companions(vocabulary: Vocabulary, folder: Path) -> None:
    """In `folder`, which holds the base model's: the merged model's tokenizer, and no generation settings that name
    tokens which it does not have.
    """
    vocabulary.write_tokenizer(folder)
    path = folder / "generation_config.json"
    if path.is_file():
        settings = read_json(path)
        if lost := [
            name
            for name in settings
            if name.endswith("_token_id") and _outside(settings[name], vocabulary.size)
        ]:
            left = {name: value for name, value in settings.items() if name not in lost}
            path.write_text(json.dumps(left, indent=2) + "\n", encoding="utf-8")


def _outside(ids: Any, size: int) -> bool:
    return any(
        isinstance(place, int) and place >= size for place in (ids if isinstance(ids, list) else [ids])
    )
