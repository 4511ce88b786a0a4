"""Weight-averaged reward models: one model from several, at the cost of one.

WARM (Rame et al. 2024, arXiv 2401.12187): members that were fine-tuned from one start with other
seeds, data orders or hyperparameters lie in one basin, and their mean is more robust to label noise
and shifts than each of them. Members of different starts average to noise: `similarity` shows it.
Weights are read and written a piece at a time, so memory does not grow with the model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feedback.schema import Text
from reward.averaged_config import join_configs, read_config, same_tokenizer, write_json
from reward.errors import ModelError
from reward.model import CONFIG_KEY, Normalisation, fit_normalisation
from reward.process import load_reward

PIECE = 4_000_000  # numbers of one tensor read at once, of each member
HEADS = ("score", "classifier")  # what transformers calls the head, as in reward.score
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "chat_template.json",
    "*.py",
)


@dataclass(frozen=True)
class Averaged:
    """What was averaged, and what the result lacks."""

    path: Path
    members: tuple[str, ...]
    weights: tuple[float, ...]  # sum 1
    tensors: int
    numbers: int
    similarity: float  # least cosine of two members' weights; near 1 after one start
    head_similarity: float | None  # of their heads' alone, which the whole hides; None: no head
    dropped: tuple[str, ...]  # what of the config does not hold for the average
    warnings: tuple[str, ...] = ()


def average_models(
    paths: Sequence[str | Path],
    out: str | Path,
    weights: Sequence[float] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Averaged:
    """Average the weights of models into a directory that transformers loads.

    What the members' configs say of how scores are read (heads, steps, ties) is kept. Normalisation
    statistics are not: the mean of models has another mean and standard deviation than any of them.
    Measure them with `measure_normalisation`.

    Args:
        paths: at least two model directories with safetensors; adapters merged.
        out: a directory that does not exist, or is empty; appears whole or not at all.
        weights: of the members, none negative; scaled to sum 1. Default: all alike.
        finish: called with the directory before it appears as `out`, such as to measure the
            average; if it raises, nothing is left.

    Raises:
        ModelError: fewer than two members, weights that do not fit, a directory that holds no
            whole model, members that differ in architecture, heads, steps, tensors or tokenizer,
            or NaN.
    """
    folders, target = [Path(path) for path in paths], Path(out)
    shares = _shares(len(folders), weights)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} exists already. Fix: choose another place for the average.")
    joined = join_configs(folders, [read_config(folder) for folder in folders], shares)
    same_tokenizer(folders)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            members = [_Weights(folder, stack) for folder in folders]
            grams = torch.zeros(2, len(folders), len(folders), dtype=torch.float64)
            _same_tensors(members)
            for file in members[0].files:
                _average_file(file, members, shares, temporary / file.name, grams)
            tensors = len(members[0].place)
            numbers = sum(_count(members[0].shape(name)) for name in members[0].place)
        _copy_rest(folders[0], temporary)
        write_json(temporary / "config.json", joined.values)
        if finish is not None:
            finish(temporary)
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Averaged(
        path=target,
        members=tuple(str(folder) for folder in folders),
        weights=tuple(shares),
        tensors=tensors,
        numbers=numbers,
        similarity=_least_cosine(grams[0]),
        head_similarity=_least_cosine(grams[1]) if bool(grams[1].any()) else None,
        dropped=joined.dropped,
        warnings=joined.warnings,
    )


def measure_normalisation(
    path: str | Path, prompts: Sequence[Text], completions: Sequence[Text], policy: str = ""
) -> Normalisation:
    """Score samples of the reference policy and keep mean and std in a model's config.

    Args:
        path: a reward model's directory; its config is replaced in one step.
        prompts: N prompts.
        completions: N samples of the policy that PPO will start from.
        policy: its name, for the record.

    Raises:
        ModelError: the model cannot be loaded, or gives all samples the same score.
    """
    scores = load_reward(path, normalise=False).score(prompts, completions)
    statistics = fit_normalisation(scores, policy)
    config = read_config(Path(path))
    config[CONFIG_KEY] = dict(config.get(CONFIG_KEY) or {}) | vars(statistics)
    write_json(Path(path) / "config.json", config)
    return statistics


class _Weights:
    """The tensors of one member by name, whatever files they lie in."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder = folder
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} is an adapter, whose product with its base is what could be averaged. "
                "Fix: merge it (merge_and_unload) and save the whole model."
            )
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self.files = sorted({folder / name for name in named.values()})
        else:
            self.files = [folder / "model.safetensors"]
        self.place: dict[str, Any] = {}
        try:
            for file in self.files:
                opened = stack.enter_context(safe_open(file, framework="pt"))
                self.place |= dict.fromkeys(opened.keys(), opened)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{folder} holds no whole model: {error}. Fix: give a directory that "
                "save_pretrained wrote with safetensors."
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.place[name].get_slice(name).get_shape())

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        return self.place[name].get_slice(name).get_dtype(), self.shape(name)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The tensor flat, a few rows at a time."""
        shape = self.shape(name)
        if not shape:
            yield self.place[name].get_tensor(name).reshape(1)
            return
        rows = max(1, PIECE // max(1, _count(shape[1:])))
        piece = self.place[name].get_slice(name)
        for start in range(0, shape[0], rows):
            yield piece[start : start + rows].reshape(-1)


def _average_file(
    source: Path, members: list[_Weights], shares: list[float], target: Path, grams: Tensor
) -> None:
    """Write one file of the first member's layout; its header fits the average as it is."""
    with source.open("rb") as stream:
        size = stream.read(8)
        header = stream.read(int.from_bytes(size, "little"))
    entries = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
    with target.open("wb") as stream:
        stream.write(size + header)
        for name in sorted(entries, key=lambda one: entries[one]["data_offsets"]):
            for pieces in zip(*(member.pieces(name) for member in members), strict=True):
                _write_piece(stream, name, pieces, members, shares, grams)


