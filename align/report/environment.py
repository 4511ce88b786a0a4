"""Where the templates of every page are found, and what all of them may call."""

from __future__ import annotations

import jinja2

from align.report.forest import forest_axis, forest_row, reliability
from align.report.retention import nats_row
from align.report.values import figure, percent_interval, probability, shown


def page_environment(*packages: str) -> jinja2.Environment:
    """Templates of packages, the first that has one, with the filters and charts of every page.

    Text is escaped, and a value that is missing is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "figure": figure, "probability": probability}
    environment.globals |= {
        "forest_row": forest_row,
        "nats_row": nats_row,
        "forest_axis": forest_axis,
        "reliability": reliability,
        "percent_interval": percent_interval,
    }
    return environment
