"""YAML as recipes need it: plain values, each key once, and nothing that grows, hangs or refers to itself."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from hf_dgl.hub.tokens import redacted

_MOST_BYTES = 64 * 2**10  # a recipe has three thousand
_MOST_VALUES = 10_000  # when every alias is written out
_MOST_BRACKETS = 1000  # nested ones take PyYAML a time that grows with the square of their number


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: in one line: too large, not UTF-8, or as [`parse_yaml`].

    Example:

        >>> read_yaml(Path("recipes/quickstart/image_text.yaml"))["dataset_name"]
        'sample:image_text'
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES // 1024} KB: a recipe is a page of `key: value` lines.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 (byte {error.start} is {content[error.start]:#04x}): save it as UTF-8."
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        text: Of a file or a word of the command line.
        where: What to call it in messages.

    Raises:
        ValueError: in one line: not YAML, a key twice, an alias of itself, or aliases that stand for too much.

    Example:

        >>> parse_yaml("{a: 1, b: [2, 3]}", "--alpha")
        {'a': 1, 'b': [2, 3]}
    """
    if text.count("[") + text.count("{") > _MOST_BRACKETS:
        raise ValueError(f"{where} has more than {_MOST_BRACKETS:,} opening brackets: no recipe needs them.")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {}, set())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {_in_a_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"{where} is not valid YAML: its values are nested too deeply.") from error
    except _Refused as error:
        raise ValueError(f"{where}: {error}") from error
    except (ValueError, TypeError, OverflowError) as error:  # a date or number that cannot be
        raise ValueError(f"{where} is not valid YAML: {_in_a_line(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _in_a_line(error: Exception) -> str:
    return redacted(" ".join(str(error).split()))  # PyYAML quotes the line


class _Refused(Exception):
    pass


def _check(node: yaml.Node, sizes: dict[yaml.Node, int], above: set[yaml.Node]) -> int:
    """The number of values in a node with all aliases written out; refuses what no recipe needs."""
    if node in above:
        raise _Refused(f"an alias contains itself (line {node.start_mark.line + 1}).")
    if node not in sizes:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        sizes[node] = 1 + sum(_check(part, sizes, above | {node}) for part in parts)
        if sizes[node] > _MOST_VALUES:
            raise _Refused(f"it stands for more than {_MOST_VALUES:,} values.")
    return sizes[node]


def _check_keys(node: yaml.MappingNode) -> None:
    seen: dict[Hashable, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _Refused(f"a key is no word (line {key.start_mark.line + 1}).")
        line = key.start_mark.line + 1
        if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
            raise _Refused(f"the key {key.value!r} stands twice, in lines {seen[key.value]} and {line}: remove one.")
        seen[key.value] = line
