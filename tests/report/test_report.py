"""The report from made-up artifacts: what it says, that it is safe and self-contained, that a browser draws it."""

import json
import math
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from plad_ray.artifacts import Artifact, Store
from plad_ray.config import Evaluate, Pairs
from plad_ray.data import demo
from plad_ray.evaluate import run as evaluate_run
from plad_ray.pairs import build, lists, rejection
from plad_ray.report import run as report_run
from plad_ray.report import sentences, svg, terminal
from plad_ray.report.markdown import fenced
from plad_ray.stages import Job, Outcome
from tests.synthetic import job, prompt, prompts_artifact, response, responses_artifact, score, scores_artifact

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
    details = {"libraries": {"ray": "2.60.0", "torch": "2.13.0"}, "git_commit": "0123abcd", "seconds": seconds}
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


def trained(root: Path, name: str, rows: list[dict]) -> Artifact:
    made = Artifact(Store(str(root)), f"{name}-0")
    made.store.write_bytes(made.file("files/metrics.jsonl"), "".join(json.dumps(r) + "\n" for r in rows).encode())
    made.finish({"name": name, "inputs": {}, "metrics": {"num_tokens": 1_234_567}, "seconds": 62.0})
    return made


def world(root: Path, count: int = 120, evil: str = "", scorer: str | None = "demo", name: str = "demo") -> Job:
    """A finished run on the demo task with simulated policies; ``evil`` becomes part of a prompt and its responses."""
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
                    flaw = FLAWS[policy] * (1.0 if temperature else 0.75)
                    text = summary(p["prompt"], flaw, rng) + (evil if p is prompts[0] else "")
                    texts[where].append(response(policy, p["prompt_id"], text, temperature, split=p["split"]))
    posts = {p["prompt_id"]: p["prompt"] for p in prompts}
    inputs = {
        "prompts": prompts_artifact(root, prompts),
        "responses": responses_artifact(root, texts["responses"]),
        "eval_responses": responses_artifact(root, texts["eval_responses"], "eval-responses-0"),
    }
    if scorer:
        for where, scores in (("responses", "scores"), ("eval_responses", "eval_scores")):
            rows = [score(r, demo.reward(posts[r["prompt_id"]], r["text"])) for r in texts[where]]
            rows += [score(p, demo.reward(p["prompt"], p["reference"])) for p in prompts] if scores == "scores" else []
            inputs[scores] = scores_artifact(root, rows, f"{scores.replace('_', '-')}-0")
    settings = {"evaluate": Evaluate(bootstrap=400).model_dump(mode="json"), "arms": {a: a for a in ARMS}, "seed": 0}
    evaluation = job(root, "evaluate", {**settings, "scorer": bool(scorer)}, inputs)
    pairs = job(root, "pairs", {"pairs": Pairs().model_dump(mode="json"), "chat": False, "seed": 0}, inputs)
    inputs |= {"evaluation": finish(evaluation, evaluate_run.run(evaluation), 4.2)}
    inputs |= dict.fromkeys(("pairs/distilled", "pairs/seqkd"), finish(pairs, build.run(pairs), 0.6))
    inputs |= {f"train/{arm}": trained(root, f"distill-{arm}", curve(arm, rng)) for arm in ARMS}
    inputs |= {"sft/teacher": trained(root, "sft-teacher", curve("sft", rng))}
    experiment = {"name": name, "seed": 0, "data": {"source": "demo"}, "distill": {"objective": ARMS["distilled"]}}
    return job(root, "report", {"name": name, "experiment": experiment, "arms": ARMS, "scorer": scorer}, inputs)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Job, str, str]:
    made = world(tmp_path_factory.mktemp("report"))
    report_run.run(made)
    files = [made.out.store.read_bytes(made.out.file(f"files/report.{kind}")).decode() for kind in ("html", "md")]
    return made, files[0], files[1]


