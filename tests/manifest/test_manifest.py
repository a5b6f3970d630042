"""KubeRay manifests: every variant is valid, and one field changed is found."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from plad_ray import config
from plad_ray.cli import app
from plad_ray.errors import PladError
from plad_ray.manifest import values
from plad_ray.manifest.checks import problems, unplaced
from plad_ray.manifest.render import image_name, manifest, ray_version
from plad_ray.placement import Node
from tests.conftest import SHARED

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster/kuberay"
VALUES = FOLDER / "values.yaml"
OPTIONS = (
    "monitoring_namespace=monitoring",
    "image.pull_secrets=[one, two]",
    f"image.digest=sha256:{'0' * 64}",
    "head.node_selector={pool: stays}",
    "head.tolerations=[{key: stays, operator: Exists}]",
)
STORES = [
    ("store={uri: 's3://bucket/plad'}",),
    ("store={claim: plad, size: 500Gi}",),
    ("store={claim: there-already}",),
    ("store={uri: 'gs://bucket/plad'}", *OPTIONS),
    ("store={claim: plad, size: 1Ti, storage_class: nfs}", *OPTIONS),
]
#: of the environment that the tests run in
SECRETS = ("PLAD_TEST_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")
VARIANTS = [
    (file.name, (f"kind={kind}", f"queue={queue}", *store))
    for file, kind, queue, store in itertools.product(
        sorted(FOLDER.glob("*.yaml")), ("RayJob", "RayCluster"), ("null", "gpu-queue"), STORES
    )
]


def documents(name: str = "values.yaml", overrides: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(manifest(FOLDER / name, overrides)) if d]


def experiment(*overrides: str, file: str = "jobs/tldr_llama2.yaml") -> config.Experiment:
    v = values.load(VALUES)
    return config.load(ROOT / file, [*v.overrides, f"runtime.store={v.store.uri}", *overrides])


@pytest.mark.parametrize("name, overrides", VARIANTS, ids=str)
def test_every_variant_fits_the_schemas_of_kuberay(name: str, overrides: tuple[str, ...], validate):
    found = documents(name, overrides)
    kinds = [d["kind"] for d in found]
    ray = next(d for d in found if d["apiVersion"] == "ray.io/v1")
    assert [e.message for e in validate(ray)] == []
    assert ("ConfigMap" in kinds) == (ray["kind"] == "RayJob")
    assert ("PersistentVolumeClaim" in kinds) == ("size" in overrides[2])


@pytest.mark.parametrize("name, overrides", VARIANTS, ids=str)
def test_no_variant_holds_the_value_of_a_secret(name: str, overrides: tuple[str, ...], monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-hub-5d03")
    refer = ", ".join(f"{variable}: {{name: plad-keys, key: {variable}}}" for variable in SECRETS)
    text = manifest(FOLDER / name, (*overrides, f"secrets={{{refer}}}"))
    assert [v for v in SECRETS if v not in text or os.environ[v] in text] == []


def test_pull_secrets_are_those_of_every_pod_and_prometheus_is_let_in():
    found = documents(overrides=OPTIONS)
    pods = [ray(found)["submitterPodTemplate"]["spec"], pod(found, "head"), pod(found, "train")]
    assert all(p["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}] for p in pods)
    scraper = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert {"from": [scraper], "ports": [{"protocol": "TCP", "port": 8080}]} in policy(found)["ingress"]


def test_the_schemas_see_a_misspelt_field(validate):
    ray = next(d for d in documents() if d["kind"] == "RayJob")
    ray["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    assert any("minReplica" in error.message for error in validate(ray))


def test_a_job_runs_the_experiment_from_its_config_map_with_the_overrides_in_it():
    maps = next(d for d in documents() if d["kind"] == "ConfigMap")
    read = config.parse(yaml.safe_load(maps["data"]["experiment.yaml"]))
    assert read.runtime.store == "s3://my-bucket/plad" and read.runtime.train.accelerator_type == "A100"
    assert read == experiment()


def test_the_image_is_named_by_what_is_in_it():
    v = values.load(VALUES)
    assert ray_version() in (ROOT / "pyproject.toml").read_text()
    assert image_name(v).endswith(f"-ray{ray_version()}-gpu")
    pinned = values.load(VALUES, ("image.digest=sha256:" + "0" * 64,))
    assert image_name(pinned) == image_name(v) + "@sha256:" + "0" * 64


def test_a_queue_fixes_the_numbers_of_pods():
    ray = next(d for d in documents(overrides=("queue=gpu-queue",)) if d["kind"] == "RayJob")
    cluster = ray["spec"]["rayClusterSpec"]
    assert ray["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu-queue"
    assert not cluster["enableInTreeAutoscaling"] and "autoscalerOptions" not in cluster
    assert {g["groupName"]: g["replicas"] for g in cluster["workerGroupSpecs"]}["student"] == 4


Change = Callable[[list[dict[str, Any]]], None]


def ray(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return next(d for d in documents if d["kind"] in ("RayJob", "RayCluster"))["spec"]


def cluster(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return ray(documents)["rayClusterSpec"]


def group(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(g for g in cluster(documents)["workerGroupSpecs"] if g["groupName"] == name)


def pod(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    if name == "head":
        return cluster(documents)["headGroupSpec"]["template"]["spec"]
    return group(documents, name)["template"]["spec"]


def container(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return pod(documents, name)["containers"][0]


def policy(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return next(d for d in documents if d["kind"] == "NetworkPolicy")["spec"]


def named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(i for i in items if i["name"] == name)


def other_image(d: list[dict[str, Any]]) -> None:
    container(d, "train")["image"] += "x"


CHANGES: dict[str, tuple[Change, str]] = {
    "Ray version": (lambda d: cluster(d).update(rayVersion="2.59.0"), "package pins"),
    "one image": (other_image, "several images"),
    "root": (lambda d: pod(d, "train")["securityContext"].update(runAsUser=0), "train: runs as root"),
    "seccomp": (lambda d: pod(d, "cpu")["securityContext"].pop("seccompProfile"), "cpu: seccompProfile"),
    "host network": (lambda d: pod(d, "head").update(hostNetwork=True), "head: hostNetwork"),
    "host path": (
        lambda d: pod(d, "cpu")["volumes"].append({"name": "all", "hostPath": {"path": "/"}}),
        "volume all is a path of the node",
    ),
    "privileged": (lambda d: container(d, "teacher")["securityContext"].update(privileged=True), "teacher: privileged"),
    "escalation": (
        lambda d: container(d, "head")["securityContext"].pop("allowPrivilegeEscalation"),
        "head: privileged, or may become so",
    ),
    "capabilities": (
        lambda d: container(d, "head")["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "keeps capabilities",
    ),
    "image written": (
        lambda d: container(d, "cpu")["securityContext"].update(readOnlyRootFilesystem=False),
        "may write to its image",
    ),
    "autoscaler hardened": (
        lambda d: cluster(d)["autoscalerOptions"]["securityContext"].update(privileged=True),
        "autoscaler: privileged",
    ),
    "scratch": (lambda d: container(d, "cpu")["volumeMounts"].pop(0), "nothing can be written to /tmp"),
    "volume": (lambda d: pod(d, "cpu")["volumes"].pop(1), "mounts home, which is no volume"),
    "shm in memory": (
        lambda d: named(pod(d, "train")["volumes"], "shm")["emptyDir"].pop("medium"),
        "train: /dev/shm is not in memory",
    ),
    "shm size": (
        lambda d: named(pod(d, "cpu")["volumes"], "shm")["emptyDir"].update(sizeLimit="40Gi"),
        "cpu: /dev/shm takes more than half",
    ),
    "requests": (lambda d: container(d, "train")["resources"]["requests"].pop("memory"), "no requests of memory"),
    "limits of the autoscaler": (
        lambda d: cluster(d)["autoscalerOptions"]["resources"]["limits"].pop("cpu"),
        "autoscaler: no limits of cpu",
    ),
    "literal secret": (
        lambda d: container(d, "head")["env"].append({"name": "OPENAI_API_KEY", "value": "abc"}),
        "OPENAI_API_KEY is written out",
    ),
    "key in disguise": (
        lambda d: container(d, "head")["env"].append({"name": "NOTE", "value": "sk-proj-abcdef123456"}),
        "looks like a key is written out: sk-pr",
    ),
    "authentication": (lambda d: cluster(d).update(authOptions={"mode": "disabled"}), "authOptions"),
    "work on the head": (
        lambda d: cluster(d)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
        "the head takes work",
    ),
    "autoscaler version": (lambda d: cluster(d)["autoscalerOptions"].update(version="v1"), "version is not v2"),
    "head on spot": (
        lambda d: pod(d, "head").update(tolerations=[{"key": "cloud.google.com/gke-spot", "operator": "Exists"}]),
        "head: tolerates spot",
    ),
    "spot taint": (
        lambda d: pod(d, "cpu")["tolerations"].pop(0),
        "cpu: does not tolerate cloud.google.com/gke-spot",
    ),
    "GPU taint": (lambda d: pod(d, "train")["tolerations"].pop(0), "train: does not tolerate nvidia.com/gpu"),
    "no network policy": (lambda d: d.remove(next(x for x in d if x["kind"] == "NetworkPolicy")), "no NetworkPolicy"),
    "policy of another": (
        lambda d: policy(d)["podSelector"]["matchLabels"].update({"app.kubernetes.io/instance": "x"}),
        "head: not selected",
    ),
    "policy open": (lambda d: policy(d)["ingress"].append({}), "lets anybody in"),
    "policy one way": (lambda d: policy(d).update(policyTypes=["Ingress"]), "both directions"),
    "replicas": (lambda d: group(d, "student").update(minReplicas=5), "student: replicas 0 are not within 5 to 4"),
    "submission": (lambda d: ray(d).update(submissionMode="HTTPMode"), "K8sJobMode"),
    "retries": (lambda d: ray(d).update(backoffLimit=0), "backoffLimit is 0"),
    "clean-up": (lambda d: ray(d).pop("ttlSecondsAfterFinished"), "would stay"),
    "entrypoint": (lambda d: ray(d).update(entrypoint="python train.py"), "entrypoint 'python train.py'"),
    "experiment": (
        lambda d: next(x for x in d if x["kind"] == "ConfigMap")["data"].update({"experiment.yaml": "name: x"}),
        "does not hold the experiment",
    ),
    "GPUs of a pod": (
        lambda d: container(d, "teacher")["resources"]["limits"].update({"nvidia.com/gpu": "1"}),
        "2 of 2 × (2 H100 GPUs, 4 CPUs) of runtime.teacher have no place",
    ),
    "GPUs in all": (lambda d: group(d, "student").update(maxReplicas=3), "1 of 4 × (1 L4 GPUs, 4 CPUs)"),
    "accelerator": (lambda d: group(d, "train").pop("resources"), "8 of 8 × (1 A100 GPUs, 4 CPUs)"),
    "GPUs of any kind": (
        lambda d: pod(d, "teacher").pop("nodeSelector"),
        "teacher: nothing puts its pods on nodes with H100 GPUs",
    ),
    "CPUs": (
        lambda d: container(d, "train")["resources"]["limits"].update(cpu="16"),
        "4 of 8 × (1 A100 GPUs, 4 CPUs) of runtime.train",
    ),
    "fixed numbers": (
        lambda d: next(x for x in d if x["kind"] == "RayJob")["metadata"]["labels"].update(
            {"kueue.x-k8s.io/queue-name": "q"}
        ),
        "the autoscaler must be off",
    ),
}


@pytest.fixture(scope="module")
def good() -> list[dict[str, Any]]:
    found = documents()
    assert problems(found, experiment(), values.load(VALUES)) == []
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_one_field_changed_is_found(change: str, good: list[dict[str, Any]]):
    changed = copy.deepcopy(good)
    mutate, message = CHANGES[change]
    mutate(changed)
    found = problems(changed, experiment(), values.load(VALUES))
    assert any(message in line for line in found), found


def test_the_key_of_an_api_teacher_must_be_among_the_secrets():
    ask = ("experiment=../../jobs/api_teacher.yaml", "overrides=[]", "groups.cpu.replicas=[0, 2]")
    with pytest.raises(PladError, match="OPENAI_API_KEY, the key of the teacher's endpoint, is not among secrets"):
        manifest(VALUES, ask)
    text = manifest(VALUES, (*ask, "secrets.OPENAI_API_KEY={name: plad-keys, key: openai}"))
    assert 'secretKeyRef: {name: plad-keys, key: "openai"}' in text


@pytest.mark.parametrize(
    "override, message",
    [
        ("groups.train.replica=[0, 1]", r"groups.train.replica: unknown key"),
        ("groups.train.replicas=[2, 1]", r"replicas \[2, 1\]: the least number of pods comes first"),
        ("groups.cpu.accelerator=H100", r"accelerator is set and gpus is 0"),
        ("store.uri=/local", r"store"),
        ("image.repository=UPPER", r"image.repository"),
        ("experiment=absent.yaml", r"no such experiment file"),
        ("overrides=[distil.epochs=1]", r"distil: unknown key"),
        ("overrides=[runtime.train.workers=99]", r"of 99 .* runtime.train have no place"),
        ("name=Upper_Case", r"name: "),
    ],
)
def test_wrong_values_are_refused_by_name(override: str, message: str):
    with pytest.raises(PladError, match=message):
        manifest(VALUES, (override,))


def test_a_pod_on_a_spot_node_says_that_it_has_to_go_as_rays_command_takes_it():
    from ray.scripts.scripts import cli as ray

    job = next(d for d in documents() if d["kind"] == "RayJob")
    groups = {g["groupName"]: g["template"]["spec"] for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    v = values.load(VALUES)
    for name, pod in groups.items():
        hook = pod["containers"][0].get("lifecycle")
        assert (hook is not None) == v.groups[name].spot
        if hook is not None:
            shell, flag, script = hook["preStop"]["exec"]["command"]
            command, slept = script.split(" && ")
            program, name, *options = shlex.split(command)
            parsed = ray.commands[name].make_context(name, options)
            assert (shell, flag, program) == ("sh", "-c", "ray")
            assert parsed.params["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
            seconds = parsed.params["deadline_remaining_seconds"]
            assert slept == f"sleep {seconds}" and seconds < pod["terminationGracePeriodSeconds"]


def test_fractions_of_a_gpu_share_one_and_roles_of_other_stages_do_not_add_up():
    exp = experiment(
        "runtime.teacher={gpus: 0.5, replicas: 2, cpus: 1}",
        "runtime.student={gpus: 0.5, replicas: 2, cpus: 1}",
        "runtime.train={workers: 2, gpus_per_worker: 1}",
    )
    assert list(unplaced([Node("one", 8, 2)], exp)) == []
    [generation, scoring, training] = unplaced([Node("one", 8, 1)], exp)
    assert "generation: 2 of 2" in generation and "training: 1 of 2" in training
    assert "scoring: 1 of 2" in scoring, "a reward model takes a whole GPU"


def test_the_command_prints_what_kubectl_takes():
    result = CliRunner().invoke(app, ["manifest", str(FOLDER / "demo.yaml")])
    assert result.exit_code == 0
    assert {d["kind"] for d in yaml.safe_load_all(result.stdout)} == {
        "PersistentVolumeClaim",
        "ConfigMap",
        "NetworkPolicy",
        "RayJob",
    }
    refused = CliRunner().invoke(app, ["manifest", str(FOLDER / "demo.yaml"), "groups.cpu.cpus=none"])
    assert refused.exit_code == 2 and "groups.cpu.cpus" in refused.output


@pytest.fixture(scope="module")
def validate() -> Callable[[dict[str, Any]], Any]:
    """KubeRay's own schemas; skips where they are not there."""
    file = SHARED / "schemas/validate.py"
    if not file.exists():
        pytest.skip(f"no schemas at {file.parent}")
    spec = importlib.util.spec_from_file_location("kuberay_schemas", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    schemas = functools.cache(module.schema)  # megabytes of YAML
    return lambda document: module.Draft7Validator(schemas(document["kind"])).iter_errors(document)
