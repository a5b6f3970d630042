"""A made-up summarisation task: small enough for a laptop, exact enough to test against.

A post is two or three facts of four words ("anna bought red shoes") shuffled among two filler sentences ("anyway it
felt late"). Its ideal summary is the facts, in the post's order. References are written by a simulated human who makes a
mistake in some of them: drops a fact, swaps a word, or repeats a fact. So they score about 0.84, and a model can beat them.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

Verdict = Literal["kept", "redundant", "wrong"]
Sentence = tuple[str, ...]

SUBJECTS = tuple(
    "anna ben carla david emma felix grace henry irene jack karen leo maria nina oscar paula quinn rosa simon tina".split()
)
VERBS = tuple(
    "bought sold found lost broke cleaned painted wanted carried borrowed hid washed moved kept liked stole".split()
)
ADJECTIVES = tuple(
    "red blue green yellow old new small large heavy light cheap fancy wooden plastic round broken dusty shiny".split()
)
OBJECTS = tuple(
    "shoes books chairs lamps boxes cups coats bikes plates clocks "
    "hats keys bags toys rugs tables boats rings knives mirrors".split()
)
FACT_SLOTS = (SUBJECTS, VERBS, ADJECTIVES, OBJECTS)
FILLER_SLOTS = (
    tuple("well anyway today honestly still again later often".split()),
    tuple("it this that everything".split()),
    tuple("was felt seemed looked".split()),
    tuple("fine late strange quiet slow busy boring nice".split()),
)

OPENING, CUE, STOP = "post :", "summary :", "."
FACT_COUNTS = (2, 2, 3)  # drawn evenly: one post in three is a long one
FILLER_COUNT = 2
MISTAKE_RATE = 0.35
ANNOTATOR_ERRORS = 0.2  # of the pairs that a simulated annotator orders


@dataclass(frozen=True)
class Example:
    """One post: `prompt` ends in the cue, `reference` is the text that follows it (with its leading space)."""

    prompt: str
    reference: str


@dataclass(frozen=True)
class Mark:
    """One fact of a response with its verdict; the texts of a response's marks, joined, are the response."""

    text: str
    verdict: Verdict


def generate(n: int, seed: int, fact_counts: Sequence[int] = FACT_COUNTS) -> list[Example]:
    """Make `n` examples with distinct prompts; the same arguments always give the same list."""
    rng = random.Random(seed)
    examples: dict[str, Example] = {}
    while len(examples) < n:
        example = _example(rng, fact_counts)
        examples.setdefault(example.prompt, example)
    return list(examples.values())


def preferences(n: int, seed: int) -> list[tuple[str, str, str]]:
    """`n` pairs of human summaries as a simulated annotator orders them: prompt, chosen, rejected. Each pair has a better
    one by `reward`; the annotator takes the other in a fifth of the pairs."""
    rng = random.Random(f"preferences {seed}")
    found: list[tuple[str, str, str]] = []
    for example in generate(n, seed):
        post_facts = [tuple(fact.split()) for fact in facts(example.prompt)]
        while True:
            pair = sorted(
                (_text(_human_summary(post_facts, rng)) for _ in range(2)), key=partial(reward, example.prompt)
            )
            if reward(example.prompt, pair[0]) != reward(example.prompt, pair[1]):
                break
        worse, better = pair if rng.random() >= ANNOTATOR_ERRORS else reversed(pair)
        found.append((example.prompt, better, worse))
    return found


def vocabulary() -> list[str]:
    """Every word that prompts and references are made of, punctuation included, each once."""
    slots = [word for slot in FACT_SLOTS + FILLER_SLOTS for word in slot]
    return list(dict.fromkeys([*OPENING.split(), *CUE.split(), STOP, *slots]))


def facts(prompt: str) -> list[str]:
    """The facts of a post, in order, without full stops."""
    post = prompt.rpartition(OPENING)[2].rpartition(CUE)[0]
    sentences = [tuple(sentence.split()) for sentence in post.split(STOP)]
    return [" ".join(sentence) for sentence in sentences if _is_fact(sentence)]


def mark(prompt: str, response: str) -> list[Mark]:
    """Cut a response into facts and judge each against the post.

    The first copy of a post's fact is `kept`, further copies are `redundant`, anything else (an altered fact, a filler
    sentence, a fragment) is `wrong`. A response of nothing but whitespace has no marks.
    """
    unseen = set(post := facts(prompt))
    marks = []
    for text in re.findall(r"[^.]*\.\s*|[^.]*[^.\s][^.]*$", response):
        fact = " ".join(text.replace(STOP, " ").split())
        verdict: Verdict = "kept" if fact in unseen else "redundant" if fact in post else "wrong"
        unseen.discard(fact)
        marks.append(Mark(text, verdict))
    return marks


def missing(prompt: str, response: str) -> list[str]:
    """The post's facts that a response does not keep, in the post's order."""
    kept = {" ".join(m.text.replace(STOP, " ").split()) for m in mark(prompt, response) if m.verdict == "kept"}
    return [fact for fact in facts(prompt) if fact not in kept]


def reward(prompt: str, response: str, reference: str | None = None) -> float:
    """Exact quality of a response in [0, 1]: kept / (facts in the post + redundant + wrong).

    This is intersection over union of the facts asked for and the facts given, so dropping, inventing, altering and
    repeating all cost. `reference` is not used; it is there because every scorer takes one.
    """
    verdicts = [m.verdict for m in mark(prompt, response)]
    kept = verdicts.count("kept")
    asked_or_given = len(facts(prompt)) + len(verdicts) - kept
    return kept / asked_or_given if asked_or_given else 0.0


def _example(rng: random.Random, fact_counts: Sequence[int]) -> Example:
    """Draw a post and a reference for it."""
    count = rng.choice(fact_counts)
    post_facts = [(subject, *_words(FACT_SLOTS[1:], rng)) for subject in rng.sample(SUBJECTS, count)]
    fillers = [_words(FILLER_SLOTS, rng) for _ in range(FILLER_COUNT)]
    places = set(rng.sample(range(count + FILLER_COUNT), count))
    in_order = iter(post_facts), iter(fillers)
    post = [next(in_order[0] if place in places else in_order[1]) for place in range(count + FILLER_COUNT)]
    return Example(f"{OPENING}{_text(post)} {CUE}", _text(_human_summary(post_facts, rng)))


def _human_summary(post_facts: list[Sentence], rng: random.Random) -> list[Sentence]:
    """The facts in order, at times with one mistake."""
    summary = list(post_facts)
    if rng.random() >= MISTAKE_RATE:
        return summary
    place = rng.randrange(len(summary))
    mistake = rng.choice(("drop", "swap", "repeat"))
    if mistake == "drop":
        del summary[place]
    elif mistake == "swap":
        slot = rng.randrange(len(FACT_SLOTS))
        words = list(summary[place])
        words[slot] = rng.choice([word for word in FACT_SLOTS[slot] if word != words[slot]])
        summary[place] = tuple(words)
    else:
        summary.insert(place, summary[place])
    return summary


def _words(slots: tuple[tuple[str, ...], ...], rng: random.Random) -> Sentence:
    """One word for each slot."""
    return tuple(rng.choice(slot) for slot in slots)


def _text(sentences: list[Sentence]) -> str:
    """Sentences as spaced text, every word and full stop after one space."""
    return "".join(f" {' '.join(sentence)} {STOP}" for sentence in sentences)


def _is_fact(sentence: Sentence) -> bool:
    return len(sentence) == len(FACT_SLOTS) and all(
        word in slot for word, slot in zip(sentence, FACT_SLOTS, strict=True)
    )