def test_both_pages_hold_the_sentences_tables_and_samples(made) -> None:
    made, page, text = made
    metrics = made.inputs["evaluation"].manifest["metrics"]
    for policy in ("teacher", "initial student", "distilled", "seqkd"):
        assert policy in page and f"| {policy} |" in text
    row = sentences.cell(metrics, "distilled", 0.7)
    for found in (page, text):
        assert sentences.percent(row["win_reference"]["mean"]) in found
        assert f"{100 * row['lift']['mean']:+.1f}" in found
        assert "PLaD&#39;s assumption" in found or "PLaD's assumption" in found
    assert page.count('<div class="sample">') == 6 == text.count("| human reference |")
    assert page.count("<svg") == 4 + 6 + 2 + 1  # results, training, pairs (shared), SFT
    assert 'class="fact kept"' in page and "redundant</span>" in page and "missing:" in page
    assert "objective:" in page and "1,234,567" in page and "0123abcd" in page


def test_arms_that_train_on_lists_on_accepted_samples_or_on_references(tmp_path) -> None:
    """Each kind of training data is told in its own words; an arm without a table of its own is no error."""
    made = world(tmp_path)
    settings = {"chat": False, "seed": 0}
    drawn = {"rejection": {"temperatures": [0.0, 0.7], "keep": 2}}
    for arm, builder, pairs in (("distilled", lists, {}), ("seqkd", rejection, drawn)):
        kind = builder.__name__.rpartition(".")[2]
        config = {**settings, "pairs": Pairs.model_validate(pairs).model_dump(mode="json")}
        table = job(tmp_path, kind, config, made.inputs)
        made.inputs[f"pairs/{arm}"] = finish(table, builder.run(table), 0.5)
    report_run.run(made)
    page, text = (made.out.store.read_bytes(made.out.file(f"files/report.{kind}")).decode() for kind in ("html", "md"))
    for expected in ("distilled: lists of every text", "texts were accepted", "Score spread of a list", "Score gap"):
        assert expected in page
    assert "lists from 120 prompts: " in text and "accepted text of the student (rejection sampling, β 0.5)" in text
    for arm in ARMS:
        del made.inputs[f"pairs/{arm}"]
    report_run.run(made)
    for kind in ("html", "md"):
        assert (
            "Every arm trains on the references"
            in made.out.store.read_bytes(made.out.file(f"files/report.{kind}")).decode()
        )


def test_nothing_is_requested_and_no_script_runs(made) -> None:
    _, page, _ = made
    assert not re.search(r"https?:|<script|<link|<img|<iframe|@import|url\(|\ssrc=", page)
    assert "default-src 'none'" in page


def test_text_of_models_and_data_is_escaped(tmp_path) -> None:
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>`|`'
    made = world(tmp_path, count=8, evil=evil, name="<b>bold</b>")
    report_run.run(made)
    page, text = (made.out.store.read_bytes(made.out.file(f"files/report.{k}")).decode() for k in ("html", "md"))
    assert "<script" not in page and "<img" not in page and "<b>bold" not in page
    assert "&lt;script&gt;alert(" in page and "&lt;b&gt;bold&lt;/b&gt;" in page
    table = [line for line in text.splitlines() if "alert" in line and line.startswith("|")]
    assert table and all("\\<script" in line and not re.search(r"(?<!\\)<", line) for line in table)


def test_a_run_without_scorer_has_a_report(tmp_path) -> None:
    made = world(tmp_path, count=8, scorer=None)
    report_run.run(made)
    page = made.out.store.read_bytes(made.out.file("files/report.html")).decode()
    assert "No scorer was set" in page and "Beats reference" not in page and "ROUGE-L" in page


def test_lineage_names_every_artifact_once(made) -> None:
    made, page, _ = made
    for artifact in made.inputs.values():
        digest = artifact.name.removeprefix(f"{artifact.manifest['name']}-")
        assert f"{artifact.manifest['name']}</td>" in page and f">{digest}</code>" in page
    assert page.count('class="cost"') == len({a.name for a in made.inputs.values()})


