"""Which weights a role stands for: a base, and maybe an adapter on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from plad_ray import remote
from plad_ray.artifacts import Artifact, fingerprint, hash_path
from plad_ray.config import Model
from plad_ray.errors import PladError

#: Our note beside an adapter or a model: what it was trained on.
NOTE = "plad.json"
#: Files of a model folder that are no part of the model.
_BESIDE = (NOTE, "metrics.jsonl")


@dataclass(frozen=True)
class Policy:
    """Local folder or hub id of the base (behind an API its name there), local folder of the adapter, and the content the
    base is known by."""

    base: str
    adapter: str | None
    revision: str | None
    trust_remote_code: bool
    base_hash: str
    copies: tuple[tuple[Artifact | remote.RemoteFolder, str], ...] = ()

    def fetch(self) -> None:
        """Make ``base`` and ``adapter`` be there on this machine too, when they are copies out of an object store."""
        for source, folder in self.copies:
            source.copy_to(Path(folder))


def holds_adapter(folder: Path) -> bool:
    """Whether a trained artifact's ``files`` are a PEFT adapter, and no whole model."""
    return (folder / "adapter_config.json").is_file()


def resolve(model: Model, *artifacts: Artifact | None) -> Policy:
    """Fold ``model`` and then SFT and distillation artifacts, oldest first, into one policy.

    An artifact with ``adapter_config.json`` sets the adapter; one with only ``config.json`` becomes the base and clears
    it. Raises PladError when an adapter was trained on another base, or there is nothing to load.
    """
    if model.api is not None:
        return Policy(model.api.name, None, None, False, fingerprint(model.api.model_dump(mode="json")))
    policy = _configured(model) if model.path is not None else None
    for artifact in artifacts:
        if artifact is None:
            continue
        folder = artifact.local_folder()
        copy = () if artifact.store.local else ((artifact, str(folder)),)
        if holds_adapter(folder):
            policy = _with_adapter(policy, folder)
            policy = replace(policy, copies=(*policy.copies, *copy))
        elif (folder / "config.json").is_file():
            policy = Policy(str(folder), None, None, model.trust_remote_code, model_hash(folder), copy)
        else:
            raise PladError(f"artifact {artifact.path}: files/ holds neither adapter_config.json nor config.json")
    if policy is None:
        raise PladError("a model made from scratch has no weights before its SFT stage; give that stage's artifact")
    return policy


def identity(model: Model) -> dict[str, Any]:
    """What the model is, as JSON: its scratch config, its endpoint, a hub id with the resolved commit, or a content hash
    (for a URI of this machine's copy, so the same model has one identity wherever it lies).

    Raises PladError when the folder or the hub model is not there.
    """
    if model.scratch is not None:
        return {"scratch": model.scratch.model_dump(mode="json")}
    if model.api is not None:
        return {"api": model.api.model_dump(mode="json")}
    assert model.path is not None
    known: dict[str, Any] = {"base": _base_hash(model.path, model.revision)}
    if model.adapter is not None:
        known["adapter"] = hash_path(adapter_folder(model.adapter))
    return known


