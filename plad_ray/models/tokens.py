"""The one place where text becomes tokens and back.

A training sequence is ``encode_prompt(row) + encode_response(text, eos)``: the same ids that the engines are given and
the same that they would have generated. EOS is a token of the response, added only when something really ended there.
Masks are made from lengths, never from ids, so pad = eos and a missing pad token change nothing.

An encoder-decoder (``seq2seq``) reads the two apart: the prompt as the tokenizer encodes a text of its own (T5: EOS at its
end, which a causal model's prompt never has), the response as the labels that its decoder learns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from plad_ray.config import Model
from plad_ray.errors import PladError

#: Neutral texts that a response is read behind, so that a tokenizer's dummy prefix lands on them.
_ANCHORS = ("\n", ".")
#: What SentencePiece (▁) and byte-level BPE (Ġ) write for a leading space.
_SPACE_MARKS = ("▁", "Ġ")


def eos_ids(tokenizer: PreTrainedTokenizerBase, model: Model) -> tuple[int, ...]:
    """Ids that end a response, each once; the first is the one that training appends.

    ``model.eos_token`` (else the tokenizer's own) and ``model.stop_token_ids``. Raises PladError when an id is not in
    the vocabulary or there is none at all.
    """
    ids: list[int] = []
    if model.eos_token is not None:
        vocabulary = tokenizer.get_vocab()
        if model.eos_token not in vocabulary:
            raise PladError(f"model.eos_token {model.eos_token!r} is no token of the vocabulary of {_name(tokenizer)}")
        ids.append(vocabulary[model.eos_token])
    elif tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    outside = [i for i in model.stop_token_ids if not 0 <= i < len(tokenizer)]
    if outside:
        raise PladError(f"model.stop_token_ids {outside} lie outside the {len(tokenizer)} tokens of {_name(tokenizer)}")
    ids.extend(model.stop_token_ids)
    if not ids:
        raise PladError(
            f"the tokenizer of {_name(tokenizer)} has no EOS token: set model.eos_token to what ends a response"
        )
    return tuple(dict.fromkeys(ids))


def check_same_tokens(student: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str) -> None:
    """PladError when ``other`` (the tokenizer of the frozen model ``name``) gives any token another id.

    A vocabulary that is only padded differently in the model is fine; logits are cut to what both share.
    """
    ours, theirs = student.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    token = min(
        (t for t in {**ours, **theirs} if ours.get(t) != theirs.get(t)), key=lambda t: ours.get(t, theirs.get(t, 0))
    )
    raise PladError(
        f"the {name}'s tokenizer differs from the student's ({len(theirs)} and {len(ours)} tokens; {token!r} is "
        f"{theirs.get(token, 'none')} there and {ours.get(token, 'none')} here), so their logits cannot be compared. "
        f"Methods that need the teacher's text alone work: {', '.join(text_only())}"
    )


def check_same_sequences(student_seq2seq: bool, other_seq2seq: bool, name: str) -> None:
    """PladError when only one of the student and the frozen model ``name`` reads prompts in an encoder."""
    if student_seq2seq != other_seq2seq:
        raise PladError(
            f"of {name} and student only one is an encoder-decoder, so they read different sequences and their logits "
            f"cannot be compared. Methods that need the teacher's text alone work: {', '.join(text_only())}"
        )


def text_only() -> list[str]:
    """The built-in objectives that read no logits of a teacher."""
    from plad_ray.objectives import OBJECTIVES

    return [name for name, kind in OBJECTIVES.items() if name != "sft" and "teacher" not in kind().logits_of]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], model: Model, seq2seq: bool = False
) -> list[int]:
    """``encode_prompts`` of one row."""
    return encode_prompts(tokenizer, [row], model, seq2seq)[0]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], model: Model, seq2seq: bool = False
) -> list[list[int]]:
    """Ids of prompt rows (``prompt``, and ``messages`` when conversational), BOS as the tokenizer has it and once.

    ``model.template`` plain reads ``prompt``, chat renders ``messages`` with the generation prompt (``prompt`` as one
    user message when there are none). Longer than ``model.max_prompt_tokens``: cut on the left, BOS kept. Raises
    PladError when no token is left for the response within ``model.max_length``; the encoder of a ``seq2seq`` model has
    all of it for the prompt.
    """
    if model.template == "chat":
        encoded = [_chat_ids(tokenizer, row) for row in rows]
    else:
        encoded = _plain_ids(tokenizer, [row["prompt"] for row in rows], seq2seq)
    return [_within(ids, tokenizer, row, model, seq2seq) for ids, row in zip(encoded, rows, strict=True)]


def _within(
    ids: list[int], tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], model: Model, seq2seq: bool
) -> list[int]:
    """Cut to ``model.max_prompt_tokens``. Raises PladError for what does not fit ``model.max_length`` then."""
    limit = model.max_prompt_tokens
    if limit is not None and len(ids) > limit:
        keep_bos = ids[0] == tokenizer.bos_token_id and limit > 1
        ids = [ids[0], *ids[len(ids) - limit + 1 :]] if keep_bos else ids[len(ids) - limit :]
    if seq2seq and len(ids) > model.max_length:
        raise PladError(
            f"prompt {row.get('prompt_id', '')}: {len(ids)} tokens exceed model.max_length {model.max_length}; raise it, "
            "set model.max_prompt_tokens to cut prompts on the left, or set data.max_prompt_chars to drop long ones"
        )
    if not seq2seq and len(ids) >= model.max_length:
        raise PladError(
            f"prompt {row.get('prompt_id', '')}: {len(ids)} tokens leave no room for a response within "
            f"model.max_length {model.max_length}; raise it, set model.max_prompt_tokens to cut prompts on the left, "
            "or set data.max_prompt_chars to drop long ones"
        )
    return ids


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str, eos: int | None, seq2seq: bool = False) -> list[int]:
    """Ids of ``text`` as it follows a prompt: no BOS, no dummy prefix; ``eos`` appended when given.

    The decoder of a ``seq2seq`` model begins a text of its own, so there a dummy prefix belongs to it. Give ``eos`` for what
    really ended (finish_reason stop, a human reference) and None for truncated text.
    """
    ids = _encode(tokenizer, text) if seq2seq else _following(tokenizer, text)
    return ids if eos is None else [*ids, eos]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], seq2seq: bool = False) -> str:
    """Text of generated ids, special tokens left out; a leading space is kept where the tokenizer can tell."""
    if seq2seq or not _dummy_prefix(tokenizer):
        return _decode(tokenizer, ids)
    # a full stop is a whole token more often than a line break is
    for _, anchor_ids, before in reversed(_anchors(tokenizer)):
        whole = _decode(tokenizer, [*anchor_ids, *ids])
        if whole.startswith(before):
            return whole[len(before) :]
    return _decode(tokenizer, ids)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any valid id to fill tensors with; it is never read, since masks come from lengths."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def _plain_ids(tokenizer: PreTrainedTokenizerBase, prompts: list[str], seq2seq: bool) -> list[list[int]]:
    encoded = tokenizer(prompts).input_ids if prompts else []  # together: one by one, most time goes on the way there
    return [_prompt_of(list(ids), tokenizer, prompt, seq2seq) for ids, prompt in zip(encoded, prompts, strict=True)]


def _prompt_of(ids: list[int], tokenizer: PreTrainedTokenizerBase, prompt: str, seq2seq: bool) -> list[int]:
    """``ids`` of a text as those of a prompt."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:  # the text spells BOS out and the tokenizer adds another
        ids = ids[1:]
    if not seq2seq and eos is not None and len(ids) > 1 and ids[-1] == eos and _encode(tokenizer, prompt)[-1:] != [eos]:
        ids = ids[:-1]  # tokenizers that end every text with EOS: a prompt has not ended
    if not ids:
        raise PladError(f"prompt {prompt[:40]!r} has no tokens with the tokenizer of {_name(tokenizer)}")
    return ids


def _chat_ids(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> list[int]:
    if not tokenizer.chat_template:
        raise PladError(
            f"model.template is chat, but the tokenizer of {_name(tokenizer)} has no chat template; use plain"
        )
    messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    return list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))


def _following(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    if _dummy_prefix(tokenizer):
        for anchor, anchor_ids, _ in _anchors(tokenizer):
            ids = _encode(tokenizer, anchor + text)
            if ids[: len(anchor_ids)] == anchor_ids:
                return ids[len(anchor_ids) :]
    return _encode(tokenizer, text)


@lru_cache(maxsize=16)  # asked for every response
def _anchors(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[int], str]]:
    """Of the anchors that the tokenizer knows: the text, its ids, and what these are read as."""
    encoded = [(anchor, _encode(tokenizer, anchor)) for anchor in _ANCHORS]
    return [(text, ids, _decode(tokenizer, ids)) for text, ids in encoded if tokenizer.unk_token_id not in ids]


@lru_cache(maxsize=16)
def _dummy_prefix(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space before a text's first word that the text does not have (LLaMA-2 does)."""
    first = _encode(tokenizer, "a")[:1]
    return bool(first) and str(tokenizer.convert_ids_to_tokens(first[0])).startswith(_SPACE_MARKS)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "the model"
