"""``plad push``: an adapter and its pairs, each with its card, to a Hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Experiment
from plad_ray.errors import PladError
from plad_ray.export import cards
from plad_ray.export.pairs import check_arm, finished_pairs, has_pairs
from plad_ray.models.policy import NOTE
from plad_ray.pipeline import plan


@dataclass(frozen=True)
class Upload:
    """One repository and the folder that becomes its content."""

    repo: str
    kind: str  # model | dataset
    folder: Path

    def files(self) -> dict[str, int]:
        """Sizes in bytes by name."""
        found = sorted(p for p in self.folder.rglob("*") if p.is_file())
        return {p.relative_to(self.folder).as_posix(): p.stat().st_size for p in found}


def push(exp: Experiment, arm: str, repo: str, private: bool, dry_run: bool) -> list[str]:
    """Upload the adapter of ``arm`` to ``repo`` and its pairs, where it has any, to ``<repo>-pairs``; returns what to tell.

    The Hub is HF_ENDPOINT, the token HF_TOKEN, both from the environment. Raises PladError before anything is uploaded for a
    run that is not finished or a missing token, and for what the Hub refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise PladError(f"--repo {repo}: write it as organisation/name")
    token = os.environ.get("HF_TOKEN")
    if not token and not dry_run:
        raise PladError(
            "HF_TOKEN is not set: put a token that may write to the Hub there, or look first with --dry-run"
        )
    with tempfile.TemporaryDirectory(prefix="plad-push-") as folder:
        uploads = stage(exp, arm, repo, Path(folder))
        told = [line for upload in uploads for line in _told(upload)]
        if dry_run:
            return ["nothing is uploaded (--dry-run); this would be:", *told]
        api = HfApi(token=token)
        for upload in uploads:
            try:
                api.create_repo(upload.repo, repo_type=upload.kind, private=private, exist_ok=True)
                message = f"{exp.name}, arm {arm}"
                api.upload_folder(
                    repo_id=upload.repo, repo_type=upload.kind, folder_path=upload.folder, commit_message=message
                )
            except OfflineModeIsEnabled:
                raise PladError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it") from None
            except HfHubHTTPError as error:
                first = str(error).strip().splitlines()[0]
                raise PladError(f"{api.endpoint} refused {upload.kind} {upload.repo}: {first}") from None
            except httpx.HTTPError as error:
                raise PladError(f"{api.endpoint} (HF_ENDPOINT) does not answer: {error}") from None
        return told


def stage(exp: Experiment, arm: str, repo: str, folder: Path) -> list[Upload]:
    """The folders to upload, under ``folder``."""
    whole, store = plan(exp), Store(exp.runtime.store)
    check_arm(exp, arm)
    adapter = whole.report.inputs[f"train/{arm}"].artifact(store)
    if not adapter.finished:
        raise PladError(f"arm {arm} is not trained yet ({adapter.path}); run `plad run` first")
    evaluation = whole.stages["evaluate"].artifact(store)
    pairs = finished_pairs(exp, arm, whole, store) if has_pairs(whole, arm) else None
    pairs_repo = f"{repo}-pairs" if pairs else None
    card = cards.model_card(exp, repo, pairs_repo, arm, adapter, evaluation if evaluation.finished else None)
    uploads = [_model(adapter, folder / "model", card, repo, cards.base_is_local(exp), cards.named(exp.student.model))]
    if pairs and pairs_repo:
        card = cards.dataset_card(exp, repo, pairs_repo, pairs)
        uploads.append(_dataset(pairs, folder / "pairs", card, pairs_repo))
    return uploads


def _model(adapter: Artifact, folder: Path, card: str, repo: str, local: bool, base: str) -> Upload:
    # the note beside the weights names folders of this machine
    shutil.copytree(adapter.local_folder(), folder, ignore=lambda _, names: {NOTE} & set(names))
    (folder / "README.md").write_text(card, encoding="utf-8")
    config = folder / "adapter_config.json"
    if local and config.exists():  # a path of this machine means nothing elsewhere
        settings = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
        config.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return Upload(repo, "model", folder)


def _dataset(pairs: Artifact, folder: Path, card: str, repo: str) -> Upload:
    names = sorted(n for n in pairs.store.files(pairs.file("rows")) if n.endswith(".parquet"))
    (folder / "data").mkdir(parents=True)
    for i, name in enumerate(names):
        content = pairs.store.read_bytes(pairs.file(f"rows/{name}"))
        (folder / "data" / f"train-{i:05}-of-{len(names):05}.parquet").write_bytes(content)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return Upload(repo, "dataset", folder)


def _told(upload: Upload) -> list[str]:
    return [f"{upload.kind} {upload.repo}", *(f"  {name}  {size:,} bytes" for name, size in upload.files().items())]
