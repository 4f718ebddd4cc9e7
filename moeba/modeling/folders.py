"""Model folders: reading one of any supported type, writing one that carries its own code, and uploading it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from ..library.upstream import PreTrainedConfig, find_adapter_config_file, origin_of, set_origin
from .code_files import AUTO_MAP, write_code
from .left_whole import say_what_stays_whole
from .services import provided

_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_UPLOAD_KWARGS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
_CARD, _PROVENANCE = "README.md", "moeba_provenance.json"


class MoebaFolders:
    """What `PreTrainedModel` says about loading, saving and pushing, where Moeba does more."""

    config: Any
    config_class: Any
    _loaded_revision: str | None = None  # that was asked for

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a checkpoint of another supported model type is converted on the way in.

        Raises:
            ValueError: the checkpoint's model type, or a field or tensor of it, has no exact place in Moeba.
        """
        parent: Any = super()
        model_type = None
        if pretrained_model_name_or_path is not None and kwargs.get("config") is None:
            model_type = _model_type(pretrained_model_name_or_path, kwargs)
        if model_type in (None, cls.config_class.model_type):
            loaded = parent.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model._loaded_revision = kwargs.get("revision")
            say_what_stays_whole(model)
            return loaded
        if (services := provided()) is None:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a '{model_type}' checkpoint: reading it needs the moeba package "
                "(pip install moeba)."
            )
        config, state_dict = services.read_native(pretrained_model_name_or_path, kwargs.get("revision"))
        for name in (*_HUB_KWARGS, "use_safetensors", "variant"):
            kwargs.pop(name, None)
        loaded = parent.from_pretrained(None, *args, config=config, state_dict=state_dict, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        set_origin(model.config, str(pretrained_model_name_or_path))
        say_what_stays_whole(model)
        return loaded

    def save_pretrained(
        self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As in transformers, and the folder carries the code that loads it where moeba is not installed."""
        parent: Any = super()
        main = kwargs.get("is_main_process", args[0] if args else True)
        repo_id = kwargs.pop("repo_id", None)
        self.config.auto_map = dict(AUTO_MAP)
        hub = {name: kwargs.pop(name) for name in _UPLOAD_KWARGS if name in kwargs}
        if "token" in hub:
            kwargs["token"] = hub["token"]
        parent.save_pretrained(save_directory, *args, **kwargs)
        if main:
            write_code(save_directory)
            self._bring(Path(save_directory), _PROVENANCE)
        if push_to_hub:
            self._upload(save_directory, repo_id or os.path.basename(os.path.abspath(save_directory)), **hub)

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "5GB", **kwargs: Any) -> str:
        """Save to a temporary folder and upload it, with a model card, in one commit.

        What a person wrote in a card stays, in the folder that the model was loaded from and in the repository; its
        generated part is brought up to date. Where moeba is not installed, the cards stay as they are.

        Args:
            repo_id: `user/name`; the repository is created if it does not exist.
            kwargs: `private`, `token`, `revision` (a branch), `create_pr`, `commit_message`, `commit_description`,
                `tags`.

        Raises:
            OSError: the Hub or the network refused, and nothing was committed.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return self._upload(folder, repo_id, **kwargs)

    def _upload(
        self,
        folder: str | os.PathLike,
        repo_id: str,
        *,
        token: bool | str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        tags: list[str] | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        create_pr: bool = False,
    ) -> str:
        self._bring(Path(folder), _CARD, _PROVENANCE)
        self.fetch_provenance(Path(folder), token)
        message = commit_message or f"Upload {type(self).__name__}"
        if (services := provided()) is not None:
            return services.push(
                folder,
                repo_id,
                token=token,
                private=private,
                branch=revision,
                pr=create_pr,
                tags=tags or (),
                message=message,
                description=commit_description,
            )
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        card = Path(folder) / _CARD
        if tags:
            if not card.exists() and api.file_exists(repo_id, _CARD, revision=revision):
                shutil.copyfile(api.hf_hub_download(repo_id, _CARD, revision=revision), card)
            text: Any = ModelCard.load(card) if card.exists() else ModelCard("---\n---\n")
            text.data.tags = list(dict.fromkeys([*(text.data.tags or []), *tags]))
            text.save(card)
        # `upload_folder` would make several commits of a large folder.
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files],
            commit_message=message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )

    def _bring(self, folder: Path, *names: str) -> None:
        """Copy files of the folder this model was loaded from, such as the record of where its weights came from."""
        origin = Path(origin_of(self.config) or folder)
        for name in names:
            is_own = (origin / name).is_file() and not leads_out(origin / name, origin)
            if is_own and not (folder / name).exists():
                shutil.copyfile(origin / name, folder / name)

    def fetch_provenance(self, folder: Path, token: bool | str | None) -> None:
        """Bring that record for a model that was loaded from the Hub, from the commit that was loaded."""
        origin = str(origin_of(self.config) or "")
        if not origin or (folder / _PROVENANCE).exists() or Path(origin).exists():
            return
        try:
            cached = try_to_load_from_cache(origin, "config.json", revision=self._loaded_revision)
            commit = Path(cached).parent.name if isinstance(cached, str) else self._loaded_revision
            path = hf_hub_download(origin, _PROVENANCE, revision=commit, token=token)
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError):  # made otherwise, or gone since
            return
        shutil.copyfile(path, folder / _PROVENANCE)


def leads_out(path: Path, folder: Path) -> bool:
    """Whether `path`, in `folder`, is elsewhere in truth, because of a link in its last part or on the way to it.

    A repository in the Hub's cache, of which the folder is a snapshot, counts as one with it.
    """
    home = folder.resolve()
    shown = home.parent
    if shown.name == "snapshots" and shown.parent.name.startswith("models--"):
        home = shown.parent
    try:
        return not path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # links in a circle
        return True


def _model_type(path: Any, kwargs: dict[str, Any]) -> str | None:
    """The model type that a config.json states; None for an adapter, whose base model is meant."""
    hub = {name: kwargs[name] for name in _HUB_KWARGS if name in kwargs}
    if find_adapter_config_file(path, **hub) is not None:
        return None
    config, _ = PreTrainedConfig.get_config_dict(path, **hub)
    return config.get("model_type")
