"""Run directories in, one self-contained HTML page out.

    collect     read run directories, whatever state they are in
    families    which runs are seeds of one thing, and what came from what
    evidence    win rates and models' figures, over prompts and over seeds; reward: its figures
    verdict     the headline; notices: what to know before believing it
    curves, charts, forest, layout, pipeline    pictures as inline SVG
    samples, records    texts, data cards, configurations, provenance
    build       the page, with templates/

Nothing here trains, samples or judges: a figure on the page is a figure in a run directory, or a
mean and interval of such figures over seeds.
"""

from align.report.build import build_report

__all__ = ["build_report"]
