"""The experiment file: one YAML, parsed into frozen pydantic models before anything heavy is imported.

Everything outside ``runtime`` changes the result and is identity; ``runtime`` (workers, GPUs, paths) never is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from plad_ray.errors import PladError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, le=10)]
SplitName = Literal["train", "distill", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "distill", "dev", "test")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Columns(Section):
    """Names of the source's columns."""

    prompt: str = "prompt"
    reference: str | None = "reference"
    prompt_id: str | None = None
    group: str | None = None
    join: str = Field(" ", description="joins a prompt given as a list (of a list of references the first counts)")


class Data(Section):
    source: Literal["demo", "files", "tldr", "hh"]
    path: str | list[str] | None = Field(None, description="file, glob, folder or list of them (jsonl, parquet)")
    splits_paths: dict[SplitName, str] = Field({}, description="files: one path a split, instead of splitting `path`")
    hub: str | None = Field(None, description="name of a dataset on the Hub")
    hub_config: str | None = None
    revision: str | None = Field(None, description="commit of the hub dataset; resolved and recorded when not given")
    hub_splits: dict[SplitName, str] = Field({}, description="our split -> split of the hub dataset")
    columns: Columns = Columns()
    prompt_format: str = Field("{prompt}", description="plain prompt text made from the source's columns")
    reference_format: str = Field("{reference}", description="reference text made from the source's columns")
    sizes: dict[SplitName, Count] = Field({}, description="rows a split; demo needs all four, others cap with it")
    fractions: dict[SplitName, Fraction] = Field(
        {"train": 0.45, "distill": 0.45, "dev": 0.05, "test": 0.05},
        description="how `path` is split; train and distill are the paper's two equal shards",
    )
    group_split: bool = Field(True, description="rows of one group stay in one split (no leakage)")
    limit: Count | None = Field(None, description="a pilot: at most this many rows in each split")
    max_prompt_chars: Count | None = None
    responses: str | None = Field(None, description="existing teacher responses to import instead of generating")
    pairs: str | None = Field(None, description="finished preference pairs to import instead of making them")

    @model_validator(mode="after")
    def _source(self) -> Data:
        given = [n for n, v in (("path", self.path), ("splits_paths", self.splits_paths), ("hub", self.hub)) if v]
        if self.source == "demo":
            missing = [s for s in SPLITS if s not in self.sizes]
            if given or missing:
                raise ValueError(
                    f"data.source demo takes data.sizes for every split ({', '.join(SPLITS)}) and no file; "
                    f"missing sizes: {missing or 'none'}, given: {given or 'none'}"
                )
        elif self.source == "files" and len(given) != 1:
            raise ValueError(
                f"data.source files needs exactly one of path, splits_paths, hub; given: {given or 'none'}"
            )
        if abs(sum(self.fractions.values()) - 1) > 1e-6:
            raise ValueError(f"data.fractions must add up to 1; they add up to {sum(self.fractions.values()):g}")
        if self.responses and self.pairs:
            raise ValueError("data.responses and data.pairs exclude each other: finished pairs need no responses")
        return self


class Scratch(Section):
    """A model trained from random weights in its SFT stage."""

    model_type: str = "llama"
    config: dict[str, int | float | bool | str] = Field(description="arguments of the transformers config class")
    tokenizer: Literal["words", "bpe"] = "bpe"
    vocab_size: Count = Field(4096, description="upper bound; `words` keeps every word of the train shard below it")


class Model(Section):
    path: str | None = Field(None, description="hub id or local folder of the base model")
    revision: str | None = None
    adapter: str | None = Field(None, description="local folder of an existing PEFT adapter on `path`")
    scratch: Scratch | None = None
    template: Literal["plain", "chat"] = "plain"
    dtype: Literal["float32", "bfloat16"] = "float32"
    load_in_4bit: bool = False
    trust_remote_code: bool = False
    max_length: Count = Field(512, description="tokens of prompt + response, in training and generation")
    max_prompt_tokens: Count | None = Field(None, description="longer prompts are cut on the left when set, else fail")
    eos_token: str | None = Field(None, description="when the tokenizer's own is absent or not what ends a response")
    stop_token_ids: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("a model needs exactly one of path (hub id or folder) and scratch (made here)")
        if self.adapter and self.scratch:
            raise ValueError("model.adapter needs model.path: a model made from scratch has no adapter yet")
        return self


class Lora(Section):
    """Paper's values (PLaD §5.1): r 8, alpha 32, dropout 0.1. ``target_modules`` None is PEFT's per-architecture default."""

    r: Count = 8
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    target_modules: tuple[str, ...] | Literal["all-linear"] | None = None


class Training(Section):
    epochs: Positive = 1
    batch_size: Count = Field(64, description="prompts an optimizer step, over all workers")
    learning_rate: Positive = 1e-4
    warmup_ratio: Fraction = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: Positive = 1.0
    limit: Count | None = Field(None, description="train on this many rows only (a nested prefix)")


class Sft(Training):
    method: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()


