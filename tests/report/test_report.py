"""The report from made-up artifacts: what it says, that it is safe and self-contained, that a browser draws it."""

import base64
import hashlib
import html
import json
import os
import re

import pytest
from rich.console import Console

from plad_ray.config import Pairs, Runtime
from plad_ray.evaluate.frame import Frame
from plad_ray.evaluate.holm import holm
from plad_ray.pairs import lists, rejection
from plad_ray.report import graph, lineage, sentences, significance, svg, terminal
from plad_ray.report import run as report_run
from plad_ray.report.cost import by_stage, kind_of
from plad_ray.report.markdown import fenced
from plad_ray.report.text import visible
from plad_ray.stages import Job
from tests.report.made_up import ARMS, finish, world
from tests.synthetic import job


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
    assert page.count('<article class="sample"') == 120 and text.count("| human reference |") == 6
    assert page.count("<svg") == 4 + 6 + 2 + 1 + 1  # results, training, pairs (shared), SFT, lineage
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


def test_nothing_is_requested_and_only_the_pages_own_script_may_run(made) -> None:
    _, page, _ = made
    text = re.search(r"<script>(.*?)</script>", page, re.DOTALL).group(1)
    assert page.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert not re.search(r"https?:|<img|<iframe|@import|url\(|\ssrc=", page.replace(svg_namespace(text), ""))


def svg_namespace(script: str) -> str:
    """The one address in a page: a name that is never fetched."""
    return re.search(r"http://www\.w3\.org/2000/svg", script).group(0)


EVIL = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=2">`|`\x1b[31m\u202e\x07'


def test_text_of_models_and_data_is_shown_not_run(tmp_path) -> None:
    made = world(tmp_path, count=8, evil=EVIL, name="<b>bold</b>")
    report_run.run(made)
    page, text = (made.out.store.read_bytes(made.out.file(f"files/report.{k}")).decode() for k in ("html", "md"))
    assert page.count("<script") == 1 and "<img" not in page and "<b>bold" not in page
    assert "&lt;/script&gt;&lt;script&gt;window" in page and "&lt;b&gt;bold&lt;/b&gt;" in page
    for found in (page, text):
        assert not {"\x1b", "\x07", "\u202e"} & set(found) and "␛" in found and "⟨U+202E⟩" in found and "␇" in found
    table = [line for line in text.splitlines() if "hacked" in line and line.startswith("|")]
    assert table and all("\\<script" in line and not re.search(r"(?<!\\)<", line) for line in table)


@pytest.mark.parametrize("kept", ["two\nlines\ttab", "naïve 日本語 👩‍👩‍👧 é", ""])
def test_ordinary_text_stays_as_it_is(kept) -> None:
    assert visible(kept) == kept


def test_significance_is_paired_ordered_and_corrected(made) -> None:
    made, page, _ = made
    rows = made.inputs["evaluation"].table().to_pylist()
    frame = Frame.from_rows(made.inputs["evaluation"].batches())
    found = significance.compare(frame, ["teacher", "student", "distilled"], [0.7], 400, 0, 0.95)
    assert len(found) == 3 and all(c.difference.mean >= 0 for c in found)
    score = {(r["policy"], r["prompt_id"]): r["score"] for r in rows if r["temperature"] == 0.7}
    ids = {key for _, key in score}
    [best] = [c for c in found if {c.better, c.worse} == {"distilled", "student"}]
    differences = [score["distilled", key] - score["student", key] for key in ids]
    assert best.better == "distilled" and best.clear
    assert best.difference.mean == pytest.approx(sum(differences) / len(differences))
    won = sum((d > 0) + (d == 0) / 2 for d in differences) / len(differences)
    assert best.rate.mean == pytest.approx(won)
    assert "Which differences are significant" in page and sentences.percent(won) in page


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, never falling
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def step(stage: str, inputs: tuple[str, ...] = (), **more) -> lineage.Step:
    values = {"rows_in": 1, "rows_out": 1, "dropped": {}, "started": "", "seconds": 0.0, "workers": 1, "gpus": 0}
    values |= {"tokens": None, "read": None, "settings": "{}", **more}
    identity = {"artifact": stage, "digest": "0", "inputs": {name: name for name in inputs}}
    return lineage.Step(stage=stage, **{**identity, **values})


