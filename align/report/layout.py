"""Where the boxes and arrows of a layered graph go (after Sugiyama, Tagawa and Toda 1981).

Pure geometry, without a word about runs: layers by longest path, each node as late as its users
allow, an arrow that skips a layer led through it by a waypoint (so that it never passes behind a
box), order and place by the mean of neighbours. `along` is the direction of flow, `beside` the
other one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SWEEPS = 12
_WAY = 8.0  # room that an arrow takes in a layer it passes


@dataclass(frozen=True)
class Link:
    """An arrow from `source` to `target`; links of one kind and source are bundled."""

    source: str
    target: str
    kind: str


@dataclass(frozen=True)
class Spot:
    """A placed node or waypoint: its centre beside, its start and extent along."""

    along: float
    beside: float
    length: float  # along
    breadth: float  # beside
    waypoint: bool = False


@dataclass(frozen=True)
class Layout:
    """Everything placed; `links` lead from spot to spot, waypoints included."""

    spots: dict[str, Spot]
    links: list[Link]
    length: float
    breadth: float


def lay_out(
    sizes: Mapping[str, tuple[float, float]],
    links: Sequence[Link],
    gap_along: float,
    gap_beside: float,
) -> Layout:
    """Place a graph.

    Args:
        sizes: length along and breadth beside of each node.
        links: between those nodes; cycles (broken records) are survived, not drawn well.
        gap_along: room between layers.
        gap_beside: room between neighbours in a layer.
    """
    depth = _depths(list(sizes), links)
    layers, pieces = _with_waypoints(list(sizes), links, depth)
    breadths = {
        name: sizes[name][1] if name in sizes else _WAY for layer in layers for name in layer
    }
    centres = _beside(layers, pieces, breadths, gap_beside)
    lowest = min(centres[name] - breadths[name] / 2 for name in centres)
    spots: dict[str, Spot] = {}
    along = 0.0
    for layer in layers:
        thick = max(sizes[name][0] for name in layer if name in sizes)
        for name in layer:
            own = sizes[name][0] if name in sizes else thick
            spots[name] = Spot(
                along=along + (thick - own) / 2,
                beside=centres[name] - lowest,
                length=own,
                breadth=breadths[name],
                waypoint=name not in sizes,
            )
        along += thick + gap_along
    breadth = max(spot.beside + spot.breadth / 2 for spot in spots.values())
    return Layout(spots, pieces, along - gap_along, breadth)


def _depths(names: Sequence[str], links: Sequence[Link]) -> dict[str, int]:
    depth = dict.fromkeys(names, 0)
    for _ in names:  # bounded, so that a cycle ends too
        for link in links:
            depth[link.target] = min(len(names), max(depth[link.target], depth[link.source] + 1))
    for name in sorted(names, key=lambda one: -depth[one]):
        users = [depth[link.target] for link in links if link.source == name]
        if users:
            depth[name] = max(depth[name], min(users) - 1)
    ranks = {level: rank for rank, level in enumerate(sorted(set(depth.values())))}
    return {name: ranks[level] for name, level in depth.items()}


def _with_waypoints(
    names: Sequence[str], links: Sequence[Link], depth: Mapping[str, int]
) -> tuple[list[list[str]], list[Link]]:
    """Layers with waypoints added, and the links cut into pieces of one layer each."""
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in names:
        layers[depth[name]].append(name)
    pieces: list[Link] = []
    for link in links:
        last = link.source
        for level in range(depth[link.source] + 1, depth[link.target]):
            way = f"{link.source}\n{link.kind}\n{level}"  # a name that no node can have
            if way not in layers[level]:
                layers[level].append(way)
            pieces.append(Link(last, way, link.kind))
            last = way
        pieces.append(Link(last, link.target, link.kind))
    return layers, list(dict.fromkeys(pieces))


def _beside(
    layers: list[list[str]],
    links: Sequence[Link],
    breadths: Mapping[str, float],
    gap: float,
) -> dict[str, float]:
    """Centres beside: each node near the mean of its neighbours, none overlapping."""
    near: dict[str, list[str]] = {name: [] for layer in layers for name in layer}
    for link in links:
        near[link.source].append(link.target)
        near[link.target].append(link.source)
    centres: dict[str, float] = {}
    for layer in layers:
        centres |= _spread(layer, dict.fromkeys(layer, 0.0), breadths, gap)
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = {
                name: sum(centres[other] for other in near[name]) / len(near[name])
                if near[name]
                else centres[name]
                for name in layer
            }
            layer.sort(key=wanted.__getitem__)
            centres |= _spread(layer, wanted, breadths, gap)
    return centres


def _spread(
    layer: Sequence[str],
    wanted: Mapping[str, float],
    breadths: Mapping[str, float],
    gap: float,
) -> dict[str, float]:
    """Places in order, each as wanted or just past its predecessor, the layer's mean kept."""
    placed: dict[str, float] = {}
    end = float("-inf")
    for name in layer:
        placed[name] = max(wanted[name], end + breadths[name] / 2)
        end = placed[name] + breadths[name] / 2 + gap
    shift = sum(wanted[name] - placed[name] for name in layer) / max(1, len(layer))
    return {name: place + shift for name, place in placed.items()}
