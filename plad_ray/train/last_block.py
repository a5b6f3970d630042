"""The last layer's position-wise modules, computed only where their output is read.

Of the last layer nothing is read but the positions that predict a response token. A feed-forward block and the projections
around attention treat each position alone (keys and values are needed everywhere, queries are not). Prompts are long and
answers short, so most of that work would be for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from plad_ray.train.patching import forward_replaced

_LLAMA = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
#: By model type, modules of a layer from [S, L, H] to [S, L, H'], each position by itself and none of them read by others.
POSITION_WISE = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi3": ("self_attn.o_proj", "mlp"),
    "gpt2": ("attn.c_proj", "mlp"),
    "gpt_neox": ("attention.dense", "mlp"),
}


@contextmanager
def last_block_at(model: PreTrainedModel, read_M: Tensor) -> Generator[None]:
    """Within, those modules of ``model``'s last layer are computed at the distinct flat positions ``read_M`` of S·L alone,
    and are 0 elsewhere. Without effect for other model types, and under gradient checkpointing, which runs layers once
    more when this is over."""
    modules = [] if model.is_gradient_checkpointing else _position_wise(model)
    with ExitStack() as replaced:
        for module in modules:
            replaced.enter_context(forward_replaced(module, _at(read_M, module.forward)))
        yield


def _at(read_M: Tensor, whole: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def at_read(states_SLH: Tensor) -> Tensor:
        read_MH = whole(states_SLH.flatten(0, 1)[read_M][None])[0]
        flat = read_MH.new_zeros(states_SLH.shape[:2].numel(), read_MH.shape[-1])
        return flat.index_copy(0, read_M, read_MH).view(*states_SLH.shape[:2], -1)

    return at_read


def _position_wise(model: PreTrainedModel) -> list[nn.Module]:
    names = POSITION_WISE.get(model.config.get_text_config().model_type, ())
    decoder = model.get_decoder()
    layer: nn.Module = (decoder.h if hasattr(decoder, "h") else decoder.layers)[-1]
    return [layer.get_submodule(name) for name in names]
