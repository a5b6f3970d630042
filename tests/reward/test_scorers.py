"""Scorers: known values, what is truncated, what is refused; and the stage that runs them as Ray actors."""

import pytest

from plad_ray.config import Scorer
from plad_ray.errors import PladError
from plad_ray.reward import build, check
from tests.synthetic import job, prompt, prompts_artifact, response, responses_artifact


def test_rouge_is_f1_against_the_reference() -> None:
    score = build(Scorer(name="rouge", metric="rouge1"))
    assert score(["x", "x"], ["a b c d", "z"], ["a b", "y"]) == pytest.approx([2 / 3, 0])
    with pytest.raises(PladError, match="needs a reference"):
        score(["x"], ["a"], [None])


def test_demo_is_the_tasks_own_reward() -> None:
    post = "post : anna bought red shoes . summary :"
    values = build(Scorer(name="demo"))([post] * 2, [" anna bought red shoes .", " anna bought red hats ."], [None] * 2)
    assert values == [1.0, 0.0]


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"name": "rogue"}, "unknown scorer 'rogue'; known: demo, rouge, classifier"),
        ({"name": "no_such_module:f"}, "cannot be imported"),
        ({"name": "math:pi"}, "is not a function"),
        ({"name": "classifier"}, "needs a reward model"),
        ({"name": "classifier", "model": "/no/such/folder"}, "no model can be read there"),
    ],
)
def test_bad_scorers_are_refused_before_anything_starts(scorer, message) -> None:
    with pytest.raises(PladError, match=message):
        check(Scorer(**scorer))


def test_a_function_gets_prompt_response_reference() -> None:
    assert build(Scorer(name="scorers_for_tests:lengths"))(["p"], ["four"], [None]) == [4]
    with pytest.raises(PladError, match="returned None, not a number, for the response 'x'"):
        build(Scorer(name="scorers_for_tests:nothing"))(["p"], ["x"], ["r"])


def save_classifier(folder, labels=1):
    """A random two-layer BERT with a word tokenizer that joins pairs as [q] <sep> [a]."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<pad>", "<unk>", "<cls>", "<sep>", *(f"w{i}" for i in range(40))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", pair="<cls> $A <sep> $B:1 <sep>:1", special_tokens=[("<cls>", 2), ("<sep>", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, num_labels=labels, pad_token_id=0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def words(*numbers):
    return " ".join(f"w{i}" for i in numbers)


def test_classifier_reads_the_pair_and_is_not_changed_by_padding(tmp_path) -> None:
    path = save_classifier(tmp_path)
    alone = build(Scorer(name="classifier", model=path, batch_size=1))
    together = build(Scorer(name="classifier", model=path, batch_size=8))
    prompts, answers = [words(1, 2, 3, 4, 5), words(1)], [words(7), words(8, 9, 10)]
    one = alone(prompts, answers, [None] * 2)
    assert one == pytest.approx(together(prompts, answers, [None] * 2), abs=1e-5)
    assert one[0] != pytest.approx(alone(answers[:1], prompts[:1], [None])[0], abs=1e-6)  # order of the pair matters


def test_classifier_cuts_the_prompt_never_the_response(tmp_path) -> None:
    path = save_classifier(tmp_path)
    long, answer = words(*range(20)), words(30, 31, 32)
    ends = [Scorer(name="classifier", model=path, max_length=10)] * 2
    plain, chat = build(ends[0]), build(ends[1], dialogue=True)
    whole = build(Scorer(name="classifier", model=path, max_length=64))
    kept = 10 - 3 - 3  # room beside <cls> <sep> <sep> and the answer
    assert plain([long], [answer], [None]) == pytest.approx(whole([words(*range(kept))], [answer], [None]), abs=1e-6)
    assert chat([long], [answer], [None]) == pytest.approx(whole([words(*range(16, 20))], [answer], [None]), abs=1e-6)
    with pytest.raises(PladError, match="room for responses of 6 tokens; one has 7"):
        plain([long], [words(*range(7))], [None])


def test_a_classifier_with_several_labels_is_refused(tmp_path) -> None:
    with pytest.raises(PladError, match="has 3 labels; a reward model has one logit"):
        check(Scorer(name="classifier", model=save_classifier(tmp_path, labels=3)))


@pytest.fixture
def inputs(tmp_path):
    prompts = [prompt("a"), prompt("b", reference=None), prompt("c", "test"), prompt("d", "dev")]
    rows = [
        response("student", "a", "x"),
        response("teacher", "b", "xyz"),
        response("student", "c", "xy", temperature=0.0, split="test"),
    ]
    return {"prompts": prompts_artifact(tmp_path, prompts), "responses": responses_artifact(tmp_path, rows)}


def test_the_stage_scores_responses_and_references_of_their_splits(ray_session, tmp_path, inputs) -> None:
    from plad_ray.reward.run import run

    made = job(tmp_path, "scores", {"scorer": Scorer(name="scorers_for_tests:lengths").model_dump()}, inputs)
    outcome = run(made)
    found = {r["rid"]: r for r in made.out.table().to_pylist()}
    assert {rid: r["score"] for rid, r in found.items()} == {
        "student:a:0.7:0": 1,
        "teacher:b:0.7:0": 3,
        "student:c:0:0": 2,
        "reference:a": len("a reference"),
        "reference:c": len("a reference"),
    }
    assert (outcome.rows_in, outcome.rows_out) == (5, 5)
    assert found["reference:c"] | {"score": 0} == {
        "rid": "reference:c", "policy": "reference", "prompt_id": "c", "split": "test",
        "temperature": 0.0, "sample": 0, "score": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("infinite", "gave (inf|nan) for row .*(student|teacher|reference):.* a score must be a finite number"),
        ("nothing", "returned None, not a number"),
    ],
)
def test_the_stage_names_the_row_that_has_no_number(ray_session, tmp_path, inputs, function, message) -> None:
    from plad_ray.reward.run import run

    config = {"scorer": Scorer(name=f"scorers_for_tests:{function}").model_dump()}
    with pytest.raises(PladError, match=message):
        run(job(tmp_path, "scores", config, inputs))
