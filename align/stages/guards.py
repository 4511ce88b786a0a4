"""Guards of a stage: made before it trains, and what they remember written after it.

A stage says how rows become examples and what their loss is (`guard_source`); the rest is here.
What a guard needs of earlier tasks comes from `data`, from an `artefact`, or from what the runs
left that the model came from (its lineage). What is written: `align.stages.guard_memory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from align.config.guards import (
    AGEMSection,
    BudgetSection,
    BufferSection,
    ClearSection,
    DistillSection,
    EMASection,
    EWCSection,
    GuardSection,
    ImportanceSection,
    IsolateSection,
    MASSection,
    ReplaySection,
    SISection,
    SPSection,
    StrengthSection,
    UnfreezeSection,
)
from align.engine.guards.agem import AGEM
from align.engine.guards.artefact import (
    FOLDER,
    About,
    find_artefacts,
    load_importance,
    load_rows,
    save_importance,
    task_id,
)
from align.engine.guards.average import EMA, WiseFT
from align.engine.guards.base import Batch, Guard
from align.engine.guards.budget import Budget
from align.engine.guards.buffers import keep
from align.engine.guards.clear import Clear
from align.engine.guards.distill import Distill
from align.engine.guards.ewc import EWC
from align.engine.guards.idle import Idle
from align.engine.guards.isolate import Isolate
from align.engine.guards.l2sp import L1SP, L2SP
from align.engine.guards.mas import MAS
from align.engine.guards.replay import Replay, age_weights
from align.engine.guards.si import SI
from align.engine.guards.unfreeze import Unfreeze
from align.engine.guards.weights import trained_weights
from align.processes import first_process, process_index
from align.run import Run, fingerprint
from align.stages.guard_rows import choose_rows
from align.stages.guard_source import Row, Source, estimate, needed_logits


def build_guards(
    sections: Sequence[GuardSection], model: nn.Module, source: Source, path: str, run: Run
) -> list[Guard]:
    """Guards of a stage.

    Args:
        sections: what the configuration asks for.
        model: what training starts from, before adapters.
        source: how the stage reads rows.
        path: where the model came from, for its lineage.
        run: keeps what is estimated, for later stages and for resuming.

    Raises:
        CheckpointError: an artefact is damaged.
        ConfigError: a method that needs outputs, on a stage that has none to give.
        ModelError: nothing could be estimated.
    """
    return [Builder(model, source, path, run, i).build(s) for i, s in enumerate(sections)]


@dataclass(frozen=True)
class Builder:
    """Makes the guard at one place of the list."""

    model: nn.Module
    source: Source
    path: str
    run: Run
    index: int

    @property
    def seed(self) -> int:
        """Of the order of stored rows: each process has its own."""
        return self.index + 7919 * process_index()

    def build(self, section: GuardSection) -> Guard:
        """The guard, with its budget around it where it has one."""
        guard = self._guard(section)
        budget = section.budget if isinstance(section, StrengthSection) else None
        if budget is None or isinstance(guard, Idle):
            return guard
        data = budget.data or getattr(section, "data", None)
        assert data is not None
        columns = budget.columns if budget.data else getattr(section, "columns", {})
        return self._budget(guard, budget, data, columns)

    def _guard(self, section: GuardSection) -> Guard:
        source = self.source
        if isinstance(section, SPSection):
            kind = L2SP if section.type == "l2sp" else L1SP
            return kind(
                section.strength,
                new=section.new,
                head_strength=section.head_strength,
                proximal=section.proximal,
            )
        if isinstance(section, EMASection):
            return EMA(section.decay)
        if isinstance(section, UnfreezeSection):
            return Unfreeze(section.every, section.groups)
        if isinstance(section, ReplaySection | AGEMSection):
            return self._replay(section)
        if isinstance(section, DistillSection):
            return self._distill(section)
        if isinstance(section, ClearSection):
            return self._clear(section)
        if not isinstance(section, ImportanceSection | SISection | IsolateSection):
            return WiseFT(section.share)  # type: ignore[attr-defined]
        importance, anchor = self._importances(section)
        if isinstance(section, IsolateSection):
            return Isolate(importance, section.share)
        if isinstance(section, SISection):
            return SI(
                section.strength,
                importance,
                anchor,
                damping=section.damping,
                proximal=section.proximal,
            )
        common: dict[str, Any] = {"decay": section.decay, "proximal": section.proximal}
        if isinstance(section, MASSection):
            logits = needed_logits(source, section.type)
            return MAS(section.strength, importance, anchor, logits_fn=logits, **common)
        assert isinstance(section, EWCSection)
        true = needed_logits(source, "fisher: true") if section.fisher == "true" else None
        return EWC(section.strength, importance, anchor, logits_fn=true, **common)

    def _rows(self, data: str, columns: Mapping[str, str], samples: int) -> list[Row]:
        """Rows of a file, drawn by the run's seed."""
        self.run.add_parent("data", data, fingerprint=fingerprint(data))
        return keep(
            list(self.source.rows(data, columns)),
            samples,
            "reservoir",
            seed=self.run.record["seed"],
        )

    def _replay(self, section: ReplaySection | AGEMSection) -> Guard:
        rows, ages = self.stored_rows(section)
        if not rows and section.remember and section.data is None:
            self.run.warn(
                f"guards.{self.index}: {self.path} and what it came from left no rows, so "
                f"{section.type} has nothing to replay; this run keeps rows for the next."
            )
            return Idle(section.type)
        size = section.batch_size
        if section.ratio is not None:
            size = max(1, math.ceil(section.ratio * self.source.step_rows))
        common: dict[str, Any] = {
            "weights": None,
            "collate_fn": self.source.collate,
            "size_fn": self.source.size,
        }
        loss = self.source.loss
        if section.age_decay < 1:
            examples, ages = self._encode_by_age(rows, ages)
            common["weights"] = age_weights(ages, section.age_decay)
        else:
            examples = list(self.source.encode(rows))
        if isinstance(section, AGEMSection):
            return AGEM(examples, loss, size, self.seed, **common)
        return Replay(examples, loss, section.strength, size, self.seed, **common)

    def _encode_by_age(self, rows: list[Row], ages: list[int]) -> tuple[list[Batch], list[int]]:
        """What fits of the rows, one age after another, and the age of each."""
        examples: list[Batch] = []
        found: list[int] = []
        for age in sorted(set(ages)):
            of_age = [row for row, its in zip(rows, ages, strict=True) if its == age]
            examples += self.source.encode(of_age)
            found += [age] * (len(examples) - len(found))
        return examples, found

    def stored_rows(self, section: BufferSection) -> tuple[list[Row], list[int]]:
        """Rows to replay, and how many tasks ago each was learnt.

        Raises:
            CheckpointError: an artefact is damaged.
            DataError: no row has the column that `by` names, or none fits the model.
        """
        if section.data is not None:
            self.run.add_parent("data", section.data, fingerprint=fingerprint(section.data))
            given = list(self.source.rows(section.data, section.columns))
            rows = choose_rows(section, given, self.model, self.source, self.run.record["seed"])
            return rows, [0] * len(rows)
        places = [Path(section.artefact)] if section.artefact else find_artefacts(self.path, "rows")
        found: list[Row] = []
        ages: list[int] = []
        for age, place in zip(range(len(places) - 1, -1, -1), places, strict=True):
            kept, _ = load_rows(place)
            self.run.add_parent("guard", place, fingerprint=fingerprint(place))
            found += kept
            ages += [age] * len(kept)
        return found, ages

    def _distill(self, section: DistillSection) -> Distill:
        logits = needed_logits(self.source, section.type)
        examples = None
        if section.data is not None:
            examples = self.source.encode(
                self._rows(section.data, section.columns, section.samples)
            )
        return Distill(
            logits,
            section.strength,
            examples,
            temperature=section.temperature,
            reverse=section.reverse,
            top_k=section.top_k,
            batch_size=section.batch_size,
            seed=self.seed,
            collate_fn=self.source.collate,
        )

    def _clear(self, section: ClearSection) -> Clear:
        rows: list[dict[str, Any]] = []
        for place in find_artefacts(self.path, "clear"):
            rows += load_rows(place)[0]
            self.run.add_parent("guard", place, fingerprint=fingerprint(place))
        return Clear(
            section.policy_strength,
            section.value_strength,
            capacity=section.samples,
            batch_size=section.batch_size,
            temperature=self.source.temperature,
            seed=self.seed,
            rows=rows,
        )

    def _budget(
        self, guard: Guard, section: BudgetSection, data: str, columns: Mapping[str, str]
    ) -> Guard:
        return Budget(
            guard,
            self.source.encode(self._rows(data, columns, section.samples)),
            self.source.loss,
            allowed=section.allowed,
            every=section.every,
            rate=section.rate,
            enforce=section.enforce,
            collate_fn=self.source.collate,
            size_fn=self.source.size,
        )

    def _importances(self, section: GuardSection) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Importances and anchors: of an artefact, of `data`, or of the lineage."""
        kind = "ewc" if isinstance(section, IsolateSection) else section.type
        data = getattr(section, "data", None)
        artefact = getattr(section, "artefact", None)
        if data is None:
            found = [Path(artefact)] if artefact else find_artefacts(self.path, kind)
            memory = EWC(1.0)  # any weight guard adds tasks
            for place in found:
                loaded = load_importance(place)
                self.run.add_parent("guard", place, fingerprint=fingerprint(place))
                decay = getattr(section, "decay", None)
                memory.add_task(loaded.importance, loaded.anchor, decay)
            return memory.importance, memory.anchor
        own = start_file(self.run.shared, section.type, self.index)
        if own.is_file():  # of this run before it was interrupted
            loaded = load_importance(own)
            return loaded.importance, loaded.anchor
        rows = self._rows(data, section.columns, section.samples)  # type: ignore[attr-defined]
        importance = estimate(section, self.model, self.source, rows, self.run.record["seed"])
        anchor = {n: w.now().detach().clone() for n, w in trained_weights(self.model).items()}
        if first_process():
            task = task_id(fingerprint(self.path), fingerprint(data), kind)
            details = {"samples": len(rows), "data": data}
            about = About(kind, (task,), fingerprint(self.path), details)
            save_importance(own, importance, anchor, about)
        return importance, anchor


def start_file(run: Path, kind: str, index: int) -> Path:
    """Where a run keeps what it estimated before training."""
    return run / FOLDER / f"{kind}-{index}-start.safetensors"
