"""``plad merge``: a distilled student, as it is or averaged with its start, as a model or adapter folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from plad_ray import parts, preflight, running
from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Averaging, Experiment, overlay
from plad_ray.errors import PladError
from plad_ray.models.policy import holds_adapter
from plad_ray.pipeline import plan
from plad_ray.stages import Stage, check


def merge(exp: Experiment, arm: str, out: Path, asked: dict[str, Any], as_adapter: bool) -> Path:
    """Write the student of ``arm`` to the new folder ``out``: one plain model, or with ``as_adapter`` a PEFT adapter.

    ``asked`` is laid over the experiment's ``merge`` section; with neither nothing is averaged. Raises PladError for an arm
    that is not trained yet, and before any compute.
    """
    how = overlay(exp.merge or Averaging(), asked, "merge") if asked else exp.merge
    if arm not in exp.arms():
        raise PladError(f"--arm {arm}: no such training run; this experiment has {', '.join(exp.arms())}")
    if out.exists() and any(out.iterdir()):
        raise PladError(f"{out} is not empty; give a new folder to merge into")
    whole, store = plan(exp), Store(exp.runtime.store)
    distilled, tuned = whole.report.inputs[f"train/{arm}"], whole.stages.get("sft-student")
    if not distilled.artifact(store).finished:
        raise PladError(f"arm {arm} is not trained yet ({distilled.artifact(store).path}); run `plad run` first")
    if tuned is not None and not tuned.artifact(store).finished:
        raise PladError(
            f"the start of arm {arm} is unknown: {tuned.artifact(store).path} is gone, and with it the weights under the "
            "adapter; run `plad stage sft-student` to make them again"
        )
    starts = () if tuned is None else (tuned,)
    adapter = distilled.artifact(store)
    if not holds_adapter(adapter.local_folder()):
        raise PladError(
            f"arm {arm} was distilled with method full, so {adapter.path}/files is one plain model already: "
            "there is no adapter to merge or to average"
        )
    if how is not None:
        _check(exp, how, [stage.artifact(store) for stage in starts], adapter)
        adapter = _made(exp, parts.average(exp, arm, distilled, how, whole.stages["prompts"], starts), store)
    elif as_adapter:
        raise PladError(f"--adapter without averaging: the adapter of arm {arm} lies at {adapter.path}/files already")
    if as_adapter:
        return Path(shutil.copytree(adapter.local_folder(), out, dirs_exist_ok=True))
    from plad_ray.merge.base import merge_adapter
    from plad_ray.models.policy import resolve

    policy = resolve(exp.student.model, *(stage.artifact(store) for stage in starts), adapter)
    return merge_adapter(policy, out, exp.student.model.dtype)


def _check(exp: Experiment, how: Averaging, starts: list[Artifact], distilled: Artifact) -> None:
    """PladError for ends or layers that cannot be averaged so, before the student is asked for text."""
    from plad_ray.merge.stage import read_ends, runs_of
    from plad_ray.merge.weights import layers_of
    from plad_ray.models.policy import resolve

    model = exp.student.model
    _, adapter = read_ends(resolve(model, *starts), resolve(model, *starts, distilled))
    runs_of(len(layers_of(adapter.modules)), how)


def _made(exp: Experiment, stage: Stage, store: Store) -> Artifact:
    todo = check([stage], store)
    preflight.check(exp, todo)
    running.run_stages(exp, [stage], todo, store, running.make_console(), verbose=False)
    return stage.artifact(store)
