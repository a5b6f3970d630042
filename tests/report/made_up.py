"""A finished run of the demo task with simulated policies, as its stages would leave it."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Evaluate, Pairs, load
from plad_ray.data import demo
from plad_ray.evaluate import run as evaluate_run
from plad_ray.pairs import build
from plad_ray.stages import Job, Outcome
from tests.synthetic import job, prompt, prompts_artifact, response, responses_artifact, score, scores_artifact

ROOT = Path(__file__).parents[2]

#: chance that a fact is lost, altered or repeated, by policy
FLAWS = {"teacher": 0.13, "student": 0.3, "distilled": 0.12, "seqkd": 0.15}
ARMS = {
    "distilled": {"name": "plad_rank", "logp_reduction": "sum", "margin": 1.0, "sft_weight": 10},
    "seqkd": {"name": "seqkd"},
}
NAMES = {"responses": ("teacher", "student"), "eval_responses": ("distilled", "seqkd")}


def summary(post: str, flaw: float, rng: random.Random) -> str:
    kept = []
    for fact in demo.facts(post):
        words = fact.split()
        if rng.random() < flaw:
            kind = rng.choice(("drop", "swap", "repeat"))
            if kind == "drop":
                continue
            if kind == "swap":
                words[rng.randrange(1, 4)] = rng.choice(demo.OBJECTS)
            else:
                kept.append(" ".join(words))
        kept.append(" ".join(words))
    return "".join(f" {fact} ." for fact in kept)


def finish(made: Job, outcome: Outcome, seconds: float) -> Artifact:
    rows = {"in": outcome.rows_in, "out": outcome.rows_out, "dropped": outcome.dropped}
    inputs = {key: a.name for key, a in made.inputs.items()}
    identity = {"identity": made.config, "version": 1, "digest": made.out.name}
    details = {
        **identity,
        "libraries": {"ray": "2.60.0", "torch": "2.13.0"},
        "git_commit": "0123abcd",
        "seconds": seconds,
    }
    content = {"name": made.stage, "config": made.config, "inputs": inputs, "rows": rows, "metrics": outcome.metrics}
    made.out.finish({**content, **details})
    return made.out


def curve(objective: str, rng: random.Random) -> list[dict]:
    rows = []
    for step in range(1, 241):
        gain = 1 - math.exp(-step / 60)
        row = {"step": step, "loss": 2.2 - 1.5 * gain + rng.gauss(0, 0.12), "grad_norm": 1.5 + rng.random()}
        if objective == "distilled":
            row |= {
                "rewards/chosen": -6 + 3 * gain + rng.gauss(0, 0.3),
                "rewards/rejected": -8 - 9 * gain + rng.gauss(0, 0.5),
            }
            row["rewards/margins"] = row["rewards/chosen"] - row["rewards/rejected"]
            row |= {f"logps/{s}": row[f"rewards/{s}"] for s in ("chosen", "rejected")}
            row["rewards/accuracies"] = 0.6 + 0.35 * gain
        rows.append(row)
    return rows


def trained(root: Path, name: str, rows: list[dict], tag: str) -> Artifact:
    made = Artifact(Store(str(root)), f"{name}-{tag}")
    made.store.write_bytes(made.file("files/metrics.jsonl"), "".join(json.dumps(r) + "\n" for r in rows).encode())
    identity = {"identity": {}, "version": 1, "digest": made.name}
    made.finish({"name": name, "inputs": {}, "metrics": {"num_tokens": 1_234_567}, "seconds": 62.0, **identity})
    return made


def world(
    root: Path,
    count: int = 120,
    evil: str = "",
    scorer: str | None = "demo",
    name: str = "demo",
    tag: str = "0",
    flaws: dict[str, float] = FLAWS,
    overrides: tuple[str, ...] = (),
) -> Job:
    """A finished run on the demo task with simulated policies; ``evil`` becomes part of a prompt and its responses.

    Two runs of one ``root`` share their prompts; ``tag`` tells their other artifacts apart.
    """
    rng = random.Random(0)
    examples = demo.generate(2 * count, seed=1)
    prompts = [
        prompt(f"p{i}", "distill" if i % 2 else "test", e.reference, prompt=e.prompt) for i, e in enumerate(examples)
    ]
    prompts[0]["prompt"] = evil + prompts[0]["prompt"]
    texts = {"responses": [], "eval_responses": []}
    for where, policies in NAMES.items():
        for policy in policies:
            for temperature in (0.7, 0.0):
                for p in prompts:
                    if p["split"] == "distill" and where == "eval_responses":
                        continue
                    flaw = flaws[policy] * (1.0 if temperature else 0.75)
                    text = summary(p["prompt"], flaw, rng) + (evil if p is prompts[0] else "")
                    texts[where].append(response(policy, p["prompt_id"], text, temperature, split=p["split"]))
    posts = {p["prompt_id"]: p["prompt"] for p in prompts}
    inputs = {
        "prompts": prompts_artifact(root, prompts),
        "responses": responses_artifact(root, texts["responses"], f"responses-{tag}"),
        "eval_responses": responses_artifact(root, texts["eval_responses"], f"eval-responses-{tag}"),
    }
    if scorer:
        for where, scores in (("responses", "scores"), ("eval_responses", "eval_scores")):
            rows = [score(r, demo.reward(posts[r["prompt_id"]], r["text"])) for r in texts[where]]
            rows += [score(p, demo.reward(p["prompt"], p["reference"])) for p in prompts] if scores == "scores" else []
            inputs[scores] = scores_artifact(root, rows, f"{scores.replace('_', '-')}-{tag}")
    settings = {"evaluate": Evaluate(bootstrap=400).model_dump(mode="json"), "arms": {a: a for a in ARMS}, "seed": 0}
    evaluation = tagged(job(root, "evaluate", {**settings, "scorer": bool(scorer)}, inputs), tag)
    settings = {"pairs": Pairs().model_dump(mode="json"), "chat": False, "seed": 0}
    pairs = tagged(job(root, "pairs", settings, inputs), tag)
    inputs |= {"evaluation": finish(evaluation, evaluate_run.run(evaluation), 4.2)}
    inputs |= dict.fromkeys(("pairs/distilled", "pairs/seqkd"), finish(pairs, build.run(pairs), 0.6))
    inputs |= {f"train/{arm}": trained(root, f"distill-{arm}", curve(arm, rng), tag) for arm in ARMS}
    inputs |= {"sft/teacher": trained(root, "sft-teacher", curve("sft", rng), tag)}
    settings = ("scorer.name=" + scorer if scorer else "scorer=null", "distill.objective.sft_weight=10", *overrides)
    experiment = load(ROOT / "jobs" / "demo.yaml", settings)
    recorded = experiment.model_dump(mode="json", exclude={"runtime", "merge"}, exclude_defaults=True)
    config = {"name": name, "experiment": recorded, "arms": ARMS, "scorer": scorer}
    return tagged(job(root, "report", config, inputs), tag)


def tagged(made: Job, tag: str) -> Job:
    return replace(made, out=Artifact(made.out.store, f"{made.stage}-{tag}"))
