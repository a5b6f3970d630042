"""From values to manifests: one Jinja template, and the few things that are worked out for it."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import yaml

from plad_ray.config import Experiment, parse
from plad_ray.config.loading import read
from plad_ray.errors import PladError
from plad_ray.manifest import checks
from plad_ray.manifest.values import Claim, Group, Node, Values, load

ENTRYPOINT = f"plad run {checks.EXPERIMENT}"
#: what a spot node has left when its pods are told: clouds give half a minute or more
NOTICE_SECONDS = 25


def manifest(file: Path, overrides: tuple[str, ...] = ()) -> str:
    """The manifests of a values file as YAML documents.

    Raises PladError for values that are wrong, for an experiment that is, and when the two do not fit.
    """
    values = load(file, overrides)
    raw, experiment = _experiment(file, values)
    text = render(values, raw)
    found = checks.problems([d for d in yaml.safe_load_all(text) if d], experiment, values)
    if found:
        raise PladError(f"{file}: the manifest would not do:\n" + "\n".join(f"  {problem}" for problem in found))
    return text


def render(values: Values, experiment: dict[str, Any]) -> str:
    """The template filled in; ``experiment`` is the mapping that the job reads."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plad_ray.manifest", "."), undefined=jinja2.StrictUndefined, autoescape=False
    )
    return (
        environment.get_template("kuberay.yaml.j2").render(
            v=values,
            job=values.kind == "RayJob",
            claim=isinstance(values.store, Claim),
            image=image_name(values),
            ray_version=ray_version(),
            entrypoint=ENTRYPOINT,
            experiment=yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True, width=120).strip(),
            tolerated=lambda node: tolerations(node, values.spot_taints),
            notice_seconds=NOTICE_SECONDS,
        )
        + "\n"
    )


def image_name(values: Values) -> str:
    digest = f"@{values.image.digest}" if values.image.digest else ""
    return f"{values.image.repository}:{tag(values.image.variant)}{digest}"


def tag(variant: str) -> str:
    """``<plad_ray>-ray<Ray>-<variant>``: an image is named by what is in it."""
    return f"{metadata.version('plad-ray')}-ray{ray_version()}-{variant}"


def ray_version() -> str:
    """The version that the package pins, which the image therefore has."""
    [pin] = [r for r in metadata.requires("plad-ray") or [] if re.match(r"ray\[", r)]
    found = re.search(r"==([\d.]+)", pin)
    assert found is not None, pin
    return found[1]


def tolerations(node: Node, spot_taints: tuple[str, ...]) -> list[dict[str, str]]:
    """Those given, those of spot nodes, and the one that clouds put on nodes with GPUs."""
    found = list(node.tolerations)
    if isinstance(node, Group) and node.gpus:
        found.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if isinstance(node, Group) and node.spot:
        found += [{"key": taint, "operator": "Exists", "effect": "NoSchedule"} for taint in spot_taints]
    return found


def _experiment(file: Path, values: Values) -> tuple[dict[str, Any], Experiment]:
    """What the job reads, overrides and store in it, as a mapping and validated."""
    where = file.parent / values.experiment
    raw = read(where, (*values.overrides, f"runtime.store={values.store.uri}"))
    return raw, parse(raw, str(where))
