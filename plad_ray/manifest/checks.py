"""What a rendered manifest must hold, beyond what the schemas of Kubernetes and KubeRay know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from plad_ray.config import Experiment, parse
from plad_ray.env import PLAIN, SECRET
from plad_ray.errors import PladError
from plad_ray.manifest.quantity import in_bytes
from plad_ray.manifest.values import Values
from plad_ray.placement import Node, asked, fits

EXPERIMENT = "/etc/plad/experiment.yaml"
#: what keys of known services look like
KEY = re.compile(r"\b(sk-[\w-]{8,}|hf_\w{8,}|AKIA[0-9A-Z]{12,}|gh[pousr]_\w{16,}|AIza[\w-]{20,}|eyJ[\w-]{20,}\.)")
GPU = "nvidia.com/gpu"
QUEUE = "kueue.x-k8s.io/queue-name"

Document = dict[str, Any]


def problems(documents: list[Document], exp: Experiment, values: Values) -> list[str]:
    """Everything that is wrong, one line each; empty when the manifest will do."""
    ray = [d for d in documents if d.get("kind") in ("RayJob", "RayCluster")]
    if len(ray) != 1:
        return [f"{len(ray)} documents of kind RayJob or RayCluster, where one is right"]
    found: list[str] = []
    for check in (versions, privileges, files, requests, secrets, shape, network, replicas):
        found += check(documents)
    found += taints(documents, values)
    return [*found, *job(documents, exp), *accelerators(documents, exp), *keys(documents, exp)]


def versions(documents: list[Document]) -> Iterator[str]:
    """One image, whose tag has the Ray version that the package pins and the manifest says."""
    from plad_ray.manifest.render import ray_version

    said = _cluster(documents)["rayVersion"]
    if said != ray_version():
        yield f"rayVersion {said}, and the package pins {ray_version()}"
    images = {container["image"] for _, pod in _pods(documents) for container in pod["containers"]}
    if len(images) > 1:
        yield f"several images: {', '.join(sorted(images))}"
    for image in images:
        tag = image.partition("@")[0].rpartition(":")[2]
        if f"-ray{said}-" not in tag:
            yield f"image {image}: its tag does not name Ray {said}"


def privileges(documents: list[Document]) -> Iterator[str]:
    """Not root, nothing privileged, nothing of the node."""
    for where, pod in _pods(documents):
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            yield f"{where}: runs as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where}: seccompProfile is not RuntimeDefault"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(key):
                yield f"{where}: {key}"
        for volume in pod.get("volumes", []):
            if "hostPath" in volume:
                yield f"{where}: volume {volume['name']} is a path of the node"
    for where, container in _containers(documents):
        security = container.get("securityContext", {})
        if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: privileged, or may become so"
        if security.get("capabilities", {}).get("drop") != ["ALL"] or security.get("capabilities", {}).get("add"):
            yield f"{where}: keeps capabilities"
        if security.get("readOnlyRootFilesystem") is not True:
            yield f"{where}: may write to its image"


def files(documents: list[Document]) -> Iterator[str]:
    """Where Ray, vLLM and the hub write there is a volume, and every mount has one; workers have room in /dev/shm."""
    for where, pod in _pods(documents):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            mounts = {m["mountPath"]: m["name"] for m in container.get("volumeMounts", [])}
            for path, name in mounts.items():
                if name not in volumes:
                    yield f"{where}: {path} mounts {name}, which is no volume"
            for path in ("/tmp", "/home/ray"):
                if path not in mounts:
                    yield f"{where}: nothing can be written to {path}"
            if where == "submitter":
                continue
            shm = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
            if shm.get("medium") != "Memory":
                yield f"{where}: /dev/shm is not in memory"
            elif in_bytes(shm["sizeLimit"]) > in_bytes(container["resources"]["limits"]["memory"]) / 2:
                yield f"{where}: /dev/shm takes more than half of the memory"


def requests(documents: list[Document]) -> Iterator[str]:
    """Requests and limits of every container: without them a queue cannot count, and a node kills at will."""
    for where, container in _containers(documents):
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            for name in ("cpu", "memory", "ephemeral-storage"):
                if name not in resources.get(kind, {}):
                    yield f"{where}: no {kind} of {name}"


def secrets(documents: list[Document]) -> Iterator[str]:
    """Variables that hold a secret refer to one, and nothing anywhere looks like a key."""
    for where, container in _containers(documents):
        for variable in container.get("env", []):
            name = variable["name"]
            if "value" in variable and SECRET.search(name) and name not in PLAIN:
                yield f"{where}: {name} is written out; name a Kubernetes Secret under secrets instead"
    for found in KEY.findall(yaml.safe_dump_all(documents)):
        yield f"something that looks like a key is written out: {found[:5]}…"


def shape(documents: list[Document]) -> Iterator[str]:
    """Token authentication, autoscaler v2, no work on the head."""
    cluster = _cluster(documents)
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token: whoever reaches the head can run code"
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head takes work (rayStartParams num-cpus is not 0), and a full head ends the run"
    if cluster.get("enableInTreeAutoscaling") and cluster.get("autoscalerOptions", {}).get("version") != "v2":
        yield "autoscalerOptions.version is not v2"


def taints(documents: list[Document], values: Values) -> Iterator[str]:
    """The head and the submitter are on nodes that stay; workers may be on nodes with GPUs and spot nodes as they ask."""
    for where, pod in _pods(documents):
        tolerated = {toleration.get("key") for toleration in pod.get("tolerations", [])}
        if where in ("head", "submitter"):
            if tolerated.intersection(values.spot_taints):
                yield f"{where}: tolerates spot nodes, and losing it loses the run"
            continue
        needed = set(values.spot_taints) if values.groups[where].spot else set()
        if GPU in pod["containers"][0]["resources"]["limits"]:
            needed.add(GPU)
        for taint in sorted(needed - tolerated):
            yield f"{where}: does not tolerate {taint}, which keeps it off the nodes it is for"


def network(documents: list[Document]) -> Iterator[str]:
    """A network policy that selects every pod and lets in its own and the operator only."""
    policies = [d["spec"] for d in documents if d.get("kind") == "NetworkPolicy"]
    if not policies:
        yield "no NetworkPolicy"
    for policy in policies:
        selected = policy["podSelector"].get("matchLabels", {})
        for where, labels in _labels(documents):
            if not selected.items() <= labels.items():
                yield f"{where}: not selected by the NetworkPolicy"
        if set(policy.get("policyTypes", [])) != {"Ingress", "Egress"}:
            yield "the NetworkPolicy does not cover both directions"
        if any(not rule.get("from") for rule in policy.get("ingress", [])):
            yield "the NetworkPolicy lets anybody in"


def replicas(documents: list[Document]) -> Iterator[str]:
    """Least ≤ wanted ≤ most; with a queue all three are one, and nothing scales."""
    queued, cluster = QUEUE in _ray(documents)["metadata"].get("labels", {}), _cluster(documents)
    if queued and cluster.get("enableInTreeAutoscaling"):
        yield "Kueue admits a fixed number of pods; the autoscaler must be off"
    for group in cluster["workerGroupSpecs"]:
        least, wanted, most = (group[key] for key in ("minReplicas", "replicas", "maxReplicas"))
        if not 0 <= least <= wanted <= most or most == 0:
            yield f"{group['groupName']}: replicas {wanted} are not within {least} to {most}"
        if queued and not least == wanted == most:
            yield f"{group['groupName']}: replicas must be fixed for Kueue, not {least} to {most}"


def job(documents: list[Document], exp: Experiment) -> Iterator[str]:
    """A job that may start again, and that runs the experiment it was made for."""
    ray = _ray(documents)
    if ray["kind"] != "RayJob":
        return
    spec = ray["spec"]
    if spec.get("submissionMode") != "K8sJobMode":
        yield "submissionMode is not K8sJobMode"
    if not spec.get("backoffLimit"):
        yield "backoffLimit is 0: one lost head would end the run"
    if not spec.get("shutdownAfterJobFinishes") or not spec.get("ttlSecondsAfterFinished"):
        yield "the cluster of a finished job would stay, or go with its logs"
    if spec.get("entrypoint") != f"plad run {EXPERIMENT}":
        yield f"entrypoint {spec.get('entrypoint')!r} is not plad run {EXPERIMENT}"
    held = [d["data"]["experiment.yaml"] for d in documents if d.get("kind") == "ConfigMap"]
    try:
        same = [parse(yaml.safe_load(text)) for text in held] == [exp]
    except PladError:
        same = False
    if not same:
        yield "the ConfigMap does not hold the experiment"


def accelerators(documents: list[Document], exp: Experiment) -> Iterator[str]:
    """Every stage fits on the pods of all groups at their largest, and a kind of GPU that a group claims is selected."""
    pods: list[Node] = []
    for group in _cluster(documents)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        kind = next(
            (k.partition(":")[2] for k in group.get("resources", {}) if k.startswith("accelerator_type:")), None
        )
        if kind and not group["template"]["spec"].get("nodeSelector"):
            yield f"{group['groupName']}: nothing puts its pods on nodes with {kind} GPUs; set node_selector"
        pod = Node(group["groupName"], float(limits["cpu"]), float(limits.get(GPU, 0)), kind)
        pods += [pod] * group["maxReplicas"]
    yield from unplaced(pods, exp)


def unplaced(pods: list[Node], exp: Experiment) -> Iterator[str]:
    """What has no room, stage by stage: generation has its engines up together, training its workers."""
    for fit in fits(pods, asked(exp)):
        if fit.missing:
            yield (
                f"{fit.stage}: {fit.missing} of {fit.wanted} × {fit.actor} of {fit.actor.key} have no place on the groups' "
                f"pods ({fit.why}); raise replicas, or lower {fit.actor.key}"
            )


def keys(documents: list[Document], exp: Experiment) -> Iterator[str]:
    """The key of a teacher behind an API is there on every Ray node, by reference."""
    if exp.teacher is None or exp.teacher.model.api is None:
        return
    api = exp.runtime.teacher.api
    variable = api.api_key_env if api is not None else "OPENAI_API_KEY"
    for where, pod in _pods(documents):
        names = {v["name"] for container in pod["containers"] for v in container.get("env", [])}
        if variable is not None and variable not in names and where != "submitter":
            yield f"{where}: {variable}, the key of the teacher's endpoint, is not among secrets"


def _ray(documents: list[Document]) -> Document:
    return next(d for d in documents if d.get("kind") in ("RayJob", "RayCluster"))


def _cluster(documents: list[Document]) -> Document:
    spec = _ray(documents)["spec"]
    return spec.get("rayClusterSpec", spec)


def _templates(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    spec, cluster = _ray(documents)["spec"], _cluster(documents)
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if "submitterPodTemplate" in spec:
        yield "submitter", spec["submitterPodTemplate"]


def _pods(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    for where, template in _templates(documents):
        yield where, template["spec"]


def _labels(documents: list[Document]) -> Iterator[tuple[str, dict[str, str]]]:
    for where, template in _templates(documents):
        yield where, template.get("metadata", {}).get("labels", {})


def _containers(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """All of them by name, the autoscaler's, which KubeRay adds to the head, too."""
    for where, pod in _pods(documents):
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            yield where, container
    if _cluster(documents).get("enableInTreeAutoscaling"):
        yield "autoscaler", _cluster(documents).get("autoscalerOptions", {})
