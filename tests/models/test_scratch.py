"""Models made from scratch: the same arguments, the same weights; bad keys refused."""

from __future__ import annotations

import pytest
import torch

from plad_ray.config import Scratch
from plad_ray.errors import PladError
from plad_ray.models.scratch import make

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1}


def test_words_by_frequency_up_to_the_vocabulary():
    texts = ["b a a", "c a b"]
    _, all_words = make(Scratch(config=SMALL, tokenizer="words"), texts, 0)
    assert all_words.convert_ids_to_tokens(range(6)) == ["<pad>", "<unk>", "<eos>", "a", "b", "c"]
    _, capped = make(Scratch(config=SMALL, tokenizer="words", vocab_size=5), texts, 0)
    assert len(capped) == 5 and capped("c").input_ids == [1]


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    scratch = Scratch(config=SMALL, tokenizer="words")
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, _ = make(scratch, ["a b"], 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    again, other = make(scratch, ["a b"], 1)[0], make(scratch, ["a b"], 2)[0]
    weights = [m.get_input_embeddings().weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_config_carries_the_tokenizers_ids():
    model, tokenizer = make(Scratch(config=SMALL, tokenizer="bpe", vocab_size=300), ["hello there"], 0)
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.bos_token_id is None


@pytest.mark.parametrize(
    ("scratch", "message"),
    [
        (Scratch(model_type="lama", config={}), "'lama' is no model type"),
        (Scratch(config={"hiden_size": 3}), "no 'hiden_size'"),
        (Scratch(config={"vocab_size": 3}), "use model.scratch.vocab_size"),
    ],
)
def test_bad_scratch_is_refused(scratch, message):
    with pytest.raises(PladError, match=message):
        make(scratch.model_copy(update={"tokenizer": "words"}), ["a"], 0)
