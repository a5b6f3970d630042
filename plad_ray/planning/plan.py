"""The stages of an experiment that cost something, each with its memory, tokens, time and price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plad_ray.config import SPLITS, Distill, Experiment, Lora, Pairs, Role, Sft
from plad_ray.errors import PladError
from plad_ray.planning import engines, memory, roofline
from plad_ray.planning.hardware import CORE_BANDWIDTH, CORE_FLOPS, Device, cpu
from plad_ray.planning.memory import TrainingMemory
from plad_ray.planning.shapes import Shape, shape_of
from plad_ray.train.layout import Batch
from plad_ray.train.sharing import choose_layout
from plad_ray.train.worker import objective_of


@dataclass(frozen=True)
class Sizes:
    """What the configuration does not say: prompts by split, and tokens a prompt and a response."""

    prompts: dict[str, int]
    prompt: int
    response: int


@dataclass(frozen=True)
class Estimate:
    """One stage, or one role's part of it. ``memory``: bytes of one worker (or engine) by purpose; ``capacity``: of what it
    runs on; ``seconds`` with all ``count`` workers; ``cost`` in $ of all their devices."""

    stage: str
    device: str
    count: int
    devices: float
    memory: dict[str, float]
    total: float
    capacity: float
    fits: bool
    tokens: int
    seconds: float
    cost: float
    bound: str
    note: str = ""


@dataclass(frozen=True)
class Used:
    """``count`` workers of ``devices`` devices each, ``total`` bytes a worker. CPU workers share their machine's memory."""

    device: Device
    count: int
    devices: float
    memory: dict[str, float]
    total: float
    room: bool

    def estimate(self, stage: str, tokens: int, time: roofline.Time, note: str) -> Estimate:
        capacity = self.device.memory * (1 / self.count if self.device.shared else self.devices)
        fits = self.room and self.total <= capacity
        cost = time.seconds / 3600 * self.device.price * self.count * self.devices
        name, bound = self.device.name, time.bound
        return Estimate(stage, name, self.count, self.devices, self.memory, self.total, capacity, fits, tokens, time.seconds,
                        cost, bound, note)  # fmt: skip


