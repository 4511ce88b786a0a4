"""YAML as configurations are written in it: safe, each key once, and keys as they are written."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from align.errors import ConfigError, Problem


class Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice; PyYAML would silently keep the last.

    A key is what is written: `on` is no truth value there, as it would be by YAML 1.1.
    """


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
            what = f"`{key.value}` is there twice, in lines {seen[key.value]} and {line}"
            raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
        seen[str(key.value)] = line
        if key.tag == "tag:yaml.org,2002:bool":
            key.tag = "tag:yaml.org,2002:str"
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a file.

    Raises:
        ConfigError: there is none, it is no YAML, or it holds no sections.
    """
    if path.is_dir():
        raise ConfigError([Problem(str(path), "is a folder.", "name a YAML file in it.")])
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        others = sorted(p.name for p in folder.glob("*.y*ml"))
        near = difflib.get_close_matches(path.name, others, n=1)
        fix = f"did you mean {folder / near[0]}?" if near else "check the path."
        raise ConfigError([Problem(str(path), "no such configuration file.", fix)])
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        what = f"is not valid YAML ({getattr(error, 'problem', None) or error})."
        raise ConfigError([Problem(line, what, "mend the file there.")]) from None
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be read ({error.strerror}).")]) from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        what = f"holds a {type(raw).__name__}, but sections are expected."
        raise ConfigError([Problem(str(path), what, "start with `model:` and `data:`.")])
    return raw


def read_value(text: str) -> Any:
    """A value on the command line.

    Raises:
        yaml.YAMLError: it is none; a ConstructorError names a key that is there twice.
    """
    return yaml.load(text, Loader=Loader)
