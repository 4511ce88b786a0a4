"""The pipeline picture: what came from what, with status, time and device, as inline SVG.

Seeds are folded into one box. The same function draws it across (desktop) and down (phone); where
things go is decided in `align.report.layout`.
"""

from __future__ import annotations

from markupsafe import Markup

from align.report.families import Family, Lineage, Node, display_name, hue
from align.report.layout import Layout, Link, Spot, lay_out
from align.report.svg import join, tag
from align.report.values import duration, text

WIDTH, HEIGHT, SOURCE_HEIGHT = 174, 96, 50
_EDGE = 6.0  # room around the picture
_PORT = 13.0  # room between arrows that end at one box
_STATUS = {
    "completed": ("✓", "completed"),
    "failed": ("✕", "failed"),
    "interrupted": ("‖", "interrupted"),
    "running": ("…", "still running"),
    "waiting": ("…", "waiting for people"),
    "unknown": ("?", "status unknown"),
}
_WORST_FIRST = ("failed", "unknown", "interrupted", "running", "waiting")


def draw_pipeline(lineage: Lineage, vertical: bool = False) -> Markup:
    """The picture, flowing right or down; an empty string where there is nothing to draw."""
    if not lineage.nodes:
        return Markup("")
    heights = {key: _height(node) for key, node in lineage.nodes.items()}
    sizes = {key: (tall, WIDTH) if vertical else (WIDTH, tall) for key, tall in heights.items()}
    links = [Link(edge.source, edge.target, edge.role) for edge in lineage.edges]
    gaps = (46.0, 14.0) if vertical else (46.0, 18.0)
    layout = lay_out(sizes, links, *gaps)
    arrows = [_arrow(link, layout, lineage, vertical) for link in layout.links]
    boxes = [
        _box(lineage.nodes[key], *_corner(spot, vertical), heights[key])
        for key, spot in layout.spots.items()
        if not spot.waypoint
    ]
    along, beside = layout.length + 2 * _EDGE, layout.breadth + 2 * _EDGE
    width, height = (beside, along) if vertical else (along, beside)
    return tag(
        "svg",
        join(arrows),
        join(boxes),
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        class_="pipeline " + ("down" if vertical else "across"),
        # Small pictures keep their size; large ones shrink until they can no longer be read.
        style=None if vertical else f"min-width: min(44rem, {width:g}px)",
        role="img",
        aria_label=describe_lineage(lineage),
    )


def describe_lineage(lineage: Lineage) -> str:
    """The picture in words."""
    label = {key: node.label for key, node in lineage.nodes.items()}
    steps = [f"{label[e.source]} to {label[e.target]} as {e.role}" for e in lineage.edges]
    return "Pipeline: " + ("; ".join(steps) if steps else ", ".join(label.values())) + "."


def _height(node: Node) -> int:
    if node.family is None:
        return SOURCE_HEIGHT
    return HEIGHT + (18 if node.data else 0)


def _corner(spot: Spot, vertical: bool) -> tuple[float, float]:
    """Upper left corner of a box, (x, y)."""
    along, beside = spot.along + _EDGE, spot.beside - spot.breadth / 2 + _EDGE
    return (beside, along) if vertical else (along, beside)


def _arrow(link: Link, layout: Layout, lineage: Lineage, vertical: bool) -> Markup:
    """One piece of an arrow; through a waypoint it runs straight, at a box it has its head."""
    source, target = layout.spots[link.source], layout.spots[link.target]
    start = (source.along + source.length + _EDGE, source.beside + _EDGE)
    end = (target.along + _EDGE, target.beside + _port(link, layout) + _EDGE)
    tip = end if target.waypoint else (end[0] - 6, end[1])
    middle = (start[0] + tip[0]) / 2
    curve = [start, (middle, start[1]), (middle, end[1]), tip]
    beyond = [(end[0] + target.length, end[1])] if target.waypoint else []
    head = [(end[0] - 8, end[1] - 4), (end[0] - 1, end[1]), (end[0] - 8, end[1] + 4)]
    first, *bends = [_point(point, vertical) for point in curve]
    path = f"M{first} C{' '.join(bends)}" + "".join(f" L{_point(p, vertical)}" for p in beyond)
    parts = [tag("path", d=path, class_="flow")]
    if not target.waypoint:
        shape = " L".join(_point(point, vertical) for point in head)
        parts.append(tag("path", d=f"M{shape} Z", class_="head"))
    known = link.kind if link.kind in ("model", "reward") else "data"
    label = lineage.nodes[link.source.split("\n")[0]].label
    return tag("g", tag("title", f"{label} as {link.kind}"), *parts, class_=f"edge role-{known}")