def test_cost_counts_workers_and_gpus_by_kind_of_stage() -> None:
    steps = [
        step("sft-teacher", seconds=1800, workers=4, gpus=4, tokens=10),
        step("sft-student", seconds=3600, workers=2, gpus=0, tokens=5),
        step("eval-responses", seconds=36, workers=3, gpus=1.5, tokens=7, read=100),
    ]
    tuning, generation, total = by_stage(steps)
    assert (tuning.kind, tuning.stages, tuning.tokens) == ("supervised fine-tuning", 2, 15)
    assert tuning.worker_hours == pytest.approx(4) and tuning.gpu_hours == pytest.approx(2)
    assert generation.worker_hours == pytest.approx(0.03) and generation.gpu_hours == pytest.approx(0.015)
    assert total.worker_hours == pytest.approx(4.03) and generation.share == pytest.approx(0.03 / 4.03)
    assert (total.read, total.tokens, total.seconds) == (100, 22, 5436)


def test_workers_of_a_stage_are_read_off_its_manifest() -> None:
    runtime = Runtime.model_validate(
        {"train": {"workers": 2, "gpus_per_worker": 0.5}, "teacher": {"replicas": 3, "gpus": 2}}
    ).model_dump(mode="json")
    assert lineage._busy({"config": {"training": {}}, "runtime": runtime}) == (2, 1)
    policies = {"teacher": {"role": "teacher"}, "student": {"role": "student"}}
    assert lineage._busy({"config": {"policies": policies}, "runtime": runtime}) == (4, 6)
    assert lineage._busy({"config": {}, "runtime": runtime}) == (1, 0)


def test_the_graph_draws_what_no_other_path_implies() -> None:
    steps = [step("a"), step("b", ("a",)), step("c", ("a", "b")), step("d", ("c", "a"))]
    nodes = graph.fold(steps)
    assert graph.direct(nodes) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert graph.layers(nodes) == [["a"], ["b"], ["c"], ["d"]]


def several(seeds: int, arms: int) -> list[lineage.Step]:
    """Prompts, every arm and the evaluation of each seed."""
    steps = []
    for s in range(seeds):
        steps.append(step("prompts", artifact=f"p{s}", seed=s))
        trained = [step(f"distill-try{a}", (f"p{s}",), artifact=f"d{s}-{a}", seed=s) for a in range(arms)]
        steps += [*trained, step("evaluate", (f"p{s}", *(t.artifact for t in trained)), artifact=f"e{s}", seed=s)]
    return steps


def test_what_a_stage_made_under_several_seeds_is_one_box() -> None:
    nodes = graph.fold(several(seeds=3, arms=2))
    assert [(node.title, len(node.steps), node.rows) for node in nodes] == [
        ("prompts", 3, 3), ("distill-try0", 3, 3), ("distill-try1", 3, 3), ("evaluate", 3, 3)
    ]  # fmt: skip
    assert [[s.seed for s in node.steps] for node in nodes] == [[0, 1, 2]] * 4
    assert graph.layers(nodes) == [["prompts:0"], ["distill-try0:1", "distill-try1:1"], ["evaluate:2"]]
    assert len(graph.direct(nodes)) == 4, "evaluation's own edge from the prompts is implied"


def test_many_trials_are_one_box_and_the_table_has_them_all() -> None:
    steps = several(seeds=12, arms=12)
    nodes = graph.fold(steps)
    assert [(node.title, len(node.steps)) for node in nodes] == [("prompts", 12), ("distill", 144), ("evaluate", 12)]
    drawn = graph.draw(nodes)
    assert drawn.count("data-node=") == 3 and "144 runs, 144 rows" in drawn and 'href="#distill:1"' in drawn
    assert len(graph.fold(several(seeds=1, arms=graph.WIDE))) == graph.WIDE + 2, "as many as can be read stay apart"