class Objective(BaseModel):
    """``name`` of a built-in or ``package.module:Class``; the other keys are the objective's own fields."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "plad_rank"

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known(self) -> Objective:
        from plad_ray.objectives import build

        build(self.name, self.params)
        return self


class Distill(Training):
    objective: Objective = Objective()
    lora: Lora = Lora()
    select_on_dev: dict[str, dict[str, Any]] = Field(
        {}, description="candidates by name, each a partial distill section; the best dev win rate is kept"
    )

    def candidates(self) -> dict[str, Distill]:
        """The full sections that ``select_on_dev`` names."""
        base = self.model_copy(update={"select_on_dev": {}})
        return {n: overlay(base, changes, f"distill.select_on_dev.{n}") for n, changes in self.select_on_dev.items()}


class Draw(Section):
    """What one role generates for the prompts of the distill shard."""

    temperatures: tuple[Temperature, ...] = (0.7,)
    samples: Count = 1


class Role(Section):
    model: Model
    sft: Sft | None = Field(None, description="null: already tuned")
    engine: Literal["vllm", "transformers"] = "vllm"
    draw: Draw = Draw()

    @model_validator(mode="after")
    def _scratch_needs_full_sft(self) -> Role:
        if self.model.scratch and (self.sft is None or self.sft.method != "full"):
            raise ValueError(
                "model.scratch needs sft.method full: random weights are no base for LoRA or for generation"
            )
        if self.model.load_in_4bit and self.sft is not None and self.sft.method == "full":
            raise ValueError("model.load_in_4bit cannot be trained with sft.method full; use lora")
        return self


class Generate(Section):
    max_tokens: Count = 64
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="0: off")
    stop: tuple[str, ...] = Field((), description="text from the first of these on is cut")
    strip_reasoning: tuple[str, str] | None = Field(None, description="opening and closing mark, e.g. <think> </think>")
    max_error_fraction: Fraction = 0.01


class Pick(Section):
    """One side of a pair: which policy's text at which temperature."""

    policy: Literal["teacher", "student"]
    temperature: Temperature
    sample: Annotated[int, Field(ge=0)] = 0


class Pairs(Section):
    chosen: Pick = Pick(policy="teacher", temperature=0.7)
    rejected: Pick = Pick(policy="student", temperature=0.7)
    drop_truncated_chosen: bool = True
    limit: Count | None = Field(None, description="at most this many pairs (a nested prefix)")


class Arm(Section):
    """A further training run on the same responses: partial sections laid over `pairs` and `distill`."""

    pairs: dict[str, Any] = {}
    distill: dict[str, Any] = {}


class Scorer(Section):
    """``demo``, ``rouge``, ``classifier`` (sequence-classification reward model) or ``package.module:function``."""

    name: str
    model: str | None = Field(None, description="classifier: hub id or folder")
    metric: Literal["rouge1", "rouge2", "rougeL"] = "rougeL"
    batch_size: Count = 32
    max_length: Count = 512


class Evaluate(Section):
    temperatures: tuple[Temperature, ...] = (0.7, 0.0)
    split: SplitName = "test"
    limit: Count | None = None
    bootstrap: Count = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class Pool(Section):
    """Engine actors of one role."""

    replicas: Count = 1
    gpus: Annotated[float, Field(ge=0)] = Field(0, description="GPUs a replica; a fraction shares one")
    cpus: Annotated[float, Field(ge=0)] = 0.5
    accelerator_type: str | None = None
    batch_size: Count = 64
    engine_kwargs: dict[str, Any] = Field({}, description="passed to vLLM as they are")


class TrainRuntime(Section):
    workers: Count = 1
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    micro_batch: Count = Field(64, description="prompts a forward pass of one worker")
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "all"] = "none"
    gradient_checkpointing: bool = False
    checkpoint_every: Count = Field(100, description="optimizer steps between checkpoints")
    max_failures: Annotated[int, Field(ge=0)] = 3


class Runtime(Section):
    """Where and how, never what: nothing here changes an artifact's name."""

    store: str = "runs"
    ray_address: str | None = Field(None, description="null: RAY_ADDRESS, else a local Ray of this process")
    local_cpus: Count | None = Field(None, description="logical CPUs of a local Ray; null: max(4, cores)")
    parallel_stages: Count = 2
    teacher: Pool = Pool()
    student: Pool = Pool()
    train: TrainRuntime = TrainRuntime()
    verify_engine: bool = Field(True, description="after loading an adapter, check that it acts and log-probs agree")


