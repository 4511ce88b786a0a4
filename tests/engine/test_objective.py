"""Reward objectives: what a batch holds, that losses are those of the scores, and the terms."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import LlamaForSequenceClassification

from align.engine.head import completion_logprobs
from align.engine.objective import Objective, TextHead, balanced, chosen_text
from align.engine.objective_trainer import figures, forward, tie_parameter
from align.engine.reward_batches import RewardCollator, bootstrap, reward_examples
from align.engine.scorer import Scorer
from reward.debias import length_correlation_term
from reward.losses import davidson_loss, plackett_luce_loss, tie_start
from reward.score import score_ids

PAIRS = [
    {"prompt": "Where is it? ", "chosen": "At home.", "rejected": "I will not say.", "weight": 2.0},
    {"prompt": "Who? ", "chosen": "Me, the one you know.", "rejected": "You.", "weight": 1.0},
    {"prompt": "Why? ", "chosen": "So.", "rejected": "Because of that.", "weight": 1.0},
]
RANKINGS = [
    {"prompt": "Where? ", "responses": ["here", "there and back", "no"], "ranks": [2, 1, 3]},
    {"prompt": "Who? ", "responses": ["me", "you two"], "ranks": [1, 2]},
]
RATINGS = [
    {"prompt": "Where? ", "completion": "here", "scores": {"helpful": 6.0, "honest": None}},
    {"prompt": "Who? ", "completion": "me or you", "scores": {"helpful": 2.0, "honest": 7.0}},
]
STEPS = [
    {"prompt": "Sum? ", "completions": ["one and two", "is three"], "labels": [1.0, 0.0]},
    {"prompt": "Sum? ", "completions": ["I add", "I guess", "nine"], "labels": [1.0, None, 0.25]},
]


@pytest.fixture
def scorer(tiny_classifier):
    """A tiny classifier; `heads` of them."""

    def make(heads: int = 1, tie: float | None = None) -> Scorer:
        model = tiny_classifier(seed=heads, num_labels=heads, tie_word_embeddings=True)
        return Scorer(model, tie)

    return make


@pytest.fixture
def batch_of(tiny_tokenizer):
    def make(rows, kind, **options):
        examples = reward_examples(Dataset.from_list(rows), kind, tiny_tokenizer, **options)
        return RewardCollator(tiny_tokenizer.pad_token_id)(examples)

    return make


def test_scores_are_those_of_the_reward_model(scorer, batch_of, tiny_tokenizer):
    model, batch = scorer(2), batch_of(PAIRS, "pairs")
    found = forward(model, batch, Objective())
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    alone = torch.stack(
        [
            model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long), last(row)).scores[
                0
            ]
            for row in rows
        ]
    )
    assert torch.allclose(found.scores, alone, atol=1e-5)
    assert found.scores.shape == (6, 2)
    assert torch.allclose(
        score_ids(model.model, rows, tiny_tokenizer.pad_token_id), alone.mean(dim=1), atol=1e-5
    )


def last(row: list[int]) -> torch.Tensor:
    read = torch.zeros(1, len(row), dtype=torch.bool)
    read[0, -1] = True
    return read


def test_pairs_are_bradley_terry_weighted(scorer, batch_of):
    model, batch = scorer(), batch_of(PAIRS, "pairs")
    found = forward(model, batch, Objective())
    margins = found.scores[0::2, 0] - found.scores[1::2, 0]
    plain = nn.functional.softplus(-margins)
    assert torch.allclose(Objective().losses(found, batch)[:, 0], plain * torch.tensor([2.0, 1, 1]))
    smooth = Objective(label_smoothing=0.1).losses(found, batch)[:, 0]
    expected = 0.9 * plain + 0.1 * nn.functional.softplus(margins)
    assert torch.allclose(smooth, expected * torch.tensor([2.0, 1, 1]), atol=1e-6)
    gentle = Objective(focal=0.5).losses(found, batch)[:, 0]  # certain labels take any gamma
    assert torch.isfinite(gentle).all()
    focal = Objective(focal=2.0).losses(found, batch)[:, 0]
    assert torch.allclose(focal, plain * torch.sigmoid(-margins) ** 2 * torch.tensor([2.0, 1, 1]))
    marked = batch | {"margin": torch.tensor([0.5, 0, 0])}
    assert Objective().losses(found, marked)[0, 0] > Objective().losses(found, batch)[0, 0]


def test_each_head_has_its_own_bootstrap(scorer, batch_of):
    model = scorer(3)
    batch = batch_of(PAIRS, "pairs", heads=3, resample=7)
    again = batch_of(PAIRS, "pairs", heads=3, resample=7)
    assert torch.equal(batch["draws"], again["draws"])
    assert not torch.equal(batch["draws"], torch.ones(3, 3))
    assert torch.equal(batch_of(PAIRS, "pairs", heads=3)["draws"], torch.ones(3, 3))
    found = forward(model, batch, Objective())
    losses = Objective().losses(found, batch)
    assert torch.equal(losses == 0, batch["draws"] == 0)
    losses.mean().backward()
    drawn = (batch["draws"].sum(dim=0) > 0).tolist()
    gradients = model.model.score.weight.grad.abs().sum(dim=1)
    assert [bool(g > 0) for g in gradients] == drawn


def test_draws_are_poisson():
    draws = bootstrap(4000, 4, seed=1)
    assert draws.mean(axis=0) == pytest.approx(np.ones(4), abs=0.06)
    assert draws.var(axis=0) == pytest.approx(np.ones(4), abs=0.1)
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.06


def test_rankings_of_different_sizes(scorer, batch_of):
    model, batch = scorer(), batch_of(RANKINGS, "rankings")
    found = forward(model, batch, Objective())
    assert batch["counts"].tolist() == [3, 2]
    scores = found.scores[:, 0]
    luce = Objective("rankings", "plackett-luce").losses(found, batch)[:, 0]
    first = plackett_luce_loss(scores[None, :3], torch.tensor([[1, 0, 2]]))
    second = nn.functional.softplus(-(scores[3] - scores[4]))
    assert torch.allclose(luce, torch.stack([first[0], second]), atol=1e-6)
    pairs = Objective("rankings", "pairs-of-rankings").losses(found, batch)[:, 0]
    assert float(pairs[1]) == pytest.approx(float(second), abs=1e-6)
    named = figures(found, batch, "rankings")
    right = [
        scores[1] > scores[0],
        scores[1] > scores[2],
        scores[0] > scores[2],
        scores[3] > scores[4],
    ]
    assert float(named["accuracy"]) == pytest.approx(sum(map(float, right)) / 4)


def test_ratings_leave_unknown_aspects_out(scorer, batch_of):
    model = scorer(2)
    batch = batch_of(RATINGS, "ratings", aspects=["helpful", "honest"])
    found = forward(model, batch, Objective("ratings", "mse"))
    losses = Objective("ratings", "mse").losses(found, batch)[:, 0]
    s = found.scores
    assert float(losses[0]) == pytest.approx(float((s[0, 0] - 6) ** 2), rel=1e-5)
    both = ((s[1, 0] - 2) ** 2 + (s[1, 1] - 7) ** 2) / 2
    assert float(losses[1]) == pytest.approx(float(both), rel=1e-5)
    losses.sum().backward()
    assert torch.isfinite(model.model.score.weight.grad).all()


def test_steps_are_read_where_they_end(scorer, batch_of):
    model, batch = scorer(), batch_of(STEPS, "steps")
    found = forward(model, batch, Objective("steps", "cross-entropy"))
    assert batch["counts"].tolist() == [2, 3]
    losses = Objective("steps", "cross-entropy").losses(found, batch)[:, 0]
    s = found.scores[:, 0]
    bce = nn.functional.binary_cross_entropy_with_logits
    first = bce(s[:2], torch.tensor([1.0, 0.0]))
    second = (bce(s[2], torch.tensor(1.0)) + bce(s[4], torch.tensor(0.25))) / 2
    assert torch.allclose(losses, torch.stack([first, second]), atol=1e-5)


def test_ties_learn_their_parameter(scorer, batch_of):
    rows = [row | {"soft_label": label} for row, label in zip(PAIRS, (1.0, 0.5, 0.8), strict=True)]
    model, batch = scorer(tie=tie_start(1 / 3)), batch_of(rows, "pairs")
    objective = Objective(loss="davidson", win_weight=0.5, tie_weight=2.0)
    found = forward(model, batch, objective)
    tie = tie_parameter(model)
    losses = objective.losses(found, batch, tie)[:, 0]
    margins = found.scores[0::2, 0] - found.scores[1::2, 0]
    plain = davidson_loss(margins, torch.tensor([1, 0, 1]), model.tie)
    assert torch.allclose(losses, plain * torch.tensor([2 * 0.5, 2.0, 0.5]), atol=1e-6)
    losses.sum().backward()
    assert model.tie.grad.abs() > 0
    assert tie_parameter(scorer()) is None


def test_ties_are_left_out_of_the_accuracy_that_is_logged(scorer, batch_of):
    rows = [row | {"soft_label": label} for row, label in zip(PAIRS, (1.0, 0.5, 1.0), strict=True)]
    model, batch = scorer(), batch_of(rows, "pairs")
    found = forward(model, batch, Objective())
    margins = (found.scores[0::2, 0] - found.scores[1::2, 0])[[0, 2]]
    named = figures(found, batch, "pairs")
    assert float(named["accuracy"]) == pytest.approx(float((margins > 0).float().mean()))


def test_balanced_classes_come_to_the_same():
    labels = torch.tensor([1.0, 0.9, 0.5, 0.2, 1.0, 1.0, 0.7, 0.8])
    win, tie = balanced(labels, 1.0)
    assert 7 * win == pytest.approx(1 * tie)
    assert balanced(labels, 0.0) == (1.0, 1.0)
    assert balanced(torch.ones(4), 1.0) == (1.0, 1.0)


def test_the_text_term_is_the_chosen_answers_likelihood(scorer, batch_of):
    """Against the language model of the same backbone and head."""
    from transformers import LlamaForCausalLM

    model, batch = scorer(), batch_of(PAIRS, "pairs")
    language = LlamaForCausalLM(copy.deepcopy(model.model.config))
    language.model.load_state_dict(model.model.model.state_dict())
    language.tie_weights()
    head = TextHead(language.get_output_embeddings(), language.config)
    objective = Objective(generative=0.5, text_head=head)
    found = forward(model, batch, objective)
    rows, mask = batch["input_ids"][0::2], chosen_text(batch)[0::2]
    width = mask.shape[1] - 1
    expected, _ = completion_logprobs(
        language, rows, batch["attention_mask"][0::2], mask[:, -width:].float()
    )
    means = -expected.sum(dim=1) / mask.sum(dim=1)
    term = objective.terms(found, batch)
    assert float(term) == pytest.approx(0.5 * float(means.mean()), rel=1e-4)
    term.backward()
    assert model.model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_the_text_term_keeps_the_original_head_useful(tiny_llama, batch_of):
    """A policy that can write these answers becomes a reward model, with the term and without."""
    torch.manual_seed(0)
    rows = [
        {
            "prompt": f"Where is {what}? ",
            "chosen": f"The {what} is {at}.",
            "rejected": f"No {what}.",
        }
        for what in ("lamp", "chair", "order", "bill", "parcel")
        for at in ("at home", "in Oslo", "by the sea", "on the roof")
    ]
    parts: list[list[dict]] = [[], []]
    for n, row in enumerate(rows):  # each thing and each place in both
        parts[(n + n // 4) % 4 == 0].append(row)
    train, held = (batch_of(part, "pairs") for part in parts)
    policy = tiny_llama(seed=1)  # its head is its own, not the embeddings
    ids = train["input_ids"][0::2]
    labels = ids.masked_fill(~chosen_text(train)[0::2], -100)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(60):
        policy(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    head = TextHead(policy.get_output_embeddings().requires_grad_(False), policy.config)
    text = Objective(generative=1.0, text_head=head)

    def start() -> Scorer:
        torch.manual_seed(2)
        config = copy.deepcopy(policy.config)
        config.num_labels = 1
        model = LlamaForSequenceClassification(config)
        model.model.load_state_dict(policy.model.state_dict())
        return Scorer(model)

    def text_loss(model: Scorer) -> float:
        """Nats a token of the held-out answers under the policy's head."""
        with torch.no_grad():
            return float(text.terms(forward(model, held, text), held))

    def trained(objective: Objective) -> tuple[float, float]:
        model = start()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(30):
            loss = objective(forward(model, train, objective), train)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            ranking = Objective().losses(forward(model, held, Objective()), held).mean()
        return text_loss(model), float(ranking)

    before = text_loss(start())
    without, ranked_without = trained(Objective())
    with_term, ranked = trained(replace(text, generative=0.2))
    assert before < 1  # of 5.7 at random: there is something to keep
    assert without > before + 0.3  # Bradley-Terry alone spoils the head
    assert with_term < before + 0.1
    assert max(ranked, ranked_without) < math.log(2) / 2  # and both learnt to rank


