"""The ``plad`` command. Nothing heavy is imported before a command runs, so ``plad --help`` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from plad_ray.errors import PladError

if TYPE_CHECKING:
    from plad_ray.config import Experiment


class Commands(TyperGroup):
    """Turns what a user can act on into one message and exit code 2; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # package.module:Class of the user's own files
        try:
            return super().invoke(ctx)
        except PladError as error:
            typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            _interrupted()


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich takes longer than answering
    pretty_exceptions_enable=False,
    help="Distil a small language model from a big one on Ray (PLaD, arXiv 2406.02886). One YAML is one experiment.",
)

File = Annotated[Path, typer.Argument(metavar="EXP.yaml", help="the experiment file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="overrides, values in YAML")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the plan and run nothing")]
Address = Annotated[str, typer.Option("--address", help="of the cluster's dashboard")]
JobName = Annotated[str, typer.Argument(metavar="EXP.yaml|JOB", help="the experiment file, or a job's id")]
OfStudy = Annotated[
    str | None,
    typer.Option("--study", metavar="NAME", help="it is this study, and the file is as `plad study` takes it"),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="more log lines")]


@app.command()
def run(file: File, overrides: Overrides = None, dry_run: DryRun = False, verbose: Verbose = False) -> None:
    """Run an experiment: reuse what is finished, resume what is not."""
    from plad_ray import running

    running.run(_load(file, overrides), None, dry_run, verbose)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a stage, as `plad run --dry-run` names it")],
    file: File,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Run one stage and what it needs."""
    from plad_ray import running

    running.run(_load(file, overrides), name, dry_run, verbose)


@app.command()
def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="which study; `plad study list` names them")],
    file: Annotated[
        Path | None, typer.Argument(metavar="EXP.yaml", help="an experiment or a study file (jobs/studies/)")
    ] = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Run a study: a table or figure of the paper on your models and data. Settings: study.key=value."""
    from plad_ray.study import running

    if name == "list":
        running.list_studies()
        return
    if file is None:
        raise PladError(f"plad study {name}: give the experiment or study file, e.g. jobs/studies/{name}.yaml")
    running.run(name, file, tuple(overrides or ()), dry_run, verbose)


@app.command()
def inspect(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="prompts, tokens, pairs, responses, artifacts, lineage, or a stage")
    ],
    file: File,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", min=1, help="rows to show")] = 5,
    of: Annotated[str, typer.Option("--stage", help="lineage: of which stage; tokens: of which training stage")] = "",
) -> None:
    """Look at what a run made: rows, tokens and loss masks, artifacts and their lineage."""
    from plad_ray import inspection

    inspection.show(what, _load(file, overrides), n, of)


@app.command()
def plan(
    file: File,
    overrides: Overrides = None,
    on: Annotated[str, typer.Option("--on", help="h100, h200, a100-80, a100-40 or l4")] = "h100",
    prompts: Annotated[
        int | None, typer.Option(min=1, help="prompts of the data, which data.fractions divides")
    ] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of a prompt; else the bound")] = None,
    response_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of a response; else the bound")] = None,
    config: Annotated[list[str] | None, typer.Option(help="ROLE=config.json of a model that is elsewhere")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="$ an hour of one GPU")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """What each stage will need before it is run: memory and whether it fits, tokens, time, cost. Starts nothing."""
    from plad_ray.planning import command

    given = command.Given(on, prompts, prompt_tokens, response_tokens, tuple(config or ()), price)
    command.plan(_load(file, overrides), given, as_json)


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN [RUN]", help="a finished run: its experiment file, or its name in the store"),
    ],
    study: Annotated[
        str | None,
        typer.Option(
            "--study", metavar="NAME", help="RUN is this study: its file, or its experiment's name in the store"
        ),
    ] = None,
    store: Annotated[str, typer.Option("--store", help="where runs given by name are")] = "runs",
    out: Annotated[Path, typer.Option("--out", help="the page; its Markdown twin is written beside it")] = Path(
        "report.html"
    ),
) -> None:
    """Write one page of a finished run or study, or of two runs compared on the prompts they share."""
    from plad_ray.report import command

    for path in command.write(runs, store, out, study):
        typer.echo(path)


@app.command()
def export(
    what: Annotated[str, typer.Argument(metavar="pairs", help="what to export: pairs")],
    file: File,
    overrides: Overrides = None,
    to: Annotated[str, typer.Option("--to", help="trl, ms-swift, llama-factory, nemo-rl or openrlhf")] = "trl",
    out: Annotated[Path, typer.Option("--out", help="new JSONL file")] = Path("pairs.jsonl"),
    arm: Annotated[str, typer.Option("--arm", help="whose pairs")] = "distilled",
) -> None:
    """Write the pairs of a run in the format of another trainer."""
    from plad_ray.export.pairs import export

    if what != "pairs":
        raise PladError(f"plad export {what}: what can be exported is pairs")
    for path in export(_load(file, overrides), arm, to, out):
        typer.echo(path)


