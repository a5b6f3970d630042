"""MkDocs hook: fills the reference pages from the models of the configuration and from the command line itself."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    made = {"reference/experiment.md": experiment, "reference/values.md": values, "reference/cli.md": cli}
    source = page.file.src_uri
    return markdown + made[source]() if source in made else markdown


def experiment() -> str:
    from plad_ray.config import Experiment

    return "\n".join(sections(Experiment, ""))


def values() -> str:
    from plad_ray.manifest.values import Values

    return "\n".join(sections(Values, ""))


def sections(model: type[BaseModel], where: str, seen: set[type[BaseModel]] | None = None) -> list[str]:
    """A table of a section's keys, then of the sections in it; each kind of section once."""
    seen = set() if seen is None else seen
    seen.add(model)
    lines = ["", f"## {f'`{where}`' if where else 'Top level'}", ""]
    if model.__doc__ and not model.__doc__.startswith("!!!"):
        lines += [" ".join(model.__doc__.split()), ""]
    lines += ["| key | type | default | |", "|---|---|---|---|"]
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        kinds = _models(field.annotation)
        inner += [(f"{where}.{name}".lstrip("."), kind) for kind in kinds]
        text = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {text} |")
    for key, kind in inner:
        if kind not in seen:
            lines += sections(kind, key, seen)
    return lines


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _type(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if isinstance(annotation, type) and not get_args(annotation):
        return {"NoneType": "null"}.get(annotation.__name__, annotation.__name__)
    origin = getattr(annotation, "__origin__", None)
    parts = get_args(annotation)
    if str(annotation).startswith("typing.Literal"):
        return " \\| ".join(f"`{p}`" for p in parts)
    if hasattr(annotation, "__metadata__"):
        return _type(parts[0])
    if origin in (tuple, list):
        return "list of " + " or ".join(dict.fromkeys(_type(p) for p in parts if p is not ...))
    if origin is dict:
        return f"mapping to {_type(parts[1])}"
    return " \\| ".join(dict.fromkeys(_type(p) for p in parts)) or "any"


def _default(field: Any) -> str:
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{shown}`".replace("|", "\\|")


def cli() -> str:
    import typer

    from plad_ray.cli import app

    group: Any = typer.main.get_command(app)
    lines: list[str] = []
    for name, command in group.commands.items():
        lines += [
            "",
            f"## plad {name}",
            "",
            command.help or "",
            "",
            "| argument or option | default | |",
            "|---|---|---|",
        ]
        for parameter in command.params:
            shown = (
                parameter.metavar or parameter.name
                if parameter.param_type_name == "argument"
                else ", ".join(parameter.opts)
            )
            default = "" if parameter.default in (None, False) or parameter.required else f"`{parameter.default}`"
            text = (getattr(parameter, "help", "") or "").replace("|", "\\|")
            lines.append(f"| `{shown!s}` | {default} | {text} |".replace("|JOB`", "\\|JOB`"))
    return "\n".join(lines)
