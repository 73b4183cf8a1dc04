"""Single values changed in the text of a routing file, so that comments and the order people chose stay."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import yaml

#: Path in the file → value it shall have.
Edits: TypeAlias = Mapping[tuple[str, ...], float | int | bool]


def edited(text: str, edits: Edits) -> str:
    """Return the text with some values set, comments and layout kept wherever that is possible.

    Args:
        text: A valid routing file.
        edits: What to set; every mapping on the way must be there.

    Raises:
        KeyError: A mapping on the way is not in the file.
    """
    document = yaml.safe_load(text)
    wanted = copy.deepcopy(document)
    for path, value in edits.items():
        _place(wanted, path[:-1])[path[-1]] = value
    changed = text
    for path, value in edits.items():
        changed = _with(changed, path, _scalar(value))
    try:
        if yaml.safe_load(changed) == wanted:
            return changed
    except yaml.YAMLError:  # a layout this does not know; the values matter more than the comments
        pass
    return yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def _place(document: Any, path: Sequence[str]) -> Any:
    for part in path:
        document = document[part]
    return document


def _scalar(value: float | bool) -> str:
    return json.dumps(value) if isinstance(value, bool) else f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _with(text: str, path: Sequence[str], value: str) -> str:
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in path[:-1]:
        node = _member(node, part)
    found = _member(node, path[-1])
    if found is not None:
        return text[: found.start_mark.index] + value + text[found.end_mark.index :]
    if not isinstance(node, yaml.MappingNode) or not node.value:
        return text
    if node.flow_style:
        last = node.value[-1][1].end_mark.index
        return f"{text[:last]}, {path[-1]}: {value}{text[last:]}"
    first = node.value[0][0].start_mark
    return f"{text[: first.index]}{path[-1]}: {value}\n{' ' * first.column}{text[first.index :]}"


def _member(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == name:
                found: yaml.Node = value
                return found
    return None
