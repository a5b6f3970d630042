"""The ``data`` section: where prompts and references come from and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from plad_ray.config.base import SPLITS, Count, Fraction, Section, SplitName


class Columns(Section):
    """Names of the source's columns."""

    prompt: str = "prompt"
    reference: str | None = "reference"
    prompt_id: str | None = None
    group: str | None = None
    join: str = Field(" ", description="joins a prompt given as a list (of a list of references the first counts)")


class Data(Section):
    source: Literal["demo", "files", "tldr", "hh"]
    path: str | list[str] | None = Field(
        None, description="file, glob, folder or list of them, local or s3://… or gs://… (jsonl, parquet)"
    )
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
    split_seed: int | None = Field(
        None,
        exclude_if=lambda value: value is None,  # prompts that were made before keep their name
        description="of the splits that are cut, the same for every seed of a study; null: the experiment's seed",
    )
    limit: Count | None = Field(None, description="a pilot: at most this many rows in each split")
    max_prompt_chars: Count | None = None
    facts: tuple[Annotated[int, Field(ge=1, le=20)], ...] | None = Field(
        None,
        exclude_if=lambda value: value is None,  # prompts that were made before keep their name
        description="demo: numbers of facts in a post, drawn evenly; null: 2, 2 and 3, as the demo has them",
    )
    responses: str | None = Field(
        None, description="existing teacher responses (file or URI) instead of generating any"
    )
    pairs: str | None = Field(None, description="finished preference pairs (file or URI) instead of making them")

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
        if self.facts is not None and (self.source != "demo" or not self.facts):
            raise ValueError(
                "data.facts are one or more numbers, of the demo's posts: other sources have their own texts"
            )
        if self.split_seed is not None and self.source == "demo":
            raise ValueError("data.split_seed: the demo has new posts for every seed and cuts none; leave it out")
        if abs(sum(self.fractions.values()) - 1) > 1e-6:
            raise ValueError(f"data.fractions must add up to 1; they add up to {sum(self.fractions.values()):g}")
        if self.responses and self.pairs:
            raise ValueError("data.responses and data.pairs exclude each other: finished pairs need no responses")
        return self