def _port(link: Link, layout: Layout) -> float:
    """How far from the middle of its target an arrow ends, so that heads do not coincide."""
    if layout.spots[link.target].waypoint:
        return 0.0
    same = [other for other in layout.links if other.target == link.target]
    same.sort(key=lambda other: layout.spots[other.source].beside)
    return _PORT * (same.index(link) - (len(same) - 1) / 2)


def _point(point: tuple[float, float], vertical: bool) -> str:
    x, y = reversed(point) if vertical else point
    return f"{x:.1f},{y:.1f}"


def _box(node: Node, x: float, y: float, height: int) -> Markup:
    family = node.family
    if family is None:
        return _source(node, x, y)
    states = [run.status if run.status in _STATUS else "unknown" for run in family.runs]
    worst = next((state for state in _WORST_FIRST if state in states), "completed")
    sign, word = _STATUS[worst]
    if len(states) > 1 and worst != "completed":
        word = f"{states.count(worst)} of {len(states)} {word}"
    title, _, variant = family.label.partition(" · ")
    taken = {26: 10.5 * len(title), 46: 8.7 * (len(word) + 2)}  # pixels of the two first lines
    line = min(taken, key=lambda one: taken[one])
    note = clip(variant, int((WIDTH - 40 - taken[line]) / 7))
    facts = [_time(family), clip(_device(family), 25)]
    if node.data:
        more = f" +{len(node.data) - 1}" if len(node.data) > 1 else ""
        facts.append("data: " + clip(node.data[0], 19 - len(more)) + more)
    return tag(
        "g",
        tag("title", "; ".join([family.label, word, *(str(run.path) for run in family.runs)])),
        tag("rect", width=WIDTH, height=height, rx=9, class_="card"),
        tag("rect", x=0, y=11, width=4, height=height - 22, rx=2, class_="stripe"),
        tag("text", title, x=16, y=26, class_="name"),
        tag("text", note, x=WIDTH - 12, y=line, class_="note"),
        tag("text", f"{sign} {word}", x=16, y=46, class_=f"state {worst}"),
        *(
            tag("text", fact, x=16, y=65 + 18 * row, class_="fact")
            for row, fact in enumerate(facts)
        ),
        class_=f"node {hue(family.stage)}",
        transform=f"translate({x:.1f} {y:.1f})",
    )


def _source(node: Node, x: float, y: float) -> Markup:
    word = "not found" if node.lost else "starting model"
    return tag(
        "g",
        tag("title", f"{node.label}: {word}"),
        tag("rect", width=WIDTH, height=SOURCE_HEIGHT, rx=SOURCE_HEIGHT // 2, class_="card"),
        tag("text", clip(display_name(node.label), 22), x=WIDTH / 2, y=22, class_="name"),
        tag("text", word, x=WIDTH / 2, y=38, class_="fact"),
        class_="node source" + (" lost" if node.lost else ""),
        transform=f"translate({x:.1f} {y:.1f})",
    )


def _time(family: Family) -> str:
    known = [run.seconds for run in family.runs if run.seconds is not None]
    kind = "runs" if family.folds else "seeds"
    seeds = f"{len(family.runs)} {kind}, " if len(family.runs) > 1 else ""
    if not known:
        return seeds + "time unknown"
    about = "about " if len(known) > 1 and min(known) < max(known) else ""
    return seeds + about + duration(sum(known) / len(known))


def _device(family: Family) -> str:
    devices = {text(run.record.get("device")) for run in family.runs}
    return " / ".join(sorted(devices - {""})) or "device unknown"


def clip(words: str, length: int) -> str:
    """The first `length` characters, an ellipsis where more were cut."""
    if length < 2:
        return ""
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"
