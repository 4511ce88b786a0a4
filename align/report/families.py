"""Which runs are seeds of one thing, and what came from what.

Runs belong to one family when their stage and configuration agree in all but seeds and paths; only
a family is averaged over seeds. Leaves out drawing: `align.report.pipeline`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from align.report.collect import RunData, parent_folder
from align.report.values import Json, mapping, raw, text

# Where a run reads and writes, and its seed, may differ between the seeds of one pipeline.
_FREE_KEYS = {"seed", "dir", "overwrite", "path", "artefact", "policy", "init", "tokenizer"}
_FREE_SECTIONS = {"tracking"}
_MODEL_ROLES = ("model", "reward", "value", "reference")  # parents that are models
_NAMES = {"sft": "SFT", "reward": "Reward model", "evaluate": "Evaluation"}
_NAMES |= {"online_dpo": "Online DPO", "active": "Active learning"}
_NAMES |= {"continual": "Continual training"}
_NAMES |= {"selftrain": "Self-training"}
_NAMES |= {name: name.capitalize() for name in ("base", "before", "after", "policy")}
_ACRONYMS = ("sft", "dpo", "ppo", "kto", "grpo", "rloo", "rm")
_STAGE_ORDER = ("sft", "reward", "dpo", "kto", "ppo", "online_dpo", "grpo", "rloo")


def display_name(name: str) -> str:
    """How the page calls a stage or a model: `ppo` is `PPO`, `sft-merged` is `SFT-merged`."""
    if name in _NAMES:
        return _NAMES[name]
    head = next((acronym for acronym in _ACRONYMS if name.lower().startswith(acronym)), "")
    rest = name[len(head) :]
    return head.upper() + rest if head and not rest[:1].isalpha() else name


def judge_name(judge: str) -> str:
    """How the page calls a judge: `gold_score` is the `gold` judge."""
    return judge.removesuffix("_score").replace("_", " ").strip() or judge


def is_start(model: str) -> bool:
    """Whether a name stands for the model before any training."""
    return model.lower() in ("base", "before")


def in_order(names: Iterable[str]) -> list[str]:
    """Models as they came about: what was there before any training first, else as given."""
    return sorted(names, key=lambda name: not is_start(name))


def hue(name: str) -> str:
    """The colour class of a stage or model: one thing has one colour all over the page."""
    lowered = name.lower().removeprefix("online_")
    known = ("sft", "reward", "dpo", "ppo", "kto", "grpo", "rloo", "evaluate")
    return next((f"hue-{key}" for key in known if lowered.startswith(key)), "hue-base")


@dataclass(frozen=True)
class Family:
    """Runs that differ in seed and paths only, ordered by seed."""

    key: str  # unique on the page, usable as an id
    stage: str
    label: str
    runs: tuple[RunData, ...]

    @property
    def seeds(self) -> list[int]:
        """The distinct seeds, ascending."""
        return sorted({run.seed for run in self.runs if run.seed is not None})

    @property
    def folds(self) -> int:
        """How many folds a cross-validation has, whose runs these are; 0: they are seeds."""
        return folds_of(self.runs[0])

    @property
    def one_per_seed(self) -> tuple[RunData, ...]:
        """Runs to average: of several with one seed (and fold) the completed, last started one."""
        best: dict[object, RunData] = {}
        for run in self.runs:
            name = (run.seed, run.fold) if run.seed is not None else run.path
            if name not in best or _rank(run) > _rank(best[name]):
                best[name] = run
        return tuple(best.values())


def folds_of(run: RunData) -> int:
    """5 of a run that is one of five folds; 0 of any other."""
    whole = run.fold.rpartition("/")[2]
    return int(whole) if whole.isdecimal() else 0


def _rank(run: RunData) -> tuple[bool, str]:
    return run.status == "completed", text(run.record.get("started"))


def make_families(runs: Sequence[RunData]) -> list[Family]:
    """Group runs into families, in the order of the pipeline.

    What a run descends from counts: evaluations of differently trained policies are no seeds of
    each other, though their own configurations agree.
    """
    by_path = {run.path.resolve(): run for run in runs}
    deep = {id(run): _deep_settings(run, by_path) for run in runs}
    by_stage: dict[str, dict[str, list[RunData]]] = {}
    for run in runs:
        # Without a configuration nobody can say that two runs are alike.
        what = raw(sorted(deep[id(run)].items())) if run.config else str(run.path)
        by_stage.setdefault(run.stage, {}).setdefault(what, []).append(run)
    families = []
    for stage in sorted(by_stage, key=_stage_rank):
        siblings = list(by_stage[stage].values())
        for index, group in enumerate(siblings):
            group.sort(key=lambda run: (run.seed is None, run.seed or 0, run.name))
            folds = folds_of(group[0])  # which are told from other runs by that alone
            like = [other for other in siblings if folds_of(other[0]) == folds]
            leaves = [deep[id(other[0])] for other in like]
            extra = f" · {folds} folds" if folds else ""
            extra += f" · {_difference(like.index(group), like, leaves)}" if len(like) > 1 else ""
            key = f"{stage}-{index + 1}" if index else stage
            families.append(Family(key, stage, display_name(stage) + extra, tuple(group)))
    return families


def _deep_settings(run: RunData, by_path: dict[Path, RunData]) -> dict[str, list[str]]:
    """The settings of a run and of all it descends from: by stage and key, the values given."""
    found: dict[str, set[str]] = {}
    seen: set[Path] = set()
    queue = [run]
    while queue:
        one = queue.pop()
        if one.path.resolve() in seen:
            continue
        seen.add(one.path.resolve())
        for key, value in settings(one.config).items():
            found.setdefault(f"{one.stage}.{key}", set()).add(text(value))
        for parent in one.parents:
            folder = parent_folder(one, parent)
            if folder and folder.resolve() in by_path:
                queue.append(by_path[folder.resolve()])
    return {key: sorted(values) for key, values in found.items()}


def settings(config: Json) -> dict[str, object]:
    """A configuration's leaves by dotted key, without seeds and paths; of a fold, which of k."""
    kept = {key: value for key, value in config.items() if key not in _FREE_SECTIONS}
    found = dict(_leaves(kept, ""))
    if fold := text(mapping(config.get("data")).get("fold")):
        found["data.fold"] = fold.rpartition("/")[2]
        found.pop("data.split_seed", None)  # each repeat has folds of its own
    return found


