"""vLLM serves averaged adapters, of twice the rank where the start had one too, beside the adapters they come from."""

from __future__ import annotations

import pytest

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Model, Runtime
from plad_ray.generate import run as generate_run
from plad_ray.merge import lora, stage
from plad_ray.stages import Job
from tests.generate.generate_jobs import draw, make_job, policy, prompt_rows, prompts_artifact
from tests.merge.ends import adapter_artifact, make_end


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_and_transformers_agree_about_averaged_adapters(tmp_path, base, ray_session):
    """The stage's own verification compares log-probs. Rank 12 is none of vLLM's own: it is served as 16."""
    store = Store(str(tmp_path / "runs"))
    ends = {n: make_end(base, tmp_path / n, seed=i, r=6) for i, n in enumerate(("start", "distilled"), 1)}
    start, distilled = (adapter_artifact(store, name, folder) for name, folder in ends.items())
    config = {"model": Model(path=str(base)).model_dump(mode="json"), "averaging": {"base_weight": 0.4}, "seed": 0}
    made = {}
    for name, inputs in (("fresh", {}), ("continued", {"start/0": start})):
        job = Job("average", config, {"distilled": distilled, **inputs}, Artifact(store, name), Runtime())
        stage.run(job)
        made[name] = job.out
    assert [lora.read(out.local_folder()).config["r"] for out in made.values()] == [6, 12]
    draws = [draw(temperatures=(0.8,))]
    policies = {name: policy(base, "student", "vllm", draws) for name in (*made, "distilled")}
    served = {f"{name}/0": artifact for name, artifact in (made | {"distilled": distilled}).items()}
    asked = make_job(store, policies, {"prompts": prompts_artifact(store, prompt_rows(8)), **served})
    outcome = generate_run.run(asked)
    for name in policies:
        found = outcome.metrics["verified"][name]
        assert found["max"] < 1e-3 < found["effect"], name
