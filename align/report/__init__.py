"""Run directories in, one self-contained HTML page out.

    collect     read run directories, whatever state they are in
    families    which runs are seeds of one thing; lineage
    evidence    win rates and reward-model figures, over prompts and over seeds
    notices     what a reader must know before believing the numbers
    curves, forest, pipeline    pictures as inline SVG
    sections    what the templates print
    build       the page

Nothing here trains, samples or judges: a figure on the page is a figure in a run directory, or a
mean and interval of such figures over seeds.
"""

from align.report.build import build_report

__all__ = ["build_report"]