@dataclass(frozen=True)
class Forecast:
    experiment: str
    estimates: list[Estimate]
    pools: dict[str, Any] | None
    assumptions: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Planner:
    exp: Experiment
    gpu: Device
    sizes: Sizes
    shapes: dict[str, Shape | None] = field(default_factory=dict)
    known: dict[Any, TrainingMemory] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)

    def training(self, name: str, role: str, section: Sft | Distill, pairs: Pairs | None) -> Estimate:
        """A run that trains ``role``'s model."""
        shape, runtime = self.shape(role), self.exp.runtime.train
        objective = objective_of(section)
        full = section.method == "full"
        candidates = self.candidates(objective.trains_on, pairs)
        prompt, response = self.sizes.prompt, self.sizes.response
        named = tuple(dict.fromkeys((*objective.logits_of, *objective.logps_of)))
        frozen = tuple(self.shape("teacher" if key == "teacher" else "student") for key in named)
        own = sum(s.weights for key, s in zip(named, frozen, strict=True) if key == "teacher" or full)
        beside = {f"the {key} model": other.model for key, other in zip(named, frozen, strict=True)}
        layout, why = choose_layout(runtime.layout, shape.model, beside)
        self.layouts[name] = layout.name + (f": {why}" if why else "")
        batch = layout.collate(memory.like_rows(runtime.micro_batch, prompt, response, candidates), 0, 1)
        held = self.held(role, None if full else section.lora, batch, own)
        device = self.device(runtime.gpus_per_worker, runtime.cpus_per_worker)
        count = self.rows(section, objective.trains_on, pairs)
        tokens = batch.ids_SL.numel() // runtime.micro_batch
        work = roofline.Work(tokens, prompt / 2, candidates * response)
        if shape.seq2seq:
            work = roofline.Work(tokens, prompt + response / 2, candidates * response, prompt, candidates)
        time = roofline.training(
            shape,
            device,
            runtime.workers,
            count * section.epochs,
            work,
            full,
            runtime.gradient_checkpointing,
            frozen,
            runtime.fused_kernels,
        )
        parts = {k: v for k, v in asdict(held).items() if k != "trained"}
        note = f"{held.trained / 1e6:.3g} M trained"
        if objective.rollout is not None:
            note += "; samples of the live student not counted"
        used = Used(device, runtime.workers, runtime.gpus_per_worker or 1.0, parts, held.total, True)
        return used.estimate(name, round(count * section.epochs * (tokens + work.encoded)), time, note)

    def held(self, role: str, lora: Lora | None, batch: Batch, own: float) -> TrainingMemory:
        """What a worker holds that trains all weights (``lora`` None) or an adapter; arms that train the same share it."""
        key = (role, lora, type(batch), batch.ids_SL.shape, batch.mask_BKT.shape, own)
        if key not in self.known:
            shape = self.shape(role)
            model = Shape(shape.config, shape.dtype).model if lora is None else shape.lora(lora)
            self.known[key] = memory.training(shape, model, self.exp.runtime.train, batch, own)
        return self.known[key]

    def generation(self, name: str, role: str, requests: int, prompts: int) -> Estimate | None:
        """What ``role``'s engines do; None behind an API."""
        shape = self.shapes[role]
        if shape is None:
            return None
        pool = getattr(self.exp.runtime, role)
        model, kind = getattr(self.exp, role).model, getattr(self.exp, role).engine
        device = self.device(pool.gpus, max(1.0, pool.cpus))
        lengths = self.sizes.prompt, self.sizes.response
        room = sum(lengths) if shape.seq2seq else min(model.max_length, sum(lengths))
        if kind == "transformers":  # each request reads its prompt
            held, prompts = engines.batches(shape, pool, room), requests
        else:
            held = engines.engine(shape, pool, device, room)
        time = roofline.generation(shape, device, pool.gpus or 1.0, max(1, held.sequences), requests, prompts, *lengths)
        time = roofline.Time(time.seconds / pool.replicas, time.bound)
        parts = {k: v for k, v in asdict(held).items() if k not in ("sequences", "fits")}
        used = Used(device, pool.replicas, pool.gpus or 1.0, parts, held.total, held.fits)
        tokens = requests * self.sizes.response + prompts * self.sizes.prompt
        return used.estimate(f"{name}: {role}", tokens, time, f"{held.sequences} sequences at once")

    def shape(self, role: str) -> Shape:
        shape = self.shapes[role]
        if shape is None:
            raise PladError(f"{role} is behind an API: its logits cannot be had")
        return shape

    def device(self, gpus: float, cpus: float) -> Device:
        return self.gpu if gpus > 0 else cpu(cpus)

    def candidates(self, table: str, pairs: Pairs | None) -> int:
        """Texts of a training row."""
        if table in ("references", "chosen"):
            return 1
        if table != "lists":
            return 2
        if pairs is not None and pairs.lists is not None:
            return len(pairs.lists)
        roles = [role for role in (self.exp.teacher, self.exp.student) if role is not None]
        return sum(len(role.draw.temperatures) * role.draw.samples for role in roles)

    def rows(self, section: Sft | Distill, table: str, pairs: Pairs | None) -> int:
        """Training rows of an epoch."""
        split = "train" if isinstance(section, Sft) else "distill"
        each = pairs.rejection.keep // 2 if table == "rejection" and pairs is not None else 1
        caps = [section.limit, pairs.limit if pairs is not None and table != "references" else None]
        first = section.prompts if isinstance(section, Distill) else None
        prompts = min(self.sizes.prompts[split], first or self.sizes.prompts[split])
        return min([prompts * each, *(cap for cap in caps if cap is not None)])


def forecast(exp: Experiment, gpu: Device, sizes: Sizes, configs: Mapping[str, Path]) -> Forecast:
    """Every stage of ``exp`` that trains or generates, in order. Raises PladError for what cannot be known here."""
    planner = Planner(exp, gpu, sizes)
    roles: dict[str, Role] = {n: r for n in ("teacher", "student") if (r := getattr(exp, n)) is not None}
    planner.shapes = {name: shape_of(name, role.model, configs) for name, role in roles.items()}
    found = [planner.training(f"sft-{n}", n, role.sft, None) for n, role in roles.items() if role.sft is not None]
    test = min(sizes.prompts[exp.evaluate.split], exp.evaluate.limit or sizes.prompts[exp.evaluate.split])
    drawn = []
    for name, role in roles.items():
        imported = exp.data.pairs is not None or (name == "teacher" and exp.data.responses is not None)
        draws = 0 if imported else sizes.prompts["distill"]
        requests = draws * len(role.draw.temperatures) * role.draw.samples + test * len(exp.evaluate.temperatures)
        drawn.append(planner.generation("responses", name, requests, draws + test))
    found += [estimate for estimate in drawn if estimate is not None]
    for arm, (pairs, section) in exp.arms().items():
        found.append(planner.training("distill" if arm == "distilled" else f"distill-{arm}", "student", section, pairs))
    requests = test * len(exp.evaluate.temperatures) * len(exp.arms())
    served = planner.generation("eval-responses", "student", requests, test * len(exp.arms()))
    found += [served] if served is not None else []
    trading = len(drawn) == 2 and None not in drawn and len({e.device for e in drawn if e is not None}) == 1
    pools = _balance(*drawn) if trading else None
    return Forecast(exp.name, found, pools, assumptions(planner, trading))