@pytest.mark.parametrize("name", ["contrastive", "length", "centring"])
def test_every_term_reaches_the_backbone_and_scales(name, scorer, batch_of):
    model, batch = scorer(), batch_of(PAIRS, "pairs")
    objective = replace(Objective(), **{name: 0.5})
    found = forward(model, batch, objective)
    half = objective.terms(found, batch)
    whole = replace(Objective(), **{name: 1.0}).terms(found, batch)
    assert float(whole) == pytest.approx(2 * float(half), rel=1e-5)
    assert math.isfinite(float(half))
    assert float(half) != 0
    half.backward()
    assert model.model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_terms_are_those_of_the_functions(scorer, batch_of):
    """Centring over both answers and every head; length within prompts, of the heads' mean."""
    model, batch = scorer(2), batch_of(PAIRS, "pairs")
    found = forward(model, batch, Objective())
    chosen, rejected = found.scores[0::2], found.scores[1::2]
    centred = 0.5 * (chosen + rejected).square().mean()
    assert float(Objective(centring=0.5).terms(found, batch)) == pytest.approx(float(centred))
    lengths = batch["answer"].sum(dim=1).float()
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    within = length_correlation_term(found.scores.mean(dim=1), lengths, groups)
    assert float(Objective(length=1.0).terms(found, batch)) == pytest.approx(float(within))
    across = length_correlation_term(found.scores.mean(dim=1), lengths)
    assert float(within) != pytest.approx(float(across))  # so that the line above says something


def test_order_and_padding_of_a_batch_change_nothing(scorer, batch_of):
    model = scorer(2)
    objective = Objective()
    whole = batch_of(PAIRS, "pairs")
    losses = objective.losses(forward(model, whole, objective), whole)
    turned = batch_of(PAIRS[::-1], "pairs")
    assert torch.allclose(
        objective.losses(forward(model, turned, objective), turned).flip(0), losses, atol=1e-5
    )
    for place, row in enumerate(PAIRS):
        one = batch_of([row], "pairs")
        alone = objective.losses(forward(model, one, objective), one)
        assert torch.allclose(alone[0], losses[place], atol=1e-5)
