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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer

from feedback.schema import Text
from reward.errors import ModelError
from reward.model import CONFIG_KEY, Normalisation, RewardModel, fit_normalisation

PIECE = 4_000_000  # numbers of one tensor read at once, of each member
IGNORED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
OURS = "align_"  # keys of the config that hold what was measured on one member
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
    dropped: tuple[str, ...]  # keys of the config that were measured on members: measure again


def average_models(
    paths: Sequence[str | Path], out: str | Path, weights: Sequence[float] | None = None
) -> Averaged:
    """Average the weights of models into a directory that transformers loads.

    Normalisation statistics are not carried over: the mean of models has another mean and standard
    deviation than any of them. Measure them with `measure_normalisation`.

    Args:
        paths: at least two model directories with safetensors; adapters merged.
        out: a directory that does not exist, or is empty; appears whole or not at all.
        weights: of the members, none negative; scaled to sum 1. Default: all alike.

    Raises:
        ModelError: fewer than two members, weights that do not fit, a directory that holds no
            whole model, members that differ in architecture, tensors or tokenizer, or NaN.
    """
    folders, target = [Path(path) for path in paths], Path(out)
    shares = _shares(len(folders), weights)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} exists already. Fix: choose another place for the average.")
    configs = [_config(folder) for folder in folders]
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        _same_config(folders[0], configs[0], folder, config)
    _same_tokenizer(folders)
    dropped = sorted({key for config in configs for key in config if key.startswith(OURS)})
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            members = [_Weights(folder, stack) for folder in folders]
            gram = torch.zeros(len(folders), len(folders), dtype=torch.float64)
            _same_tensors(members)
            for file in members[0].files:
                _average_file(file, members, shares, temporary / file.name, gram)
            tensors = len(members[0].place)
            numbers = sum(_count(members[0].shape(name)) for name in members[0].place)
        _copy_rest(folders[0], temporary)
        kept = {key: value for key, value in configs[0].items() if key not in dropped}
        _write_json(temporary / "config.json", kept)
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    lengths = gram.diagonal().sqrt().clamp(min=1e-300)
    cosines = gram / lengths[:, None] / lengths[None, :]
    return Averaged(
        path=target,
        members=tuple(str(folder) for folder in folders),
        weights=tuple(shares),
        tensors=tensors,
        numbers=numbers,
        similarity=float(cosines.min()),
        dropped=tuple(dropped),
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
    scores = RewardModel.load(path, normalise=False).score(prompts, completions)
    statistics = fit_normalisation(scores, policy)
    file = Path(path) / "config.json"
    _write_json(file, _config(Path(path)) | {CONFIG_KEY: vars(statistics)})
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
    source: Path, members: list[_Weights], shares: list[float], target: Path, gram: Tensor
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
                _write_piece(stream, name, pieces, members, shares, gram)


def _write_piece(
    stream: BinaryIO,
    name: str,
    pieces: Sequence[Tensor],
    members: list[_Weights],
    shares: list[float],
    gram: Tensor,
) -> None:
    first = pieces[0]
    if first.is_floating_point():
        stacked = torch.stack([piece.double() for piece in pieces])
        wrong = next((m for m, row in zip(members, stacked, strict=True)
                      if not bool(row.isfinite().all())), None)  # fmt: skip
        if wrong is not None:
            raise ModelError(f"{wrong.folder}: {name} holds NaN or infinity. Fix: leave it out.")
        gram += stacked @ stacked.T
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


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        held = "there is no such directory" if not folder.is_dir() else str(error)
        raise ModelError(
            f"{folder} is no model: {held}. Fix: give the `model/` folder of an `align reward` run."
        ) from error
    return dict(found)


def _same_config(one: Path, first: Mapping[str, Any], two: Path, second: Mapping[str, Any]) -> None:
    for key in sorted({*first, *second}):
        if key in IGNORED or key.startswith(OURS):
            continue
        if first.get(key) != second.get(key):
            raise ModelError(
                f"{one} and {two} are different models: {key} is {first.get(key)!r} in one and "
                f"{second.get(key)!r} in the other. Fix: average models fine-tuned from one start."
            )


def _same_tokenizer(folders: Sequence[Path]) -> None:
    try:
        loaded = [AutoTokenizer.from_pretrained(str(folder)) for folder in folders]
    except (OSError, ValueError) as error:
        raise ModelError(f"a member has no tokenizer that loads: {error}") from error
    first = loaded[0]
    for folder, other in zip(folders[1:], loaded[1:], strict=True):
        differ = [
            what
            for what, one, two in (
                ("vocabulary", first.get_vocab(), other.get_vocab()),
                ("chat template", first.chat_template, other.chat_template),
                ("special tokens", first.special_tokens_map, other.special_tokens_map),
            )
            if one != two
        ]
        if differ:
            raise ModelError(
                f"{folders[0]} and {folder} have another {' and '.join(differ)}: the same text "
                "means other tokens to them. Fix: average models fine-tuned from one start."
            )


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


def _write_json(file: Path, value: Any) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)


def _count(shape: Sequence[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product
