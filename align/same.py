"""Whether a run directory was started with this configuration: a resumed run continues no other.

Only where a run works and how it is tracked (the sections `run` and `tracking`) may change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from align.errors import RunError


def check_same(path: Path, resolved: dict[str, Any]) -> None:
    """Refuse to continue a run under another configuration.

    Args:
        path: the run directory.
        resolved: the stage's whole configuration now, with `stage`.

    Raises:
        RunError: it holds another stage, another configuration, or none that can be read.
    """
    try:
        before = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(
            f"--resume: {path / 'config.yaml'} cannot be read ({error}). Fix: restore it, or start "
            "a new run."
        ) from None
    if before.get("stage") != resolved["stage"]:
        raise RunError(
            f"--resume: {path} holds a {before.get('stage')} run, not {resolved['stage']}. Fix: "
            "set run.dir to the run to continue."
        )
    free = {"run", "tracking"}
    old = _flat({key: value for key, value in before.items() if key not in free})
    new = _flat({key: value for key, value in resolved.items() if key not in free})
    changed = [
        f"{key}: {old.get(key, 'unset')!r} -> {new.get(key, 'unset')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "unset") != new.get(key, "unset")
    ]
    if changed:
        raise RunError(
            f"--resume: the configuration differs from the one {path} was started with "
            f"({'; '.join(changed)}). Fix: resume with the same file and overrides, or start a "
            "new run."
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested sections and lists as one dict of dotted keys."""
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = list(enumerate(value))
    else:
        return {name: value}
    return {
        key: leaf
        for part, item in items
        for key, leaf in _flat(item, f"{name}.{part}" if name else str(part)).items()
    }
