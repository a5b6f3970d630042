"""Folding models and adapters into a policy; an adapter for another base is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Lora, Model, Scratch
from plad_ray.errors import PladError
from plad_ray.models.load import load_base, load_model, load_tokenizer
from plad_ray.models.policy import commit, identity, model_hash, resolve
from plad_ray.train.adapter import save_adapter, with_lora
from tests.conftest import save_tiny_model


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


def make_adapter(base, folder):
    """An adapter that acts (B is not 0), written the way training writes it."""
    policy = resolve(Model(path=str(base)))
    model = with_lora(load_base(policy), policy, Lora(r=4), seed=3)
    generator = torch.Generator().manual_seed(0)
    weights = {
        n: torch.randn(p.shape, generator=generator) * 0.1 for n, p in model.named_parameters() if p.requires_grad
    }
    save_adapter(model, weights, folder, load_tokenizer(policy), policy)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    return make_adapter(tiny_llama, tmp_path_factory.mktemp("adapter") / "files")


def artifact(store: Store, name: str, folder) -> Artifact:
    store.upload(folder, f"{name}/files")
    return Artifact(store, name)


def test_artifacts_fold_base_then_adapter(tiny_llama, other_base, adapter, tmp_path):
    store = Store(str(tmp_path))
    sft, tuned = (
        artifact(store, "sft-1", other_base),
        artifact(store, "distill-1", make_adapter(other_base, tmp_path / "a")),
    )
    policy = resolve(Model(path=str(tiny_llama), adapter=str(adapter)), sft, None, tuned)
    assert (policy.base, policy.adapter) == (str(sft.local_folder()), str(tuned.local_folder()))
    assert resolve(Model(path=str(tiny_llama), adapter=str(adapter)), sft).adapter is None, (
        "a new base clears the adapter"
    )
    assert resolve(Model(path=str(tiny_llama), adapter=str(adapter))).adapter == str(adapter)


def test_adapter_for_another_base_is_refused(other_base, adapter, tmp_path):
    with pytest.raises(PladError, match="is an adapter for another base"):
        resolve(Model(path=str(other_base), adapter=str(adapter)))
    with pytest.raises(PladError, match="is an adapter for another base"):
        resolve(Model(path=str(other_base)), artifact(Store(str(tmp_path)), "distill-1", adapter))


def test_the_same_base_in_another_folder_is_the_same_base(tiny_llama, adapter, tmp_path):
    moved = shutil.copytree(tiny_llama, tmp_path / "elsewhere" / "renamed")
    assert resolve(Model(path=str(moved), adapter=str(adapter))).adapter == str(adapter)


def test_a_foreign_adapter_is_judged_by_what_it_records(tiny_llama, other_base, adapter, tmp_path):
    """PEFT's own folder has no note of ours, only base_model_name_or_path."""
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    (foreign / "plad.json").unlink()
    assert resolve(Model(path=str(tiny_llama), adapter=str(foreign))).adapter == str(foreign)
    with pytest.raises(PladError, match="another base"):
        resolve(Model(path=str(other_base), adapter=str(foreign)))
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "someone/other-model"})
    )
    with pytest.raises(PladError, match="someone/other-model"):
        resolve(Model(path=str(tiny_llama), adapter=str(foreign)))


def test_hash_sees_a_changed_weight_and_not_the_notes(tiny_llama, tmp_path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    assert model_hash(copy) == model_hash(tiny_llama)
    (copy / "metrics.jsonl").write_text("{}")
    assert model_hash(copy) == model_hash(tiny_llama)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_hash(copy) != model_hash(tiny_llama)


def test_identity(tiny_llama, adapter):
    plain, tuned = identity(Model(path=str(tiny_llama))), identity(Model(path=str(tiny_llama), adapter=str(adapter)))
    assert plain["base"] == tuned["base"] == model_hash(tiny_llama) and "adapter" in tuned
    scratch = Scratch(config={"hidden_size": 64})
    assert identity(Model(scratch=scratch)) == {"scratch": scratch.model_dump(mode="json")}
    assert commit(Model(path=str(tiny_llama))) is None


@pytest.mark.parametrize("path", ["./no/such/folder", "nobody/no-such-model"])
def test_missing_model_is_named(path):
    with pytest.raises(PladError, match=path.split("/")[-1]):
        identity(Model(path=path))


def test_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(PladError, match=r"config\.json is not there"):
        identity(Model(path=str(tmp_path)))
    with pytest.raises(PladError, match=r"adapter_config\.json is not there"):
        resolve(Model(path=str(save_tiny_model(tmp_path / "m")), adapter=str(tmp_path)))


@pytest.mark.parametrize("model_type", ["qwen2", "t5", "gpt_neo"])
def test_a_tokenizer_made_here_loads_as_it_was_whatever_the_model_type(tmp_path, model_type):
    """transformers 5.19 would make Qwen2's own out of it, which knows no word of ours."""
    policy = resolve(Model(path=str(save_tiny_model(tmp_path / "m", model_type))))
    assert load_tokenizer(policy)("w0 w7", add_special_tokens=False).input_ids == [3, 10]


def test_scratch_model_without_its_sft_artifact_is_refused():
    with pytest.raises(PladError, match="no weights before its SFT stage"):
        resolve(Model(scratch=Scratch(config={})))


def test_saved_adapter_is_plain_peft(tiny_llama, adapter):
    """PEFT itself loads the folder, and it acts."""
    from peft import PeftModel

    policy = resolve(Model(path=str(tiny_llama), adapter=str(adapter)))
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        ours = load_model(policy)(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(load_base(policy), str(adapter)).eval()(input_ids=ids).logits
        base = load_base(policy).eval()(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert (ours - base).abs().max() > 1e-3
    recorded = json.loads((adapter / "adapter_config.json").read_text())
    assert recorded["base_model_name_or_path"] == str(tiny_llama) and recorded["inference_mode"] is True
