"""Label Studio exports of tasks as Align pushes them."""

from __future__ import annotations

from typing import Any

import pytest

from feedback.formats import read_feedback
from feedback.labelstudio.tasks import task_data, task_keys
from feedback.records import new_item
from feedback.schema import Comparison, Correction, Item, Ranking
from feedback.store import FeedbackStore

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
ASK: Any = [*TALK, {"role": "user", "content": "how are you?"}]
KINDS = {
    "pair": ("first", "second"),
    "ranking": ("one", "two", "three", "four"),
    "rating": ("only",),
    "thumb": ("only",),
}


def control(name: str, kind: str, **value: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": "chat", "type": kind, "value": value}


PREF = control("pref", "choices", choices=["b2"])
SAID = {
    "pair": [PREF],
    "ranking": [control("rank", "ranker", ranker={"rank": ["r2", "r0", "r3", "r1"]})],
    "rating": [control(a, "rating", rating=n) for a, n in
               [("helpful", 7), ("honest", 1), ("harmless", 4)]],
    "thumb": [control("thumb", "choices", choices=["up"])],
}  # fmt: skip


def annotation(number: int, result: Any, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "unique_id": f"00000000-0000-4000-8000-{number:012d}",
        "completed_by": 3,
        "result": result,
        "was_cancelled": False,
        "lead_time": 4.25,
        "created_at": "2026-03-01T12:00:00.000000Z",
        "updated_at": "2026-03-01T12:00:05.500000Z",
        "project": 2,
    } | changes


def task(item: Item, *annotations: Any, key: str | None = None) -> dict[str, Any]:
    data = task_data(item, key or task_keys(item)[0])
    return {"id": 9, "data": data, "annotations": list(annotations), "project": 2, "drafts": []}


def stated(item: Item, *annotations: Any) -> dict[str, Any]:
    """A task that says by itself how answers were shown and who wrote them."""
    prompt = item.prompt
    data = {
        "pair_id": item.id,
        "kind": item.kind,
        "prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
        "prompt_is_text": isinstance(prompt, str),
        "responses": [item.responses[i] for i in item.shown],
        "shown": list(item.shown),
        "sources": list(item.sources),
    }
    return {"id": 9, "data": data, "annotations": list(annotations)}


def issue(kind: str, prompt: Any = ASK, seed: int = 0) -> Item:
    answers = KINDS[kind]
    return new_item(kind, prompt, answers, [f"by {a}" for a in answers], seed=seed)


@pytest.mark.parametrize("make", [task, stated])
@pytest.mark.parametrize("prompt", ["plain", ASK, [{"role": "user", "content": "one message"}]])
@pytest.mark.parametrize("seed", range(4))
def test_display_order_is_undone_for_every_kind(save, tmp_path, make, prompt, seed):
    items = {kind: issue(kind, prompt, seed) for kind in KINDS}
    rows = [make(item, annotation(i, SAID[item.kind])) for i, item in enumerate(items.values())]
    read = read_feedback(save("export.json", rows))
    assert read.format == "label-studio"
    with FeedbackStore(f"sqlite:///{tmp_path / 's.db'}") as store:
        store.add_items(items.values())
        store.add_judgements(
            [r.judgement for r in read.reads], annotations=[r.annotation for r in read.reads]
        )
        pair, ranking, rating, thumb = store.judgements()
    shown = items["pair"].shown
    assert pair.prompt == prompt
    assert (pair.response_a, pair.response_b) == KINDS["pair"]
    assert (pair.label, pair.strength) == ("ab"[shown[1]], 2)  # the answer at the second place
    assert pair.swapped == (shown == (1, 0))
    assert (pair.source_a, pair.source_b) == ("by first", "by second")
    assert (pair.annotator, pair.lead_time, pair.pair) == ("3", 4.25, items["pair"].id)
    order = items["ranking"].shown
    assert ranking.order == tuple(order[place] for place in (2, 0, 3, 1))
    assert ranking.responses == KINDS["ranking"]
    assert rating.scores == {"helpful": 7, "honest": 1, "harmless": 4}
    assert thumb.good is True


def test_both_orders_are_seen_over_seeds():
    assert {issue("pair", seed=seed).shown for seed in range(4)} == {(0, 1), (1, 0)}


def test_a_turned_twin_agrees(save):
    item = issue("pair")
    one, other = task_keys(item, twins=True)
    rows = [
        task(item, annotation(1, [PREF]), key=one),
        task(item, annotation(2, [control("pref", "choices", choices=["a2"])]), key=other),
    ]
    first, second = (r.judgement for r in read_feedback(save("x.json", rows)).reads)
    assert first.pair == second.pair == item.id
    better = {j.response_a if j.label == "a" else j.response_b for j in (first, second)}
    assert len(better) == 1


@pytest.mark.parametrize(
    ("alias", "label", "strength"),
    [("a2", "a", 2), ("a1", "a", 1), ("tie", "tie", 0), ("b1", "b", 1), ("b2", "b", 2)],
)
def test_five_levels_and_reason(save, alias, label, strength):
    result = [
        control("pref", "choices", choices=[alias]),
        control("reason", "textarea", text=["because <b>\u202e 👍"]),
    ]
    path = save("x.json", [task(issue("pair"), annotation(1, result))])
    (judgement,) = (r.judgement for r in read_feedback(path).reads)
    assert (judgement.label, judgement.strength) == (label, strength)
    assert judgement.reason == "because <b>\u202e 👍"
    assert judgement.created_at.isoformat() == "2026-03-01T12:00:05.500000+00:00"


@pytest.mark.parametrize("kind", KINDS)
def test_a_correction_is_of_the_preferred_answer(save, kind):
    item = issue(kind)
    result = [*SAID[kind], control("correction", "textarea", text=["much better"])]
    read = read_feedback(save("x.json", [stated(item, annotation(1, result))]))
    main, correction = read.reads
    place = {"pair": 1, "ranking": 2}.get(kind, 0)
    assert correction.judgement.response == item.responses[item.shown[place]]
    assert correction.judgement.corrected == "much better"
    assert correction.judgement.source == item.sources[item.shown[place]]
    assert correction.annotation != main.annotation
    assert len(read.of(Correction)) == 1


def test_an_unchanged_answer_is_no_correction(save):
    result = [*SAID["thumb"], control("correction", "textarea", text=["only"])]
    path = save("x.json", [task(issue("thumb"), annotation(1, result))])
    assert len(read_feedback(path).reads) == 1


def test_skips_are_kept_apart(save):
    item = issue("pair")
    row = task(item, annotation(1, [], was_cancelled=True), annotation(2, [PREF]))
    read = read_feedback(save("x.json", [row, task(issue("thumb"))]))
    assert (read.rows, len(read.reads), len(read.skips), read.bad) == (2, 1, 1, [])
    assert (read.skips[0].item.id, read.skips[0].annotator) == (item.id, "3")


@pytest.mark.parametrize(
    ("person", "name"),
    [
        (3, "3"),
        ({"id": 3, "email": "ann@example.org", "username": "ann"}, "ann@example.org"),
        ({"id": 3, "email": "", "username": "ann"}, "ann"),
        ({"id": 3}, "3"),
        ("ann", "ann"),
        (None, "imported"),
    ],
)
def test_who_answered(save, person, name):
    row = task(issue("pair"), annotation(1, [PREF], completed_by=person))
    assert read_feedback(save("x.json", [row])).reads[0].judgement.annotator == name


def test_an_updated_annotation_is_a_later_version(save, tmp_path):
    item = issue("pair")
    later = [control("pref", "choices", choices=["a1"])]
    files = [
        save("one.json", [task(item, annotation(1, [PREF]))]),
        save("two.json", [task(item, annotation(1, later, updated_at="2026-03-02T00:00:00Z"))]),
    ]
    with FeedbackStore(f"sqlite:///{tmp_path / 's.db'}") as store:
        for path in [*files, files[1]]:
            for read in read_feedback(path).of(Comparison):
                store.add_comparison(read.judgement, annotation=read.annotation, raw=read.raw)
        assert (store.counts().comparisons, store.counts().events) == (1, 2)
        assert store.comparisons()[0].strength == 1


def test_ids_without_a_unique_id(save):
    row = task(issue("pair"), *(annotation(n, [PREF], unique_id=None) for n in (1, 2)))
    other = task(issue("pair"), annotation(1, [PREF], unique_id=None, project=5))
    ids = [r.annotation for r in read_feedback(save("x.json", [row, other])).reads]
    assert len(set(ids)) == 3
    assert ids == [r.annotation for r in read_feedback(save("y.json", [row, other])).reads]


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("pair", []),
        ("pair", None),
        ("pair", [{"hello": "x"}]),
        ("pair", ["text"]),
        ("pair", [control("other", "choices", choices=["a1"])]),
        ("pair", [PREF, PREF]),
        ("pair", [PREF, control("other", "choices", choices=["a1"])]),
        ("pair", [control("pref", "choices", choices=["a1", "b1"])]),
        ("pair", [control("pref", "choices", choices=["A much better"])]),
        ("pair", [control("pref", "choices", choices=[["a1"]])]),
        ("pair", [control("pref", "rating", rating=1)]),
        ("pair", [control("reason", "textarea", text=["only a reason"])]),
        ("ranking", [control("rank", "ranker", ranker={"rank": ["r0", "r1"]})]),
        ("ranking", [control("rank", "ranker", ranker={"rank": ["r0", "r1", "r1", "r3"]})]),
        ("ranking", [control("rank", "ranker", ranker={"rank": ["r0", "r1", "r2", "r4"]})]),
        ("ranking", [control("rank", "ranker", ranker=["r0", {}, 3, None])]),
        ("rating", [control("helpful", "rating", rating=8)]),
        ("rating", [control("helpful", "rating", rating=True)]),
        ("thumb", [control("thumb", "choices", choices=["sideways"])]),
    ],
)
def test_results_that_do_not_fit_cost_their_own_annotation_only(save, kind, result):
    row = task(issue(kind), annotation(1, result), annotation(2, SAID[kind]))
    read = read_feedback(save("x.json", [row]), bad_rows="quarantine")
    assert len(read.reads) == 1
    assert read.reads[0].raw["id"] == 2
    (bad,) = read.bad
    assert bad.row["id"] == 1
    assert (bad.reason, bool(bad.detail)) == ("the result does not fit the page", True)