def _write_piece(
    stream: BinaryIO,
    name: str,
    pieces: Sequence[Tensor],
    members: list[_Weights],
    shares: list[float],
    grams: Tensor,
) -> None:
    first = pieces[0]
    if first.is_floating_point():
        stacked = torch.stack([piece.double() for piece in pieces])
        wrong = next((m for m, row in zip(members, stacked, strict=True)
                      if not bool(row.isfinite().all())), None)  # fmt: skip
        if wrong is not None:
            raise ModelError(f"{wrong.folder}: {name} holds NaN or infinity. Fix: leave it out.")
        product = stacked @ stacked.T
        grams[0] += product
        if name.split(".")[0] in HEADS:
            grams[1] += product
        mean = (torch.tensor(shares, dtype=torch.float64) @ stacked).to(first.dtype)
    else:
        other = next((m for m, piece in zip(members, pieces, strict=True)
                      if not torch.equal(piece, first)), None)  # fmt: skip
        if other is not None:
            raise ModelError(
                f"{other.folder}: {name} holds whole numbers that differ from those of "
                f"{members[0].folder}: they have no mean."
            )
        mean = first
    stream.write(mean.contiguous().view(torch.uint8).numpy().tobytes())


def _least_cosine(gram: Tensor) -> float:
    lengths = gram.diagonal().sqrt().clamp(min=1e-300)
    return float((gram / lengths[:, None] / lengths[None, :]).min())


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if count < 2:
        raise ModelError(f"an average needs at least two models; got {count}.")
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    total = sum(given)
    if len(given) != count or min(given) < 0 or not 0 < total < float("inf"):
        raise ModelError(
            f"{count} models came with the weights {given}. Fix: one weight each, none negative "
            "and not all 0."
        )
    return [weight / total for weight in given]


def _same_tensors(members: Sequence[_Weights]) -> None:
    first = members[0]
    for other in members[1:]:
        names = sorted(set(first.place) ^ set(other.place))
        if names:
            raise ModelError(
                f"{first.folder} and {other.folder} hold different tensors, such as {names[0]}. "
                "Fix: average models of one architecture."
            )
        for name in first.place:
            if first.kind(name) != other.kind(name):
                raise ModelError(
                    f"{name} is {first.kind(name)} in {first.folder} and {other.kind(name)} in "
                    f"{other.folder}. Fix: save both with one dtype, from one architecture."
                )


def _copy_rest(source: Path, target: Path) -> None:
    """Tokenizer, code and the index of the weights, whose layout is the first member's."""
    for pattern in (*TOKENIZER_FILES, "model.safetensors.index.json"):
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


def _count(shape: Sequence[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product
