"""Frozen models beside the student: values, gradients, memory, and that the student is left as it was."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plad_ray.config import Lora, Model
from plad_ray.models.load import load_base, load_model
from plad_ray.models.policy import Policy, resolve
from plad_ray.objectives import build
from plad_ray.train.adapter import with_lora
from plad_ray.train.frozen import FrozenModels, load_frozen, speaking
from plad_ray.train.layout import Row, concatenate
from plad_ray.train.logprobs import ResponseValues
from tests.conftest import save_tiny_model

V, CHUNKS, HIDDEN = 300, 6, 64


def adapted(policy: Policy, folder: Path, seed: int) -> Path:
    """An adapter folder on ``policy`` that changes the model."""
    model = with_lora(load_base(policy), policy, Lora(r=4), seed)
    torch.manual_seed(seed)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("frozen")
    base = save_tiny_model(folder / "base", vocab_size=V)
    policy = resolve(Model(path=str(base)))
    teacher = save_tiny_model(folder / "teacher", seed=1, vocab_size=V + 20)
    return {"base": base, "teacher": teacher, **{n: adapted(policy, folder / n, s) for n, s in (("a", 5), ("b", 6))}}


def student_of(folders: dict[str, Path], dropout: float = 0.0):
    policy = resolve(Model(path=str(folders["base"])))
    return with_lora(load_base(policy), policy, Lora(r=4, dropout=dropout), 3), policy


def batch_of(chunks: int = 1):
    rng = np.random.default_rng(0)

    def ids(n: int) -> np.ndarray:
        return rng.integers(3, V, n).astype(np.int32)

    rows = [Row(ids(3 + b), (ids(9), ids(4 + b)), (0.0, 0.0)) for b in range(4)]
    return concatenate(rows, 0, chunks)


def section(folders: dict[str, Path], adapter: str | None) -> tuple[Policy, Model]:
    model = Model(path=str(folders["base"]), adapter=None if adapter is None else str(folders[adapter]))
    return resolve(model), model


def test_adapters_on_the_students_base_equal_models_of_their_own(folders):
    """Values and gradients; the bare base counts as one of them."""
    policies = {"dpo": section(folders, "a"), "reverse_dpo": section(folders, None)}
    objective, found = build("aligndistil", {}), []
    for beside in (True, False):
        student, policy = student_of(folders)
        frozen = load_frozen(student, policy, policies)
        assert set(frozen.adapters) == set(policies) and not frozen.own
        if not beside:
            student, _ = student_of(folders)
            frozen = FrozenModels(own={n: load_model(p).requires_grad_(False) for n, (p, _) in policies.items()})
        values = ResponseValues(student, objective, frozen)(batch_of())
        values["weighted"].sum().backward()
        gradients = {n: p.grad for n, p in student.named_parameters() if p.requires_grad}
        assert gradients and all(".default." in name for name in gradients), "only the trained adapter is trained"
        found.append((values, gradients))
    for (values, gradients), (others, other_gradients) in [found]:
        assert (values["alpha"][batch_of().mask_BKT] > 0.01).all()
        for name in values:
            torch.testing.assert_close(values[name], others[name], rtol=1e-5, atol=1e-6)
        assert gradients.keys() == other_gradients.keys()
        for name in gradients:
            torch.testing.assert_close(gradients[name], other_gradients[name], rtol=1e-4, atol=1e-6)


def state(model) -> list:
    layers = [m for m in model.modules() if hasattr(m, "_active_adapter")]
    return [
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [(list(layer._active_adapter), layer._disable_adapters) for layer in layers],
    ]


@pytest.mark.parametrize("adapter", ["a", None])
def test_speaking_leaves_the_student_as_it_was(adapter, folders):
    student, policy = student_of(folders, dropout=0.5)
    load_frozen(student, policy, {"a": section(folders, "a")})
    student.train()
    before = state(student)
    ids = torch.arange(3, 13)[None]
    with speaking(student, adapter), torch.no_grad():
        assert not student.training
        said = student(input_ids=ids).logits
        with speaking(student):
            own = student(input_ids=ids).logits
        torch.testing.assert_close(student(input_ids=ids).logits, said, rtol=0, atol=0)
    assert state(student) == before
    with pytest.raises(ZeroDivisionError), speaking(student, adapter):
        raise ZeroDivisionError
    assert state(student) == before
    with torch.no_grad():
        alone = load_model(section(folders, adapter)[0])(input_ids=ids).logits
        untrained = load_model(section(folders, None)[0])(input_ids=ids).logits
    torch.testing.assert_close(said, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own, untrained, rtol=1e-5, atol=1e-5)  # LoRA's B is 0


def test_a_frozen_model_that_is_trained_with_the_head_is_refused(folders):
    from plad_ray.errors import PladError

    policy = resolve(Model(path=str(folders["base"])))
    student = with_lora(load_base(policy), policy, Lora(r=4, target_modules=("q_proj", "lm_head")), 3)
    with pytest.raises(PladError, match="LM head"):
        load_frozen(student, policy, {"reference": section(folders, None)})


class Largest(TorchDispatchMode):
    """Elements of the largest tensor with a vocabulary axis that is made, views of LM head weights [H, V] aside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            logits = isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] in (V, V + 20)
            if logits and tensor.shape[0] != HIDDEN:
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("name", ["kd", "fdistill", "minillm", "gkd"])
def test_no_logits_of_all_positions_in_forward_or_backward(name, folders):
    """Neither model's: at most one chunk × vocabulary at a time, and nothing of that size is kept for backward."""
    student, _ = student_of(folders)
    teacher = load_model(resolve(Model(path=str(folders["teacher"])))).requires_grad_(False)
    module = ResponseValues(student, build(name, {}), FrozenModels(own={"teacher": teacher}))
    batch = batch_of(CHUNKS)
    positions = len(batch.target_N)
    chunk = -(-positions // CHUNKS) * (V + 20)
    assert chunk < 0.3 * positions * V and positions != HIDDEN
    weights = {p.data_ptr() for p in module.parameters()}
    saved = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held = tensor.detach()  # an output that is saved with its graph would keep itself alive
        if tensor.data_ptr() not in weights:
            saved.append(weakref.ref(held))
        return held

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            values = module(batch)
        kept = [tensor for tensor in (reference() for reference in saved) if tensor is not None]
        logits = [t for t in kept if t.dim() > 1 and t.shape[-1] >= V]
        torch.stack([v.sum() for v in values.values() if v.requires_grad]).sum().backward()
    assert 0 < largest.elements <= chunk
    assert kept and not logits


@pytest.mark.parametrize("chunks", [1, CHUNKS])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradient_against_unchunked_float64(beta, chunks, folders):
    """JSD_β of full float64 logits of the same weights, over the 300 ids both models have."""
    student, _ = student_of(folders)
    teacher = load_model(resolve(Model(path=str(folders["teacher"])))).requires_grad_(False)
    with torch.no_grad():  # B = 0 would leave A without a gradient
        for parameter in (p for n, p in student.named_parameters() if "lora_B" in n):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        for model in (student.get_base_model(), teacher):  # spread the logits out
            model.get_output_embeddings().weight.mul_(10)
    module = ResponseValues(student, build("gkd", {"beta": beta}), FrozenModels(own={"teacher": teacher}))
    batch = batch_of(chunks)
    value = module(batch)["jsd"].sum()
    value.backward()
    ours = {n: p.grad.clone() for n, p in student.named_parameters() if p.requires_grad}

    student.zero_grad()
    inputs = {"input_ids": batch.ids_SL, "attention_mask": batch.attention_SL}
    p, q = (m.double()(**inputs).logits[..., :V].softmax(-1).flatten(0, 1)[batch.source_N] for m in (teacher, student))
    if beta in (0.0, 1.0):
        first, second = (p, q) if beta == 0 else (q, p)
        expected = (first * (first / second).log()).sum()
    else:
        m = beta * p + (1 - beta) * q
        expected = (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(ours[name].double(), parameter.grad, rtol=1e-3, atol=1e-5)
            assert parameter.grad.abs().max() > 1e-3