def model_hash(folder: Path) -> str:
    """Content hash of a model folder, whatever it is called and wherever it lies."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name not in _BESIDE)
    stamp = tuple((str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return _model_hash(folder, stamp)


def commit(model: Model) -> str | None:
    """The hub commit that ``model.path`` stands for; None for a folder. Raises PladError when it is not there."""
    assert model.path is not None
    return None if Path(base_place(model.path)).is_dir() else _hub_commit(model.path, model.revision)


def base_place(path: str) -> str:
    """What libraries load for ``model.path``: the local folder, of a URI this machine's copy, else the hub id.

    Raises PladError, before anything is copied, when a URI holds no model.
    """
    if remote.is_uri(path):
        return str(remote.folder("model.path", path, check_model_files).local_folder())
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.is_dir() else path


def check_model_files(where: str, names: list[str]) -> None:
    """PladError unless files of these names are a model as transformers and vLLM read it: config, tokenizer, safetensors."""
    for what, patterns in (
        ("config.json", ["config.json"]),
        ("a tokenizer (tokenizer.json, tokenizer.model or vocab.*)", ["tokenizer.json", "tokenizer.model", "vocab.*"]),
    ):
        if not _matching(names, *patterns):
            raise PladError(f"{where}: no model folder, {what} is not there")
    if not _matching(names, "*.safetensors"):
        if pickled := _matching(names, "*.bin", "*.pt", "*.pth"):
            raise PladError(
                f"{where}: weights are pickled ({pickled[0]}), which can run code when loaded; convert them with "
                "save_pretrained (safetensors)"
            )
        raise PladError(f"{where}: no weights (*.safetensors) are there")


def _matching(names: list[str], *patterns: str) -> list[str]:
    return [name for pattern in patterns for name in names if "/" not in name and fnmatch(name, pattern)]


def _configured(model: Model) -> Policy:
    assert model.path is not None
    revision = commit(model)
    policy = Policy(
        base_place(model.path),
        None,
        revision,
        model.trust_remote_code,
        _base_hash(model.path, revision),
        _copies(model),
    )
    return policy if model.adapter is None else _with_adapter(policy, adapter_folder(model.adapter))


def _copies(model: Model) -> tuple[tuple[remote.RemoteFolder, str], ...]:
    checks = (("model.path", model.path, check_model_files), ("model.adapter", model.adapter, _check_adapter_files))
    found = [remote.folder(*each) for each in checks if each[1] is not None and remote.is_uri(each[1])]
    return tuple((folder, str(folder.local_folder())) for folder in found)


def _with_adapter(policy: Policy | None, folder: Path) -> Policy:
    """Put an adapter on the base; ours records the base's hash, a foreign one only its name."""
    if policy is None:
        raise PladError(f"adapter {folder} needs a base, but a model made from scratch has none before its SFT stage")
    config = json.loads((folder / "adapter_config.json").read_text())
    note = folder / NOTE
    recorded = json.loads(note.read_text())["base_hash"] if note.is_file() else None
    same = _same_base(config, policy) if recorded is None else recorded == policy.base_hash
    if not same:
        raise PladError(
            f"adapter {folder} is an adapter for another base: it was trained on "
            f"{config.get('base_model_name_or_path')} (revision {config.get('revision') or 'not recorded'}), "
            f"not on {policy.base}"
        )
    return replace(policy, adapter=str(folder))


def _same_base(config: dict[str, Any], policy: Policy) -> bool:
    recorded, revision = config.get("base_model_name_or_path") or "", config.get("revision")
    if Path(recorded).is_dir() and Path(policy.base).is_dir():
        return model_hash(Path(recorded)) == policy.base_hash
    if revision and policy.revision and len(revision) == 40 and revision != policy.revision:
        return False
    return Path(recorded).name.lower() == Path(policy.base).name.lower()


def adapter_folder(adapter: str) -> Path:
    """The local folder of ``model.adapter``, of a URI this machine's copy. Raises PladError, before anything is copied, when
    it is no PEFT adapter in safetensors."""
    if remote.is_uri(adapter):
        return remote.folder("model.adapter", adapter, _check_adapter_files).local_folder()
    folder = Path(adapter).expanduser().resolve()
    _check_adapter_files(f"model.adapter {adapter}", [p.name for p in folder.glob("*")])
    return folder


def _check_adapter_files(where: str, names: list[str]) -> None:
    if "adapter_config.json" not in names:
        raise PladError(f"{where}: no PEFT adapter folder (adapter_config.json is not there)")
    if "adapter_model.safetensors" not in names:
        raise PladError(
            f"{where}: adapter_model.safetensors is not there; a pickled adapter_model.bin can run code when loaded: load "
            "it where you trust it and save it again with save_pretrained"
        )


def _base_hash(path: str, revision: str | None) -> str:
    folder = Path(base_place(path))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise PladError(f"model.path {path}: no model folder (config.json is not there)")
        return model_hash(folder)
    return f"{path}@{_hub_commit(path, revision)}"


@lru_cache(maxsize=64)
def _model_hash(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    return fingerprint({name: hash_path(folder / name) for name, _, _ in stamp})


@lru_cache(maxsize=64)
def _hub_commit(path: str, revision: str | None) -> str:
    """The commit that a hub id stands for; offline the local cache answers (files lie under snapshots/<commit>)."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if path.count("/") > 1 or path.startswith((".", "/", "~")):
        raise PladError(f"model.path {path}: no such folder")
    try:
        file = hf_hub_download(path, "config.json", revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise PladError(
            f"model.path {path} (revision {revision or 'main'}): neither a local folder nor a model that the Hub or "
            f"its local cache has: {str(error).splitlines()[0]}"
        ) from None
    return Path(file).parent.name
