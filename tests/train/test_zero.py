"""ZeRO 0–3 × LoRA give one training run; what is saved loads as it was; checkpoints go from any stage to any stage."""

from __future__ import annotations

import pytest
import torch
from train_jobs import column, distill_job, session

from plad_ray.config import Model
from plad_ray.models.load import load_model
from plad_ray.models.policy import resolve
from tests.conftest import save_tiny_model

pytestmark = pytest.mark.usefixtures("gloo")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_llama, gloo):
    """An unbroken run with ZeRO 0, its checkpoint after step 3 and its adapter's logits."""
    from plad_ray.artifacts import Store

    folder = tmp_path_factory.mktemp("zero")
    job = distill_job(Store(str(folder / "store")), tiny_llama, train={"checkpoint_every": 3})
    lines = session(job, keep=folder)
    return lines, folder, logits(job, tiny_llama)


def logits(job, base):
    policy = resolve(Model(path=str(base)), job.out)
    ids = torch.arange(3, 23).view(2, 10)
    with torch.no_grad():
        return load_model(policy)(input_ids=ids).logits


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_same_curve_and_same_adapter_in_every_stage(stage, reference, store, tiny_llama):
    lines, _, expected = reference
    job = distill_job(store, tiny_llama, train={"zero_stage": stage})
    got = session(job)
    for name in ("loss", "grad_norm", "rewards/margins", "num_tokens"):
        torch.testing.assert_close(column(got, name), column(lines, name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(job, tiny_llama), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stage", "saving"), [(2, False), (3, False), (3, True)])
def test_both_layouts_give_one_run(stage, saving, reference, store, tiny_llama):
    """The reference shares prompts; the run here does not. ``saving``: gradient checkpointing."""
    lines, _, expected = reference
    train = {"zero_stage": stage, "layout": "concatenated", "gradient_checkpointing": saving, "micro_batch": 8}
    job = distill_job(store, tiny_llama, train=train)
    got = session(job)
    for name in ("loss", "grad_norm", "rewards/margins", "num_tokens"):
        torch.testing.assert_close(column(got, name), column(lines, name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(job, tiny_llama), expected, rtol=1e-5, atol=1e-5)


#: Llama is every other test's; windows are shorter than the rows, and dropout would be drawn per token laid down.
FAMILIES = {
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "phi3": {"sliding_window": 4},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0},
    "gpt_neox": {},
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"head_dim": 32, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_shared_prompts_under_zero_give_the_plain_run_of_every_family(model_type, store, tmp_path):
    base = save_tiny_model(tmp_path / "model", model_type, **FAMILIES[model_type])
    lora = {"r": 4, "dropout": 0.0, "target_modules": "all-linear"}

    def trained(layout, stage):
        job = distill_job(store, base, f"{layout}-{stage}", {"zero_stage": stage, "layout": layout}, lora=lora)
        return session(job), logits(job, base)

    plain, expected = trained("concatenated", 0)
    for stage in (2, 3):
        shared, found = trained("shared", stage)
        for name in ("loss", "grad_norm", "rewards/margins", "num_tokens"):
            got, wanted = column(shared, name), column(plain, name)
            torch.testing.assert_close(got[:3], wanted[:3], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(
                got, wanted, rtol=2e-4, atol=1e-5
            )  # AdamW makes rounding of small gradients larger
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=5e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_gradient_checkpointing_of_shared_prompts(stage, reference, store, tiny_llama):
    train = {"zero_stage": stage, "layout": "shared", "gradient_checkpointing": True}
    got = session(distill_job(store, tiny_llama, train=train))
    torch.testing.assert_close(column(got), column(reference[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_from_another_stages_checkpoint(stage, reference, store, tiny_llama):
    lines, folder, expected = reference
    job = distill_job(store, tiny_llama, train={"zero_stage": stage})
    got = session(job, resume=folder / "3")
    assert [line["step"] for line in got] == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(column(got), column(lines), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(job, tiny_llama), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stage", "offload"), [(2, "none"), (3, "all")])
def test_bfloat16_resumes_from_fp32_masters(stage, offload, store, tiny_llama, tmp_path):
    """What GPUs run: live weights in bf16, masters and moments in fp32; the checkpoint keeps the masters."""
    train = {"zero_stage": stage, "offload": offload, "checkpoint_every": 3}
    jobs = [distill_job(store, tiny_llama, name=name, train=train) for name in ("unbroken", "resumed")]
    for job in jobs:
        job.config["model"]["dtype"] = "bfloat16"
    lines = session(jobs[0], keep=tmp_path)
    assert column(session(jobs[1], resume=tmp_path / "3")).tolist() == pytest.approx(column(lines).tolist(), abs=1e-6)
    assert load_model(resolve(Model(path=str(tiny_llama)), jobs[0].out)).dtype == torch.float32


def test_the_run_changed_the_model(reference, tiny_llama):
    _, _, trained = reference
    base = resolve(Model(path=str(tiny_llama)))
    with torch.no_grad():
        untrained = load_model(base)(input_ids=torch.arange(3, 23).view(2, 10)).logits
    assert (trained - untrained).abs().max() > 0.1