def _leaves(value: object, prefix: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _FREE_KEYS:
                yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{prefix}.{index}")
    elif not (isinstance(value, str) and ("/" in value or "\\" in value)):
        yield prefix, value


def _difference(
    index: int, siblings: list[list[RunData]], leaves: list[dict[str, list[str]]]
) -> str:
    """What tells a family from its siblings: one or two settings, else where its runs lie."""
    keys = sorted({key for leaf in leaves for key in leaf})
    differing = [key for key in keys if len({raw(leaf.get(key)) for leaf in leaves}) > 1]
    if 0 < len(differing) <= 2 and all(leaves):
        return ", ".join(
            f"{key.rsplit('.', 1)[-1]} {_said(leaves[index].get(key))}" for key in differing
        )
    first = siblings[index][0]
    names = [group[0].name for group in siblings]
    own = first.path.resolve()
    return first.name if len(set(names)) == len(names) else f"{own.parent.name}/{own.name}"


def _said(values: list[str] | None) -> str:
    return "/".join(value or "none" for value in values) if values else "default"


def _stage_rank(stage: str) -> tuple[int, str]:
    if stage in _STAGE_ORDER:
        return _STAGE_ORDER.index(stage), stage
    return len(_STAGE_ORDER) + (stage == "evaluate"), stage


@dataclass
class Node:
    """A box of the pipeline picture: a family, or a model that no run here made."""

    key: str
    label: str
    family: Family | None = None
    lost: bool = False  # a run that is named as a parent and could not be found
    data: list[str] = field(default_factory=list)  # files it read


@dataclass(frozen=True)
class Edge:
    """`source` went into `target` as its `role` (model, reward, value or data)."""

    source: str
    target: str
    role: str


@dataclass
class Lineage:
    """What came from what, seeds folded together."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)


def trace(families: Sequence[Family]) -> Lineage:
    """Follow the parents that runs recorded."""
    lineage = Lineage({family.key: Node(family.key, family.label, family) for family in families})
    home = {run.path.resolve(): family.key for family in families for run in family.runs}
    for family in families:
        for run in family.runs:
            for parent in run.parents:
                _add_parent(lineage, family.key, run, parent, home)
    return lineage


def _add_parent(
    lineage: Lineage, target: str, run: RunData, parent: Json, home: dict[Path, str]
) -> None:
    role = text(parent.get("role")) or "model"
    folder = parent_folder(run, parent)
    source = home.get(folder.resolve()) if folder else None
    if source is None and role not in _MODEL_ROLES:
        name = short_path(text(parent.get("path")))
        if name and name not in lineage.nodes[target].data:
            lineage.nodes[target].data.append(name)
        return
    if source is None:
        lost = bool(parent.get("run"))
        name = short_path(text(parent.get("run") if lost else parent.get("path"))) or "unnamed"
        source = f"source:{name}"
        lineage.nodes.setdefault(source, Node(source, name, lost=lost))
    joined = any((edge.source, edge.target) == (source, target) for edge in lineage.edges)
    if source != target and not joined:  # one arrow, of the first role, says enough
        lineage.edges.append(Edge(source, target, role))


def short_path(path: str) -> str:
    """The telling end of a path: the last part, or the one before `model` and `checkpoints`."""
    parts = [part for part in PurePath(path).parts if part not in ("/", "\\")]
    while len(parts) > 1 and parts[-1] in ("model", "checkpoints", "final"):
        parts.pop()
    return parts[-1] if parts else ""
