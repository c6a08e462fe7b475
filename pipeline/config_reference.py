"""Write `docs/config.md` from the configuration's own descriptions.

python -m edgeline.pipeline.config_reference > docs/config.md
"""

import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edgeline.pipeline.config import PipelineConfig

INTRODUCTION = """\
# Settings

Written by `python -m edgeline.pipeline.config_reference > docs/config.md`; do not edit by hand.

`edgeline run --config FILE` reads TOML or YAML; `--set section.key=value` wins over the file, the command line's own options
win over both. Unknown keys are refused, and all problems are told at once. A file needs only what differs from the
defaults:

```toml
data = "photos"
name = "birds"
model = "efficientnet_lite0"

[train]
strategy = "head"
views = 2

[verify]
images = 1000
```
"""


def config_markdown() -> str:
    """The page."""
    return "\n".join([INTRODUCTION, *_section("", PipelineConfig)])


def _section(name: str, model: type[BaseModel]) -> Iterator[str]:
    if name:
        yield f"## [{name}]\n"
    yield "| key | default | values | what it does |\n|---|---|---|---|"
    plain = {key: field for key, field in model.model_fields.items() if not _is_section(field)}
    for key, field in plain.items():
        yield f"| `{key}` | `{field.default!r}` | {_values(field)} | {field.description} |"
    yield ""
    for key, field in model.model_fields.items():
        if _is_section(field):
            yield from _section(f"{name}.{key}" if name else key, typing.cast(type[BaseModel], field.annotation))


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _values(field: FieldInfo) -> str:
    if typing.get_origin(field.annotation) is tuple:
        [items, _] = typing.get_args(field.annotation)
        return "any of " + ", ".join(f"`{value}`" for value in typing.get_args(items))
    if typing.get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(field.annotation))
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{sign} {getattr(rule, name)}" for rule in field.metadata for name, sign in signs.items() if hasattr(rule, name)]
    return " and ".join([_type_name(field.annotation), *sorted(set(bounds))])


def _type_name(annotation: Any) -> str:
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(annotation, str(annotation))


if __name__ == "__main__":
    print(config_markdown(), end="")
