"""Golden token tables per tokenizer family: EOS once where text ended, BOS once, no dummy prefix in responses."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from plad_ray.config import Model
from plad_ray.errors import PladError
from plad_ray.models.scratch import bpe_tokenizer, word_tokenizer
from plad_ray.models.tokens import decode, encode_prompt, encode_prompts, encode_response, eos_ids, pad_id

PLAIN = Model(path="somewhere", max_length=64)


def row(prompt: str, messages=None) -> dict:
    return {"prompt_id": "p", "prompt": prompt, "messages": messages}


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2 and GPT-Neo have it: bos = eos = <|endoftext|>, no pad, nothing added to a text."""
    letters = {token: i for i, token in enumerate(["<|endoftext|>", "a", "b", "c", "Ġ", "Ċ", "ab", "Ġa", "Ġab"])}
    tokenizer = Tokenizer(BPE(letters, [("a", "b"), ("Ġ", "a"), ("Ġ", "ab")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def llama() -> PreTrainedTokenizerFast:
    """SentencePiece as LLaMA-2 has it: a dummy ▁ before every text, <s> added in front, no pad token."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", ".", "<0x0A>", "▁a", "▁ab", "ab"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("a", "b"), ("▁", "ab"), ("▁", "a")]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return word_tokenizer(["red", "shoes", "."])


@pytest.fixture(scope="module")
def t5() -> PreTrainedTokenizerFast:
    """SentencePiece unigrams as T5 has them: ▁ before every word, </s> after every text, pad is 0 and starts the decoder."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁ab", "a", "b", "c", "."]
    tokenizer = Tokenizer(Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def test_golden_table_of_an_encoder_decoder(t5):
    """Encoder: the tokenizer's own text, EOS and all. Decoder: a text of its own, EOS only where it ended."""
    (eos,) = eos_ids(t5, PLAIN)
    assert encode_prompt(t5, row("ab c."), PLAIN, seq2seq=True) == [5, 3, 8, 9, 1] == t5("ab c.").input_ids
    assert encode_prompt(t5, row("ab c."), PLAIN) == [5, 3, 8, 9], "a causal model's prompt has not ended"
    for text, ids in [("ab", [5, 1]), ("a ab.", [4, 5, 9, 1]), ("", [1])]:
        assert encode_response(t5, text, eos, seq2seq=True) == ids == t5(text_target=text).input_ids
        assert encode_response(t5, text, None, seq2seq=True) == ids[:-1], "truncated text gets no EOS"
        assert decode(t5, ids, seq2seq=True) == text
    assert decode(t5, [7, 6], seq2seq=True) == "ba", "generation may begin inside a word"


def test_an_encoder_has_max_length_for_the_prompt_alone(t5):
    model = PLAIN.model_copy(update={"max_length": 5})
    assert len(encode_prompt(t5, row("ab c."), model, seq2seq=True)) == 5
    with pytest.raises(PladError, match=r"prompt p: 6 tokens exceed model\.max_length 5"):
        encode_prompt(t5, row("ab c.."), model, seq2seq=True)
    cut = model.model_copy(update={"max_prompt_tokens": 3})
    assert encode_prompt(t5, row("ab c.."), cut, seq2seq=True) == [9, 9, 1], "cut on the left, EOS stays"


# family: (prompt, its ids), then (response, its ids with EOS)
GOLDEN = {
    "gpt2": [("ab c", [6, 4, 3]), [("ab", [6, 0]), (" ab", [8, 0]), (" ab\nc", [8, 5, 3, 0]), ("", [0])]],
    "llama": [
        ("ab", [1, 9]),
        [("ab", [10, 2]), (" ab", [9, 2]), (" ab\na", [9, 7, 4, 2]), ("", [2]), ("\n ab", [7, 9, 2])],
    ],
    "words": [("red shoes", [3, 4]), [(" red shoes .", [3, 4, 5, 2]), ("shoes blue", [4, 1, 2]), ("", [2])]],
}


@pytest.mark.parametrize("family", GOLDEN)
def test_golden_tables(family, request):
    tokenizer = request.getfixturevalue(family)
    (prompt, prompt_ids), responses = GOLDEN[family]
    (eos,) = eos_ids(tokenizer, PLAIN)
    assert encode_prompt(tokenizer, row(prompt), PLAIN) == prompt_ids
    longer = row(f"{prompt} {prompt}")
    assert encode_prompts(tokenizer, [longer, row(prompt)], PLAIN) == [
        encode_prompt(tokenizer, longer, PLAIN),
        prompt_ids,
    ]
    for text, ids in responses:
        assert encode_response(tokenizer, text, eos) == ids
        assert encode_response(tokenizer, text, None) == ids[:-1], "truncated text gets no EOS"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("text", ["ab", " ab", " ab ab", "ab\n ab", "\na"])
def test_decode_keeps_the_leading_space_and_encodes_back(family, text, request):
    tokenizer = request.getfixturevalue(family)
    ids = encode_response(tokenizer, text, None)
    assert decode(tokenizer, ids) == text
    assert encode_response(tokenizer, decode(tokenizer, ids), None) == ids


def test_word_tokenizer_decodes_words_joined_by_one_space(words):
    assert decode(words, [3, 4, 5, 2]) == "red shoes ."


def test_eos_is_left_out_of_decoded_text(llama):
    assert decode(llama, [9, 2]) == " ab"


def test_bos_spelled_out_in_the_prompt_is_not_doubled(llama):
    assert encode_prompt(llama, row("<s>ab"), PLAIN)[:2] != [1, 1]
    assert encode_prompt(llama, row("<s>ab"), PLAIN)[0] == 1


def test_eos_that_a_tokenizer_adds_to_every_text_is_not_in_the_prompt(llama):
    adding = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(llama._tokenizer.to_str()), eos_token="</s>")
    adding._tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    assert adding("ab").input_ids == [9, 2]
    assert encode_prompt(adding, row("ab"), PLAIN) == [9]


def test_left_cut_keeps_bos_and_the_end(llama):
    model = PLAIN.model_copy(update={"max_prompt_tokens": 3})
    assert encode_prompt(llama, row("ab ab a"), model) == [1, 9, 8]


def test_prompt_without_room_for_a_response_is_refused(llama):
    with pytest.raises(PladError, match=r"prompt p: 4 tokens leave no room .*max_length 4"):
        encode_prompt(llama, row("ab ab a"), PLAIN.model_copy(update={"max_length": 4}))


def test_eos_ids_configured(llama, gpt2):
    model = Model(path="x", eos_token="<s>", stop_token_ids=(2, 1))
    assert eos_ids(llama, model) == (1, 2), "the configured EOS first, each once"
    with pytest.raises(PladError, match="'<end>' is no token"):
        eos_ids(llama, Model(path="x", eos_token="<end>"))
    with pytest.raises(PladError, match="outside"):
        eos_ids(llama, Model(path="x", stop_token_ids=(99,)))
    without = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(gpt2._tokenizer.to_str()))
    with pytest.raises(PladError, match="no EOS token"):
        eos_ids(without, PLAIN)


def test_missing_pad_token_still_gives_a_fill_id(llama, gpt2):
    assert llama.pad_token_id is None and gpt2.pad_token_id is None
    assert pad_id(llama) == 0


def test_chat_renders_messages_once_and_refuses_a_missing_template(words):
    chat = PLAIN.model_copy(update={"template": "chat"})
    with pytest.raises(PladError, match="no chat template"):
        encode_prompt(words, row("red"), chat)
    tokenizer = word_tokenizer(["user", "bot", "red", "shoes"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}bot{% endif %}"
    )
    assert encode_prompt(tokenizer, row("", [{"role": "user", "content": "red shoes"}]), chat) == [3, 5, 6, 4]
    assert encode_prompt(tokenizer, row("shoes"), chat) == [3, 6, 4]


def test_bpe_scratch_tokenizer_round_trips_any_text():
    tokenizer = bpe_tokenizer(["the cat sat", "the dog sat"], 300)
    for text in (" the cat", "naïve\n– 日本", ""):
        assert decode(tokenizer, encode_response(tokenizer, text, None)) == text
    with pytest.raises(PladError, match="cannot hold the 256 bytes"):
        bpe_tokenizer([], 100)


@pytest.mark.parametrize("folder", ["stories260K/hf", "babyllama_char/hf_tok105"])
def test_shared_models_round_trip_as_a_continuation(folder, shared):
    """Their text continues a prompt exactly as if both had been tokenised together (pad = eos there)."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / folder)
    model = Model(path="x", eos_token="<s>")
    assert eos_ids(tokenizer, model) == (1,)
    prompt, response = "Once upon a time", " there was a girl. She ran."
    together = tokenizer(prompt + response).input_ids
    assert encode_prompt(tokenizer, row(prompt), model) + encode_response(tokenizer, response, 1) == [*together, 1]
    assert decode(tokenizer, encode_response(tokenizer, response, None)) == response
