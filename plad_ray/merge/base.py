"""Merge a policy's adapter into its base, on request (``plad merge``)."""

from __future__ import annotations

import json
from pathlib import Path

from plad_ray.errors import PladError
from plad_ray.models.load import load_model, load_tokenizer
from plad_ray.models.policy import NOTE, Policy


def merge_adapter(policy: Policy, out_folder: str | Path, dtype: str = "float32") -> Path:
    """Write base + adapter as one plain model folder and return it.

    Merged in ``dtype``: float32 keeps the logits to rounding, bfloat16 is what large models are usually kept in. Raises
    PladError when there is no adapter, or ``out_folder`` has something in it.
    """
    folder = Path(out_folder)
    if policy.adapter is None:
        raise PladError(f"{policy.base} has no adapter to merge")
    if folder.exists() and any(folder.iterdir()):
        raise PladError(f"{folder} is not empty; give a new folder to merge into")
    merged = load_model(policy, dtype).merge_and_unload()  # type: ignore[operator]
    merged.save_pretrained(folder)
    load_tokenizer(policy).save_pretrained(folder)
    note = {"merged_from": {"base": policy.base, "base_hash": policy.base_hash, "adapter": policy.adapter}}
    (folder / NOTE).write_text(json.dumps(note, indent=1, sort_keys=True))
    return folder
