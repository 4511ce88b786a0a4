"""Averaged reward models: equal to a mean by hand, loadable, and refused where no mean exists."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
)

from align.engine.create import train_tokenizer
from reward import averaging
from reward.averaging import average_models, measure_normalisation
from reward.errors import ModelError
from reward.model import (
    CONFIG_KEY,
    Normalisation,
    RewardModel,
    head_count,
    read_normalisation,
    write_normalisation,
)
from reward.process import ProcessReward, load_reward, steps_of

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "Where is my order?", "I")] * 4
ANSWERS = [[{"role": "assistant", "content": f"Yes {i}."}] for i in range(12)]


@pytest.fixture(scope="module")
def make(tiny_llama, tiny_tokenizer, tmp_path_factory):
    """`make(seed, **config)`: a saved reward model, moved a little from one start by its seed."""
    place = tmp_path_factory.mktemp("members")

    def save(seed: int, name: str = "", shard: str = "5GB", dtype=torch.float32, **changes) -> Path:
        config = copy.deepcopy(tiny_llama(seed=5).config)
        config.num_labels = 1
        for key, value in changes.items():
            setattr(config, key, value)
        torch.manual_seed(5)
        model = LlamaForSequenceClassification(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=generator)
        write_normalisation(model, Normalisation(0.5 + seed, 2.0, 8, "p"))
        folder = place / (name or f"m{seed}") / "model"
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def members(make) -> list[Path]:
    return [make(1), make(2), make(3, shard="20KB")]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.0]])
@pytest.mark.parametrize("first", [0, 2])  # one file, or many
def test_the_average_is_the_mean_by_hand(members, weights, first, tmp_path):
    chosen = [members[first], *(m for i, m in enumerate(members) if i != first)]
    made = average_models(chosen, tmp_path / "average", weights)
    shares = [1 / 3] * 3 if weights is None else [0.75, 0.25, 0.0]
    assert made.weights == pytest.approx(shares)
    found, parts = tensors(tmp_path / "average"), [tensors(m) for m in chosen]
    assert found.keys() == parts[0].keys()
    assert made.tensors == len(found)
    assert made.numbers == sum(t.numel() for t in found.values())
    for name, tensor in found.items():
        by_hand = sum(s * p[name].double() for s, p in zip(shares, parts, strict=True))
        # The nearest float32; of two equally near ones either: float64 sums differ by processor.
        size = tensor.abs()
        half = (torch.nextafter(size, torch.tensor(torch.inf)) - size).double() / 2
        assert ((tensor.double() - by_hand).abs() <= half * (1 + 1e-6)).all(), name
    written, laid = (
        sorted(file.name for file in folder.glob("*.safetensors"))
        for folder in (tmp_path / "average", chosen[0])
    )
    assert written == laid
    assert (len(written) > 1) == (first == 2)
    assert 0.9 < made.similarity < 1


def test_it_loads_and_scores(members, tmp_path):
    average_models(members, tmp_path / "average")
    model = RewardModel.load(tmp_path / "average", normalise=False)
    by_hand = AutoModelForSequenceClassification.from_pretrained(str(members[0]))
    parts = [tensors(member) for member in members]
    by_hand.load_state_dict({k: sum(p[k] for p in parts) / 3 for k in parts[0]})
    tokenizer = AutoTokenizer.from_pretrained(str(members[0]))
    expected = RewardModel(by_hand.eval(), tokenizer).score(PROMPTS, ANSWERS)
    assert model.score(PROMPTS, ANSWERS) == pytest.approx(expected, abs=1e-5)


def test_statistics_of_members_are_dropped_and_measured_again(members, tmp_path):
    made = average_models(members, tmp_path / "average")
    assert made.dropped == ("normalisation",)
    with pytest.raises(ModelError, match="carries no normalisation statistics"):
        RewardModel.load(tmp_path / "average")
    found = measure_normalisation(tmp_path / "average", PROMPTS, ANSWERS, "base")
    assert (found.samples, found.policy) == (12, "base")
    model = RewardModel.load(tmp_path / "average")
    assert read_normalisation(model.model) == found
    scores = torch.tensor(model(PROMPTS, ANSWERS)).double()
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scores.std()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("piece", [1, 100, 10**9])
def test_the_size_of_a_piece_changes_nothing(members, piece, tmp_path, monkeypatch):
    average_models(members, tmp_path / "whole")
    monkeypatch.setattr(averaging, "PIECE", piece)
    average_models(members, tmp_path / "pieces")
    one, two = (tensors(tmp_path / name) for name in ("whole", "pieces"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_bfloat16_stays(make, tmp_path):
    folders = [make(s, f"half{s}", dtype=torch.bfloat16) for s in (1, 2)]
    average_models(folders, tmp_path / "average")
    found, parts = tensors(tmp_path / "average"), [tensors(f) for f in folders]
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, (sum(p[name].double() for p in parts) / 2).bfloat16())


def test_models_of_different_starts_are_told_apart(make, tiny_llama, tiny_tokenizer, tmp_path):
    folder = tmp_path / "other"
    config = copy.deepcopy(tiny_llama(seed=5).config)
    config.num_labels = 1
    torch.manual_seed(77)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    assert average_models([make(1), folder], tmp_path / "noise").similarity < 0.5


@pytest.fixture
def refused(members, tmp_path):
    """Averaging the first member with another fails, and leaves nothing."""

    def check(other: Path | list[Path], message: str, **settings) -> None:
        paths = other if isinstance(other, list) else [members[0], other]
        with pytest.raises(ModelError, match=message):
            average_models(paths, tmp_path / "average", **settings)
        assert not list(tmp_path.glob("*average*"))

    return check


def test_mismatched_models_are_refused(make, members, refused, tiny_tokenizer, tmp_path):
    refused(make(4, "wide", intermediate_size=32), "intermediate_size is 64 in one and 32")
    refused(make(5, "half", dtype=torch.bfloat16), "F32.*BF16")
    refused([members[0]], "at least two models; got 1")
    refused(members, "came with the weights", weights=[1.0, 2.0])
    refused(members, "none negative", weights=[1.0, -1.0, 1.0])
    refused(tmp_path / "gone", "there is no such directory")


def test_another_tokenizer_is_refused(make, refused, tiny_tokenizer):
    folder = make(6, "words")
    other = train_tokenizer(iter(["other words make other pieces of words"] * 9), 300)
    other.chat_template = tiny_tokenizer.chat_template
    other.save_pretrained(folder)
    refused(folder, "another vocabulary")
    turned = make(7, "template")
    file = turned / "chat_template.jinja"
    file.write_text(file.read_text() + "{# other #}")
    refused(turned, "another chat template")


def test_damaged_members_are_refused(make, refused):
    nan = make(8, "nan")
    file = nan / "model.safetensors"
    found = load_file(file)
    found["score.weight"][0, 3] = float("nan")
    save_file(found, file, metadata={"format": "pt"})
    refused(nan, r"nan.model: score.weight holds NaN")
    less = make(9, "less")
    found = load_file(less / "model.safetensors")
    del found["score.weight"]
    save_file(found, less / "model.safetensors", metadata={"format": "pt"})
    refused(less, "different tensors, such as score.weight")
    cut = make(10, "cut")
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(cut, "holds no whole model")
    adapter = make(11, "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    refused(adapter, "is an adapter")


def test_whole_numbers_must_agree(make, refused, tmp_path):
    """They lie before the floats in a file, whatever their names: the layout is kept."""
    folders = [make(seed, f"counted{seed}") for seed in (13, 14)]
    for count, folder in zip((7, 7), folders, strict=True):
        found = load_file(folder / "model.safetensors") | {"zz.steps": torch.tensor([count, 1])}
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    average_models(folders, tmp_path / "mean")
    mean, parts = tensors(tmp_path / "mean"), [tensors(folder) for folder in folders]
    assert mean["zz.steps"].tolist() == [7, 1]
    assert torch.equal(
        mean["score.weight"],
        ((parts[0]["score.weight"].double() + parts[1]["score.weight"]) / 2).float(),
    )
    save_file(parts[1] | {"zz.steps": torch.tensor([8, 1])}, folders[1] / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    refused(folders, "zz.steps holds whole numbers that differ")


def test_nothing_is_overwritten_and_foreign_files_stay_behind(members, make, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        average_models(members, tmp_path / "taken")
    source = make(12, "extras")
    for name in ("MANIFEST.json", "training_args.bin", "posterior.safetensors"):
        (source / name).write_text("of one member")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"align_temperature": 2.0}))
    made = average_models([source, members[0]], tmp_path / "average")
    assert made.dropped == ("normalisation", "align_temperature")
    names = {file.name for file in (tmp_path / "average").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not names & {"MANIFEST.json", "training_args.bin", "posterior.safetensors"}


def noted(folder: Path, **notes) -> Path:
    """The member with further notes in its config."""
    config = json.loads((folder / "config.json").read_text())
    config[CONFIG_KEY] |= notes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_heads_and_their_scores_stay(make, tmp_path):
    folders = [noted(make(s, f"heads{s}", num_labels=3), heads=3) for s in (21, 22)]
    average_models(folders, tmp_path / "average")
    model = RewardModel.load(tmp_path / "average", normalise=False)
    assert head_count(model.model.config) == 3
    assert model.heads_scores(PROMPTS, ANSWERS).shape == (3, 12)
    found = measure_normalisation(tmp_path / "average", PROMPTS, ANSWERS)
    again = RewardModel.load(tmp_path / "average")
    assert (head_count(again.model.config), again.normalisation) == (3, found)


def test_steps_stay_and_are_measured_as_steps(make, tmp_path):
    folders = [noted(make(s, f"steps{s}"), steps="mean") for s in (23, 24)]
    average_models(folders, tmp_path / "average")
    answers = [[{"role": "assistant", "content": f"One {i}.\n\nTwo."}] for i in range(12)]
    found = measure_normalisation(tmp_path / "average", PROMPTS, answers)
    model = load_reward(tmp_path / "average")
    assert isinstance(model, ProcessReward)
    assert (model.how, steps_of(model.model.model.config)) == ("mean", "mean")
    scores = torch.tensor(model.score(PROMPTS, answers)).double()
    assert found.mean == pytest.approx(float(scores.mean()), abs=1e-6)
    assert float(scores.max()) <= 0  # log-probabilities, as the reward gives them


def test_members_that_are_read_differently_are_refused(make, refused, members):
    three = noted(make(25, "three", num_labels=3), heads=3)
    refused([noted(make(26, "two", num_labels=3), heads=2), three], "align_reward.heads is 2 in")
    refused([members[0], noted(make(27, "worst"), steps="min")], "steps is None in one and 'min'")


def test_ties_are_averaged_or_dropped(make, members, tmp_path):
    ties = [{"loss": "rao-kupper", "parameter": value} for value in (0.5, 1.5)]
    folders = [noted(make(28 + i, f"ties{i}"), ties=ties[i]) for i in (0, 1)]
    made = average_models(folders, tmp_path / "same", [3.0, 1.0])
    kept = json.loads((tmp_path / "same" / "config.json").read_text())[CONFIG_KEY]
    assert kept == {"ties": {"loss": "rao-kupper", "parameter": 0.75}}
    assert made.warnings == ()
    made = average_models([folders[0], members[0]], tmp_path / "other")
    assert made.dropped == ("normalisation", "ties")
    assert "losses for ties differ (none, rao-kupper)" in made.warnings[0]
    assert CONFIG_KEY not in json.loads((tmp_path / "other" / "config.json").read_text())


def test_heads_of_their_own_are_told(make, tmp_path):
    """Bodies of one start with heads that were drawn apart: the whole hides it."""
    folders = [make(s, f"drawn{s}") for s in (31, 32)]
    for seed, folder in enumerate(folders):
        found = load_file(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(seed)
        found["score.weight"] = 0.1 * torch.randn(found["score.weight"].shape, generator=generator)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    made = average_models(folders, tmp_path / "average")
    one, two = (tensors(f)["score.weight"].double().flatten() for f in folders)
    assert made.head_similarity == pytest.approx(float(one @ two / one.norm() / two.norm()))
    assert made.head_similarity < 0.8 < made.similarity


def test_what_fails_before_it_appears_leaves_nothing(members, tmp_path):
    seen = []

    def stop(folder: Path) -> None:
        seen.append((folder / "config.json").is_file() and not (tmp_path / "average").exists())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        average_models(members, tmp_path / "average", finish=stop)
    assert seen == [True]
    assert not list(tmp_path.glob("*average*"))