def _balance(teacher: Any, student: Any) -> dict[str, Any]:
    """How many of the devices that teacher and student have now each should get, so that both are done together."""
    work = {name: e.seconds * e.count for name, e in (("teacher", teacher), ("student", student))}
    total = teacher.count * teacher.devices + student.count * student.devices
    best: tuple[float, int, int] | None = None
    for replicas in range(1, int((total - student.devices) // teacher.devices) + 1):
        others = int((total - replicas * teacher.devices) // student.devices)
        slowest = max(work["teacher"] / replicas, work["student"] / others)
        if best is None or slowest < best[0]:
            best = slowest, replicas, others
    assert best is not None
    now = max(teacher.seconds, student.seconds)
    return {
        "devices": total, "seconds_now": now, "seconds": best[0],
        "teacher_replicas": best[1], "student_replicas": best[2],
    }  # fmt: skip


def sizes_of(exp: Experiment, prompts: int | None, prompt_tokens: int | None, response_tokens: int | None) -> Sizes:
    """What the options say, else what the configuration bounds. Raises PladError when the number of prompts is unknown."""
    data = exp.data
    found: dict[str, int] = {}
    for split in SPLITS:
        read = None if prompts is None else round(prompts * data.fractions.get(split, 0.0))
        known = [n for n in (data.sizes.get(split), read or None, data.limit) if n is not None]
        if not known and split == exp.evaluate.split and exp.evaluate.limit is not None:
            known = [exp.evaluate.limit]
        found[split] = min(known, default=0)
    unknown = [split for split in ("train", "distill") if not found[split] and data.fractions.get(split, 0) > 0]
    if unknown:
        raise PladError(
            f"how many prompts {' and '.join(unknown)} will have is not in the configuration: give --prompts N"
        )
    models = [role.model for role in (exp.teacher, exp.student) if role is not None and role.model.api is None]
    room = min(m.max_prompt_tokens or m.max_length - exp.generate.max_tokens for m in models)
    return Sizes(found, prompt_tokens or room, response_tokens or exp.generate.max_tokens)


def assumptions(planner: Planner, trading: bool) -> list[str]:
    """What the forecast takes for granted, and what it did not look at."""
    sizes, gpu, train = planner.sizes, planner.gpu, planner.exp.runtime.train
    share = roofline.training_share(planner.device(train.gpus_per_worker, train.cpus_per_worker), train.fused_kernels)
    layouts: dict[str, list[str]] = {}
    for stage, layout in planner.layouts.items():
        layouts.setdefault(layout, []).append(stage)
    splits = ", ".join(f"{split} {count:,}" for split, count in sizes.prompts.items())
    return [
        f"prompts: {splits}; every prompt {sizes.prompt} tokens, every response {sizes.response} (bounds of the "
        "configuration unless given: --prompts, --prompt-tokens, --response-tokens)",
        f"devices reach {roofline.PREFILL:.0%} of their peak in prefill, {share:.0%} in training, "
        f"{roofline.BANDWIDTH:.0%} of their bandwidth; start-up, checkpoints, communication between workers, scoring and "
        "evaluation are not counted",
        "memory is what is alive at the peak; allocators hold more (glibc on a CPU up to 1.8 times the activations)",
        *(f"batches of {', '.join(stages)} are {layout}" for layout, stages in layouts.items()),
        "training keeps no matrix of queries × keys (SDPA's efficient kernels); the optimizer is Adam; all rows are "
        "equally long, so nothing is padded",
        f"vLLM reads each prompt once for all its samples and takes {engines.UTILIZATION:.0%} of a GPU by default; "
        "engine transformers reads it for every request, one batch after another",
        f"a CPU core reaches {CORE_FLOPS / 1e9:g} GFLOP/s and {CORE_BANDWIDTH / 1e9:g} GB/s",
        *(
            []
            if trading
            else ["pool sizes are not compared: teacher and student do not both draw on one kind of device"]
        ),
        f"prices: $ {gpu.price:g} an hour for one {gpu.name}, a round figure (--price)",
    ]