def test_alike_stages_one_behind_the_other_are_not_one_box() -> None:
    """Rounds: what was trained writes the text that the next is trained on."""
    steps = [step("distill"), step("responses", ("distill",)), step("distill", ("responses",), artifact="second")]
    nodes = graph.fold(steps)
    assert graph.layers(nodes) == [["distill"], ["responses"], ["second"]]


def test_cost_of_what_only_studies_have() -> None:
    names = (
        "second-start",
        "second-start-scores",
        "tax-responses",
        "average-plad-20",
        "preference-scores-plain",
        "own",
    )
    assert [kind_of(step(name)) for name in names] == [
        "generation for the evaluation", "scoring", "generation for the evaluation", "averaging of models", "scoring", "own"
    ]  # fmt: skip


def test_a_run_without_scorer_has_a_report(tmp_path) -> None:
    made = world(tmp_path, count=8, scorer=None)
    report_run.run(made)
    page = made.out.store.read_bytes(made.out.file("files/report.html")).decode()
    assert "No scorer was set" in page and "Beats reference" not in page and "ROUGE-L" in page


def test_lineage_names_every_artifact_once(made) -> None:
    made, page, text = made
    names = {artifact.name for artifact in made.inputs.values()}
    for name in names:
        assert page.count(f'<tr id="{name}">') == 1 and page.count(f'data-node="{name}"') == 1
        assert f"| `{name}` |" in text
    assert page.count("<tr id=") == len(names)


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


def test_a_line_is_drawn_where_its_values_are_and_says_them() -> None:
    drawn = svg.xy("t<", [svg.Series("a<", [0, 10], [0, 1], 2)], svg.Axis("step"), svg.Axis())
    path = re.search(r'class="line" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', drawn)
    left, bottom, right, top = map(float, path.groups())
    assert (left, right) == (svg.LEFT, svg.WIDTH - svg.RIGHT)
    assert (bottom, top) == (svg.HEIGHT - svg.BOTTOM, svg.TOP)
    assert "t&lt;" in drawn and "<t<" not in drawn and 'data-name="a&lt;"' in drawn
    said = json.loads(html.unescape(re.search(r'data-points="([^"]*)"', drawn).group(1)))
    assert said == [[left, bottom, "0", "0"], [right, top, "10", "1"]]


def test_logarithmic_axes_and_bars_from_zero() -> None:
    assert svg.log_ticks(3, 400) == [2, 5, 10, 20, 50, 100, 200, 500]
    place = svg.Scale(1, 100, 0, 10, log=True)
    assert [place(v) for v in (1, 10, 100)] == pytest.approx([0, 5, 10])
    bars = [svg.Series(name, [0, 1], [2, 4], 0, "bars") for name in "ab"]
    drawn = svg.xy("t", bars, svg.Axis(names=("x", "y")), svg.Axis())
    heights = [float(h) for h in re.findall(r'<rect class="mark".*? height="([\d.]+)"', drawn)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2) and heights[:2] == heights[2:]


def test_names_that_would_run_into_each_other_are_slanted_and_the_drawing_is_as_much_higher() -> None:
    def drawn(*names: str) -> tuple[str, float]:
        series = svg.Series("a", range(len(names)), [1] * len(names), 0, "points")
        drawing, (_, height) = svg.xy_sized("t", [series], svg.Axis(names=names), svg.Axis(), [], (330, 200))
        return drawing, height

    short, height = drawn("a", "b", "c")
    assert height == 200 and "rotate" not in short
    long, height = drawn("a", "b", "a name of some length", "c", "d")
    assert long.count('text-anchor="end" transform="rotate(-35 ') == 5
    assert height - 200 == pytest.approx(21 * svg.LETTER * 0.5736, abs=0.6)
    assert f'viewBox="0 0 330 {height}"' in long


def test_a_fence_is_longer_than_the_backticks_in_the_text() -> None:
    assert fenced("a ```` b").startswith("`````\n")