class Experiment(Section):
    """One YAML. See jobs/ for complete examples."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$")]
    seed: int = 0
    data: Data
    teacher: Role | None = Field(None, description="may be absent when data.responses or data.pairs brings its text")
    student: Role
    generate: Generate = Generate()
    pairs: Pairs = Pairs()
    distill: Distill = Distill()
    compare: dict[str, Arm] = Field({}, description="further arms by name, shown beside the main one")
    scorer: Scorer | None = None
    evaluate: Evaluate = Evaluate()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _combinations(self) -> Experiment:
        if self.teacher is None and not (self.data.responses or self.data.pairs):
            raise ValueError("teacher is missing: give a teacher, or its text by data.responses or data.pairs")
        if self.data.pairs is None:
            for name, (pairs, _) in self.arms().items():
                self._check_pairs(name, pairs)
        if self.teacher == self.student:
            raise ValueError("teacher and student are the same model with the same SFT: every pair would be noise")
        self.distill.candidates()
        needs_scorer = [
            ("distill.select_on_dev", bool(self.distill.select_on_dev)),
            *((f"objective of arm {n}", _needs_scores(d.objective)) for n, (_, d) in self.arms().items()),
        ]
        for what, needed in needs_scorer:
            if needed and self.scorer is None:
                raise ValueError(f"{what} needs scores: set scorer.name (demo, rouge, classifier or module:function)")
        if self.student.model.load_in_4bit and self.runtime.train.zero_stage == 3:
            raise ValueError("student.model.load_in_4bit does not work with runtime.train.zero_stage 3; use 0, 1 or 2")
        return self

    def _check_pairs(self, arm: str, pairs: Pairs) -> None:
        for side in ("chosen", "rejected"):
            pick: Pick = getattr(pairs, side)
            if self.data.responses is not None and pick.policy == "teacher":
                continue
            draw: Draw = getattr(self, pick.policy).draw
            if pick.temperature not in draw.temperatures or pick.sample >= draw.samples:
                raise ValueError(
                    f"pairs.{side} of arm {arm} asks for {pick.policy} text at temperature {pick.temperature:g}, sample "
                    f"{pick.sample}, but {pick.policy}.draw makes temperatures {list(draw.temperatures)} × {draw.samples} "
                    f"samples; add it to {pick.policy}.draw.temperatures"
                )
        if pairs.chosen == pairs.rejected:
            raise ValueError(
                f"pairs.chosen and pairs.rejected of arm {arm} are the same text: every pair would be identical"
            )

    def arms(self) -> dict[str, tuple[Pairs, Distill]]:
        """Every training run by name: ``distilled`` (the main one) and those under ``compare``."""
        arms = {"distilled": (self.pairs, self.distill)}
        for name, arm in self.compare.items():
            if name in ("distilled", "teacher", "student", "reference"):
                raise ValueError(f"compare.{name}: the name is taken; choose another")
            base = self.distill.model_copy(update={"select_on_dev": {}})
            arms[name] = (
                overlay(self.pairs, arm.pairs, f"compare.{name}.pairs"),
                overlay(base, arm.distill, f"compare.{name}.distill"),
            )
        return arms


def _needs_scores(objective: Objective) -> bool:
    from plad_ray.objectives import build

    return build(objective.name, objective.params).needs_scores


def overlay(section: Any, changes: dict[str, Any], where: str) -> Any:
    """``section`` with a partial mapping laid over it, validated again. A new objective name drops the old's fields.

    Raises PladError naming the key below ``where``, the place of ``changes`` in the experiment file.
    """
    try:
        return type(section).model_validate(_merge(section.model_dump(), changes))
    except ValidationError as error:
        lines = [_explain(e, type(section), where + ".") for e in error.errors()]
        raise PladError("\n".join(lines).strip()) from None


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        renamed = (
            key == "objective" and isinstance(value, dict) and value.get("name", base[key]["name"]) != base[key]["name"]
        )
        keep = isinstance(value, dict) and isinstance(merged.get(key), dict) and not renamed
        merged[key] = _merge(merged[key], value) if keep else value
    return merged


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read an experiment file and lay dotted ``a.b=c`` overrides (values in YAML) over it.

    Raises PladError naming the file, the key, the value and what would be right.
    """
    file = Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PladError(f"{file}: no such experiment file") from None
    except UnicodeDecodeError as error:
        raise PladError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise PladError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise PladError(f"{file}: an experiment is a mapping of sections (name, data, teacher, student, …)")
    for override in overrides:
        _apply(raw, override)
    return parse(raw, str(file))


def parse(raw: dict[str, Any], where: str = "experiment") -> Experiment:
    """Validate a mapping; one PladError lists every problem."""
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise PladError(f"{where}:\n" + "\n".join(_explain(e) for e in error.errors())) from None


def _explain(error: Any, root: Any = None, prefix: str = "") -> str:
    key = prefix + ".".join(str(part) for part in error["loc"]) or "experiment"
    if error["type"] == "extra_forbidden":
        return f"  {key}: unknown key{_suggestion(error['loc'], root or Experiment)}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("missing", "value_error") else f" (given: {error['input']!r})"
    return f"  {key}: {message}{given}"


def _suggestion(location: tuple[Any, ...], root: Any) -> str:
    import difflib

    section: Any = root
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    known = list(getattr(section, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known keys here: {', '.join(known)}" if known else ""


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key or ".." in key or key.startswith(".") or key.endswith("."):
        raise PladError(f"override {override!r}: write it as section.key=value, e.g. distill.objective.margin=0.5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PladError(f"override {override!r}: the value is not valid YAML: {error}") from None
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise PladError(f"override {override!r}: {parent} is a value, not a section")
        node = child
    node[last] = value
