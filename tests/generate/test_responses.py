import pytest

from plad_ray.generate.responses import finish
from plad_ray.models.scratch import word_tokenizer
from plad_ray.models.tokens import decode

WORDS = ["a", "b", "c", "stop", "<think>", "</think>"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


def ids(tokenizer, text):
    return tokenizer(text).input_ids


EOS = 2


def test_eos_means_stop_and_is_not_kept(tokenizer):
    assert finish([*ids(tokenizer, "a b"), EOS], tokenizer, (EOS,)) == ("a b", ids(tokenizer, "a b"), "stop", 0)
    assert finish(ids(tokenizer, "a b"), tokenizer, (EOS,)) == ("a b", ids(tokenizer, "a b"), "length", 0)
    assert finish([EOS], tokenizer, (EOS,)) == ("", [], "stop", 0)
    c = ids(tokenizer, "c")[0]
    assert finish([*ids(tokenizer, "a"), c], tokenizer, (EOS, c)) == ("a", ids(tokenizer, "a"), "stop", 0)


def test_stop_string_cuts_text_and_ids(tokenizer):
    text, kept, reason, _ = finish(ids(tokenizer, "a b stop c stop"), tokenizer, (EOS,), stop=("zzz", " stop"))
    assert (text, reason) == ("a b", "stop")
    assert decode(tokenizer, kept) == "a b"


def test_stop_string_inside_a_token(tokenizer):
    text, kept, reason, _ = finish(ids(tokenizer, "a stop"), tokenizer, (EOS,), stop=("top",))
    assert (text, reason) == ("a s", "stop")
    assert kept[0] == ids(tokenizer, "a")[0]


def test_reasoning_is_cut_and_counted(tokenizer):
    marks = ("<think>", "</think>")
    thought = [*ids(tokenizer, "<think> a b </think> c"), EOS]
    assert finish(thought, tokenizer, (EOS,), reasoning=marks) == ("c", ids(tokenizer, "c"), "stop", 4)
    opened_in_prompt = [*ids(tokenizer, "a </think> c"), EOS]
    assert finish(opened_in_prompt, tokenizer, (EOS,), reasoning=marks) == ("c", ids(tokenizer, "c"), "stop", 2)
    unclosed = [*ids(tokenizer, "<think> a b"), EOS]
    assert finish(unclosed, tokenizer, (EOS,), reasoning=marks) == ("", [], "length", 3)
    plain = [*ids(tokenizer, "a b"), EOS]
    assert finish(plain, tokenizer, (EOS,), reasoning=marks)[0] == "a b"