def test_an_annotation_that_is_none_or_of_nobody(save):
    row = task(issue("pair"), "x", annotation(1, [PREF], completed_by=[]), annotation(2, [PREF]))
    read = read_feedback(save("x.json", [row]), bad_rows="quarantine")
    assert len(read.reads) == 1
    assert read.reasons == {"an annotation is no object": 1, "completed_by names nobody": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer_1": "changed"}, "the id does not fit the text"),
        ({"prompt": TALK}, "the id does not fit the text"),
        ({"kind": "thumb"}, "the answers do not fit a thumb"),
        ({"kind": "poem"}, "kind is unknown"),
        ({"answer_1": None}, "the answers have the wrong type"),
        ({"prompt": "text"}, "prompt has the wrong type"),
        ({"shown": [0, 0]}, "shown is no display order"),
        ({"sources": ["one"]}, "sources do not fit"),
    ],
)
def test_tasks_that_do_not_fit(save, change, reason):
    row = task(issue("pair"), annotation(1, [PREF]))
    row["data"] |= change
    read = read_feedback(save("x.json", [row]), bad_rows="quarantine")
    assert (read.bad[0].reason, read.reads) == (reason, [])


def test_hard_texts_come_back_byte_for_byte(save, judgements):
    rankings = [j for j in judgements if isinstance(j, Ranking)]
    rows = []
    for number, ranking in enumerate(rankings):
        item = new_item("ranking", ranking.prompt, ranking.responses)
        result = [control("rank", "ranker", ranker={"rank": ["r0", "r1", "r2"]})]
        result.append(control("reason", "textarea", text=[ranking.reason]))
        rows.append(task(item, annotation(number, result)))
    found = read_feedback(save("x.json.gz", rows)).of(Ranking)
    assert [r.judgement.prompt for r in found] == [r.prompt for r in rankings]
    assert [set(r.judgement.responses) for r in found] == [set(r.responses) for r in rankings]
    assert [r.judgement.reason for r in found] == [r.reason for r in rankings]
