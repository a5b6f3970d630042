"""Models made here: a tokenizer trained on the train shard and a model with random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from plad_ray.config import Scratch
from plad_ray.errors import PladError
from plad_ray.models.load import auto_class, is_seq2seq

PAD, UNK, EOS = "<pad>", "<unk>", "<eos>"


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word, split at whitespace; ids 0–2 are ``<pad> <unk> <eos>``, words follow in their order. No BOS."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([PAD, UNK, EOS, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2's kind: no unknown text) of at most ``vocab_size`` tokens. No BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 2:
        raise PladError(
            f"model.scratch.vocab_size {vocab_size} cannot hold the {len(alphabet)} bytes of a bpe tokenizer"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, EOS], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def make(scratch: Scratch, texts: Iterable[str], seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A random float32 model and its tokenizer; the same arguments always give the same weights.

    ``words`` keeps the most frequent words of ``texts`` that fit ``vocab_size``. Raises PladError for a model type or a
    config key that transformers does not know.
    """
    if scratch.tokenizer == "words":
        counted = Counter(word for text in texts for word in text.split())
        by_frequency = sorted(counted, key=lambda word: (-counted[word], word))
        tokenizer = word_tokenizer(by_frequency[: max(0, scratch.vocab_size - 3)])
    else:
        tokenizer = bpe_tokenizer(texts, scratch.vocab_size)
    config = scratch_config(scratch, len(tokenizer))
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
    if is_seq2seq(config):
        config.decoder_start_token_id = tokenizer.pad_token_id  # as T5 has it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto_class(config).from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def scratch_config(scratch: Scratch, vocab_size: int) -> PretrainedConfig:
    try:
        default = AutoConfig.for_model(scratch.model_type)
    except ValueError:
        raise PladError(f"model.scratch.model_type {scratch.model_type!r} is no model type of transformers") from None
    unknown = [key for key in scratch.config if not hasattr(default, key)]
    if unknown:
        raise PladError(
            f"model.scratch.config has no {unknown[0]!r}: it is no argument of the {scratch.model_type} config"
        )
    if "vocab_size" in scratch.config:
        raise PladError("model.scratch.config.vocab_size is set by the tokenizer; use model.scratch.vocab_size")
    return AutoConfig.for_model(scratch.model_type, **scratch.config, vocab_size=vocab_size)
