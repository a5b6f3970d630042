"""What every section is made of: strictness, shared types, and explanations of what pydantic refuses."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plad_ray.errors import PladError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, le=10)]
SplitName = Literal["train", "distill", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "distill", "dev", "test")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def overlay(section: Any, changes: dict[str, Any], where: str) -> Any:
    """``section`` with a partial mapping laid over it, validated again. A new objective name drops the old's fields.

    Raises PladError naming the key below ``where``, the place of ``changes`` in the experiment file.
    """
    try:
        return type(section).model_validate(_merge(section.model_dump(), changes))
    except ValidationError as error:
        lines = [explain(e, type(section), where + ".") for e in error.errors()]
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


def explain(error: Any, root: Any, prefix: str = "") -> str:
    key = prefix + ".".join(str(part) for part in error["loc"]) or "experiment"
    if error["type"] == "extra_forbidden":
        return f"  {key}: unknown key{_suggestion(error['loc'], root)}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("missing", "value_error") else f" (given: {error['input']!r})"
    return f"  {key}: {message}{given}"


def _suggestion(location: tuple[Any, ...], root: Any) -> str:
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
