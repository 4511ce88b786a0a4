"""The guarded loop of the documentation runs, and the guard keeps what the loop alone forgets."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "guarded_loop.py"


def test_the_guard_keeps_the_first_task():
    main = runpy.run_path(str(EXAMPLE))["main"]
    naive, _ = main(strength=0.0)
    kept, new = main(strength=30.0)
    assert kept > naive + 0.1
    assert new > 0.6


def test_the_documentation_shows_this_loop():
    page = (Path(__file__).parents[2] / "docs" / "guards.md").read_text()
    source = EXAMPLE.read_text()
    shown = page.split("<!-- examples/guarded_loop.py -->\n```python\n")[1].split("```")[0]
    for line in shown.strip().splitlines():
        assert line.strip() in source, line