def test_terminal_summary(made) -> None:
    made, _, _ = made
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(terminal.render(made.inputs["evaluation"].manifest["metrics"]))
    shown = console.export_text()
    assert "sampled at 0.7" in shown and "greedy" in shown and "initial student" in shown
    assert re.search(r"distilled +\d+\.\d +\d+\.\d +0\.0 % +0\.\d{3} +\d+\.\d % \[", shown)
    assert "Distilled rises sampled and greedy." in shown


def arm_row(policy, temperature, **more):
    base = {"policy": policy, "label": policy, "temperature": temperature, "truncated": 0.0, "missing": 0}
    empty = dict.fromkeys(("lift", "score_lift", "win_reference", "score", "rougeL"))
    return {**base, **empty, **more}


def small_metrics(**more):
    return {
        "policies": [{"name": "student", "label": "initial student"}, {"name": "distilled", "label": "distilled"}],
        "temperatures": [0.0], "confidence": 0.95, "teacher_student": [], "verdicts": {"distilled": "v"},
        "reference_score": 0.5, "table": [arm_row("student", 0.0), arm_row("distilled", 0.0)],
    } | more  # fmt: skip


def test_warnings_of_truncation_lost_prompts_and_a_weak_teacher() -> None:
    found = {"temperature": 0.0, "mean": 0.48, "low": 0.44, "high": 0.52, "ties": 0.1}
    table = [arm_row("student", 0.0), arm_row("distilled", 0.0, truncated=0.06, missing=2)]
    said = sentences.from_metrics(small_metrics(table=table, teacher_student=[found], without_reference=3))
    assert [s.kind for s in said] == ["warning"] * 4
    joined = " ".join(s.text for s in said)
    assert "48.0 % greedy" in joined and "not clearly met" in joined and "6.0 % of the distilled's texts" in joined
    assert "2 prompts have no text" in joined and "3 prompts have no reference" in joined


def test_both_logps_falling_is_a_warning_and_one_falling_is_not() -> None:
    def falling(chosen, rejected):
        return [{"logps/chosen": chosen * i, "logps/rejected": rejected * i} for i in range(50)]

    (found,) = sentences.from_curves({"a": falling(-1, -2), "b": falling(1, -2), "c": falling(-1, -1)[:5]})
    assert "training of a" in found.text and "chosen -45.0, rejected -90.0" in found.text
    assert sentences.from_scorer("rouge") and not sentences.from_scorer("demo")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (-3, 12, [-5, 0, 5, 10, 15]), (7, 7, [6, 6.5, 7, 7.5, 8]), (1e-4, 3e-4, None)],
)
def test_ticks_are_round_and_cover_the_range(low, high, expected) -> None:
    found = svg.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 8
    assert expected is None or found == expected


def test_a_line_is_drawn_where_its_values_are() -> None:
    drawn = svg.lines("t<", [svg.Line("a", [0, 10], [0, 1], 2)])
    path = re.search(r'class="line" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', drawn)
    left, bottom, right, top = map(float, path.groups())
    assert (left, right) == (svg.LEFT, svg.WIDTH - svg.RIGHT)
    assert (bottom, top) == (svg.HEIGHT - svg.BOTTOM, svg.TOP)
    assert "t&lt;" in drawn and "<t<" not in drawn


def test_a_fence_is_longer_than_the_backticks_in_the_text() -> None:
    assert fenced("a ```` b").startswith("`````\n")


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")
def test_a_browser_draws_it(made, tmp_path) -> None:
    made, _, _ = made
    page, picture = Path(made.out.path) / "files" / "report.html", tmp_path / "page.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--window-size=1200,2000",
    ]
    subprocess.run(
        ["chromium", *flags, f"--user-data-dir={tmp_path}/profile", f"--screenshot={picture}", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert picture.stat().st_size > 50_000  # an empty page of this size has about 10 kB