@app.command()
def push(
    file: File,
    repo: Annotated[str, typer.Option("--repo", help="organisation/name; the pairs go to <name>-pairs")],
    overrides: Overrides = None,
    arm: Annotated[str, typer.Option("--arm", help="which training run")] = "distilled",
    private: Annotated[bool, typer.Option(help="whether new repositories are private")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be uploaded, and upload nothing")] = False,
) -> None:
    """Upload a student and its pairs to a Hub, each with a card. The token is HF_TOKEN, the Hub HF_ENDPOINT."""
    from plad_ray.export.push import push

    for line in push(_load(file, overrides), arm, repo, private, dry_run):
        typer.echo(line)


@app.command()
def env() -> None:
    """Versions, devices and settings, for a bug report."""
    from plad_ray import env

    env.show()


@app.command()
def merge(
    file: File,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="new folder for the merged model")] = Path("merged"),
    arm: Annotated[str, typer.Option("--arm", help="which training run")] = "distilled",
    base_weight: Annotated[
        float | None, typer.Option(help="average with the start: its weight, 0 to 1 (with --parts or --layers: 0.2)")
    ] = None,
    parts: Annotated[
        int | None, typer.Option(help="runs of layers, each with a learned weight of this mean (AMA)")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="average one third only: low, middle or high")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="write a PEFT adapter, not a whole model")] = False,
) -> None:
    """Merge a distilled adapter into its base, averaged with its start where asked: one plain model folder."""
    from plad_ray.merge.command import merge

    options = {"base_weight": base_weight, "parts": parts, "layers": layers}
    asked = {name: value for name, value in options.items() if value is not None}
    written = merge(_load(file, overrides), arm, out, asked, adapter)
    typer.echo(f"{'adapter' if adapter else 'merged model'}: {written}")


@app.command()
def submit(
    file: File,
    overrides: Overrides = None,
    address: Address = "http://127.0.0.1:8265",
    runtime_env: Annotated[
        Path | None, typer.Option("--runtime-env", help="YAML laid over the default runtime environment")
    ] = None,
    wait: Annotated[bool, typer.Option(help="follow the logs until the job ends")] = True,
    study: OfStudy = None,
) -> None:
    """Run an experiment or a study as a Ray job, or attach to it when it runs already; exits with the job's success."""
    from plad_ray import submit

    raise typer.Exit(submit.submit(file, tuple(overrides or ()), address, runtime_env, wait, study))


@app.command()
def status(
    job: Annotated[
        str | None, typer.Argument(metavar="[EXP.yaml|JOB]", help="one job and its stages; else all")
    ] = None,
    overrides: Overrides = None,
    address: Address = "http://127.0.0.1:8265",
    study: OfStudy = None,
) -> None:
    """What was submitted and how far it is: rows, tokens a second, GPU hours and time left of its stages."""
    from plad_ray import jobs

    jobs.show_status(job, tuple(overrides or ()), address, study)


@app.command()
def logs(
    job: JobName,
    overrides: Overrides = None,
    address: Address = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option(help="follow until the job ends; exits with its success")] = True,
    study: OfStudy = None,
) -> None:
    """The log of a submitted experiment or study."""
    from plad_ray import jobs

    raise typer.Exit(jobs.show_logs(job, tuple(overrides or ()), address, wait, study))


@app.command()
def stop(
    job: JobName, overrides: Overrides = None, address: Address = "http://127.0.0.1:8265", study: OfStudy = None
) -> None:
    """Stop a submitted experiment or study. What is finished is kept; submitting it again resumes it."""
    from plad_ray import jobs

    jobs.stop(job, tuple(overrides or ()), address, study)


@app.command()
def manifest(
    file: Annotated[Path, typer.Argument(metavar="VALUES.yaml", help="see cluster/kuberay/")],
    overrides: Overrides = None,
) -> None:
    """The KubeRay manifests of an experiment, checked against what it needs, for `kubectl apply -f -`."""
    from plad_ray.manifest.render import manifest

    typer.echo(manifest(file, tuple(overrides or ())), nl=False)


@app.command()
def version() -> None:
    """The version of plad_ray."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        typer.echo(f"plad_ray {installed('plad-ray')}")
    except PackageNotFoundError:
        typer.echo("plad_ray (a checkout that is not installed)")


def _load(file: Path, overrides: list[str] | None) -> Experiment:
    from plad_ray.config import load

    return load(file, tuple(overrides or ()))


def main() -> None:
    """Entry point."""
    app()


def _interrupted() -> NoReturn:
    """Ctrl-C ends at once: what is finished is kept, and the lease of a dead process is taken over."""
    typer.secho(
        "\ninterrupted; what is finished is kept, and the same command again goes on from here", fg="yellow", err=True
    )
    sys.stdout.flush()
    sys.stderr.flush()
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
    os._exit(130)  # stage threads wait on Ray calls that nobody will answer
