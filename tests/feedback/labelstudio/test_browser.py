"""A real browser on a real server: what a person sees and does there is what the store has."""

from __future__ import annotations

import itertools

import pytest

from feedback.labelstudio.journal import Journal
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.records import new_item
from feedback.schema import Comparison, Correction, Ranking, Rating, Thumb

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]
SIZES = [(1280, 800), (1920, 1080)]
TITLE = "Label Studio"
HTML = (
    "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
    "<b>bold</b> &lt;i&gt; <style>body{display:none}</style>"
)
CODE = (
    "Keep the order:\n\n```python\n\tseen = set()\n    if a < b and '&amp;' != c:  # two\n```\n  x "
)
RTL = "שלום! תשובה בעברית.\n\u202eoverride\u202c مرحبا \U0001f468\u200d\U0001f469\u200d\U0001f467"
LONG = ("The quick brown fox jumps over the lazy dog. " * 20 + "\n\n") * 56  # 50 KB
CHAT = [
    {"role": ("user", "assistant")[turn % 2], "content": f"turn {turn}: " + "word " * 60}
    for turn in range(9)
]


def pairs_shown(*orders):
    """Pairs whose answers are shown in the orders given: forgetting to turn them back fails."""
    numbers = itertools.count()
    found = []
    for order in orders:
        while True:
            n = next(numbers)
            item = new_item("pair", f"question {n}", [f"first {n}", f"second {n}"], seed=3)
            if item.shown == order:
                found.append(item)
                break
    return found


def entries(annotation):
    """What the page sent, less the page's own ids."""
    kept = ("from_name", "to_name", "type", "value")
    assert all(entry["origin"] == "manual" for entry in annotation["result"])
    return [{key: entry[key] for key in kept} for entry in annotation["result"]]


def test_pairs_by_mouse_and_by_keys(annotator, client, store, make_project, said):
    items = pairs_shown((1, 0), (0, 1), (0, 1), (1, 0), (1, 0))
    project = make_project()
    push(client, store, project, items)
    tasks = Journal(store, project).tasks()
    clicked, keyed, skipped, written, last = [tasks[item.id] for item in items]

    annotator.label_all(project, clicked)
    annotator.choose("A is much better")
    sent = annotator.send(annotator.submit.click, keyed)
    assert entries(sent) == [said("pref", "choices", choices=["a2"])]

    annotator.press("4")
    sent = annotator.send(lambda: annotator.press("Control+Enter"), skipped)
    assert entries(sent) == [said("pref", "choices", choices=["b1"])]

    sent = annotator.send(lambda: annotator.press("Control+Space"), written)
    assert sent["was_cancelled"]

    annotator.press("5")
    annotator.write("reason", "1 of 2 \U0001f4e6\n  <b>because</b>")  # its digits choose nothing
    annotator.write("correction", "Better:\n\n  so ")
    sent = annotator.send(lambda: annotator.press("Control+Enter"), last)
    assert entries(sent) == [
        said("pref", "choices", choices=["b2"]),
        said("reason", "textarea", text=["1 of 2 \U0001f4e6\n  <b>because</b>"]),
        said("correction", "textarea", text=["Better:\n\n  so "]),
    ]

    annotator.press("3")
    sent = annotator.send(lambda: annotator.press("Control+Enter"))
    assert entries(sent) == [said("pref", "choices", choices=["tie"])]

    report = pull(client, store, project)
    assert (report.server, report.kept, report.quarantined, report.complete) == (5, 5, 0, True)
    assert store.counts().skips == 1
    found = {j.pair: j for j in store.judgements() if isinstance(j, Comparison)}
    first, second, _, fourth, fifth = [item.id for item in items]
    assert set(found) == {first, second, fourth, fifth}
    assert {name: (c.label, c.strength, c.swapped, c.reason) for name, c in found.items()} == {
        first: ("b", 2, True, ""),  # A on the page was the second answer
        second: ("b", 1, False, ""),
        fourth: ("a", 2, True, "1 of 2 \U0001f4e6\n  <b>because</b>"),
        fifth: ("tie", 0, True, ""),
    }
    assert all(0 < c.lead_time < 120 for c in found.values())
    (correction,) = [j for j in store.judgements() if isinstance(j, Correction)]
    assert (correction.item, correction.response) == (fourth, items[3].responses[0])
    assert correction.corrected == "Better:\n\n  so "


def test_a_changed_mind(annotator, client, store, make_project):
    (item,) = pairs_shown((1, 0))
    project = make_project()
    push(client, store, project, [item])
    task = Journal(store, project).tasks()[item.id]
    annotator.open(project, task)
    annotator.choose("B is better")
    annotator.send(annotator.submit.click)
    pull(client, store, project)
    assert [(c.label, c.strength) for c in store.comparisons()] == [("a", 1)]
    annotator.open(project, task)
    annotator.choose("A is much better")
    annotator.send(annotator.update.click)
    pull(client, store, project)
    assert [(c.label, c.strength) for c in store.comparisons()] == [("b", 2)]


def test_a_ranking_is_dragged(annotator, client, store, make_project, said):
    answers = [f"answer {letter}\n second line" for letter in "abcd"]
    items = [new_item("ranking", f"rank {n}", answers, seed=n) for n in range(9)]
    # One whose order turned back differs from the order turned back twice.
    item = next(item for item in items if item.shown == (1, 2, 3, 0) or _long_cycle(item.shown))
    project = make_project("ranking")
    push(client, store, project, [item])
    task = Journal(store, project).tasks()[item.id]
    annotator.open(project, task)
    assert annotator.submit.is_disabled()
    annotator.drag("r3", "r0")
    annotator.drag("r2", "r0")
    names = "els => els.map(e => e.dataset.rankerId)"
    order = annotator.page.eval_on_selector_all("[data-ranker-id]", names)
    assert order == ["r3", "r2", "r0", "r1"]
    # By keys alone: Space lifts and drops, arrows move.
    annotator.page.locator("[data-ranker-id=r1]").focus()
    for key in ("Space", "ArrowUp", "Space"):
        annotator.press(key)
        annotator.page.wait_for_timeout(500)
    sent = annotator.send(annotator.submit.click)
    wanted = ["r3", "r2", "r1", "r0"]
    assert entries(sent) == [said("rank", "ranker", ranker={"rank": wanted}) | {"to_name": "items"}]
    assert pull(client, store, project).quarantined == 0
    (ranking,) = store.judgements()
    assert isinstance(ranking, Ranking)
    assert ranking.order == tuple(item.shown[int(name[1])] for name in wanted)
    best = annotator.page.locator("[data-ranker-id=r3] [class*=itemLine--]").first.inner_text()
    assert ranking.responses[ranking.order[0]] == best


def test_a_rating_with_a_reason(annotator, client, store, make_project, said):
    item = new_item("rating", "rate", ["an answer"])
    project = make_project("rating")
    push(client, store, project, [item])
    annotator.open(project, Journal(store, project).tasks()[item.id])
    annotator.stars(0, 6)
    annotator.press("s", "s", "s")  # a key adds a star
    annotator.submit.click()
    annotator.page.get_by_text("Give all three stars, or skip.").wait_for()
    annotator.page.get_by_role("button", name="OK").click()
    annotator.stars(2, 7)
    annotator.write("reason", "asd: true, but curt")
    sent = annotator.send(annotator.submit.click)
    assert entries(sent) == [
        said("helpful", "rating", rating=6),
        said("honest", "rating", rating=3),
        said("harmless", "rating", rating=7),
        said("reason", "textarea", text=["asd: true, but curt"]),
    ]
    assert pull(client, store, project).quarantined == 0
    (rating,) = store.judgements()
    assert isinstance(rating, Rating)
    assert rating.scores == {"helpful": 6, "honest": 3, "harmless": 7}
    assert rating.reason == "asd: true, but curt"


def test_thumbs(annotator, client, store, make_project, said):
    items = [new_item("thumb", f"thumb {n}", [f"answer {n}"]) for n in range(2)]
    project = make_project("thumb")
    push(client, store, project, items)
    up, down = [Journal(store, project).tasks()[item.id] for item in items]
    annotator.label_all(project, up)
    annotator.choose("Good")
    sent = annotator.send(annotator.submit.click, down)
    assert entries(sent) == [said("thumb", "choices", choices=["up"])]
    annotator.press("2")
    annotator.send(lambda: annotator.press("Control+Enter"))
    assert pull(client, store, project).quarantined == 0
    found = {j.item: j for j in store.judgements() if isinstance(j, Thumb)}
    assert {name: thumb.good for name, thumb in found.items()} == {
        items[0].id: True,
        items[1].id: False,
    }


@pytest.mark.parametrize("text", [HTML, CODE, RTL], ids=["html", "code", "rtl"])
def test_texts_are_shown_as_they_are(annotator, client, store, make_project, text):
    page = annotator.page
    pair = new_item("pair", [{"role": "user", "content": text}], [text, f"other {text}"])
    project = make_project()
    push(client, store, project, [pair])
    annotator.open(project, Journal(store, project).tasks()[pair.id])
    lines = "els => els.map(e => e.textContent)"
    for place, index in enumerate(pair.shown, 1):
        pane = f".align-answer:nth-child({place}) .lsf-richtext__line"
        assert page.eval_on_selector_all(pane, lines) == pair.responses[index].split("\n")
        assert _css(page, pane, "whiteSpace") == "pre-wrap"
    turn = ".align-prompt [class*=dialoguetext--]"
    assert page.eval_on_selector_all(turn, lines) == [text]
    assert _css(page, turn, "whiteSpace") == "pre-wrap"
    assert page.locator(".align-prompt [class*=dialoguename--]").inner_text() == "User"
    _assert_inert(page)

    ranking = new_item("ranking", text, [text, "b", "c"])
    project = make_project("ranking")
    push(client, store, project, [ranking])
    annotator.open(project, Journal(store, project).tasks()[ranking.id])
    name = f"[data-ranker-id=r{ranking.shown.index(0)}] [class*=itemLine--]"
    assert page.locator(name).first.text_content() == text
    assert _css(page, name, "whiteSpace") == "pre-wrap"
    _assert_inert(page)


@pytest.mark.parametrize("kind", ["pair", "ranking", "rating", "thumb"])
def test_all_of_it_is_in_view(annotator, client, store, make_project, kind):
    page = annotator.page
    answers = [LONG, "x" * 50_000, "short", LONG[::-1]]
    item = new_item(kind, CHAT, answers[: {"pair": 2, "ranking": 4}.get(kind, 1)])
    project = make_project(kind)
    push(client, store, project, [item])
    task = Journal(store, project).tasks()[item.id]
    controls = {"pair": 5, "ranking": 0, "rating": 21, "thumb": 2}[kind]
    for size in SIZES:
        annotator.open(project, task, size)
        found = page.locator(".lsf-choice__checkbox, .align-scores .ant-rate-star").all()
        assert len(found) == controls
        fields = page.locator(".align-fields textarea").all()
        assert len(fields) == 2
        panes = page.locator(".align-answer, .align-ranks").all()
        prompt = page.locator(".align-prompt")
        for part in [*found, *fields, *panes, prompt, annotator.submit]:
            _assert_inside(part.bounding_box(), size)
        assert panes[0].bounding_box()["height"] > 0.25 * size[1]
        # The long texts scroll in their panes, not the page; the last turn is in view first.
        scrolls = "e => e.scrollHeight > e.clientHeight + 1"
        assert all(pane.evaluate(scrolls) for pane in [*panes, prompt])
        assert not page.locator(".lsf-main-content").evaluate(scrolls)
        sideways = "e => e.scrollWidth > e.clientWidth + 1"
        assert not any(pane.evaluate(sideways) for pane in [*panes, prompt])
        turn, box = prompt.get_by_text("turn 8").bounding_box(), prompt.bounding_box()
        assert box["y"] <= turn["y"] < box["y"] + box["height"]
        # Clutter of other uses of the page.
        assert not page.get_by_text("00:00:00").first.is_visible()
        assert not page.get_by_text("Show all authors").first.is_visible()
        assert not page.get_by_text("View region details").first.is_visible()


@pytest.mark.parametrize("answers", [["no", LONG], ["x" * 50_000, "no"], [LONG, LONG[::-1]]])
def test_panes_are_equal_however_unequal_the_answers(
    annotator, client, store, make_project, answers
):
    item = new_item("pair", "question", answers)
    project = make_project()
    push(client, store, project, [item])
    for size in SIZES:
        annotator.open(project, Journal(store, project).tasks()[item.id], size)
        panes = annotator.page.locator(".align-answer").all()
        left, right = [pane.bounding_box() for pane in panes]
        assert (left["width"], left["height"]) == (right["width"], right["height"])
        assert left["y"] == right["y"]
        assert left["width"] > 0.36 * size[0]


def test_the_guidelines_can_be_read_again(annotator, client, store, make_project):
    item = new_item("thumb", "guide", ["answer"])
    project = make_project("thumb")
    push(client, store, project, [item])
    annotator.open(project, Journal(store, project).tasks()[item.id])
    annotator.page.get_by_role("button", name="Instructions").click()
    annotator.page.get_by_text("Skip what you cannot judge.").wait_for()
    annotator.page.keyboard.press("Escape")


def _long_cycle(shown):
    return tuple(shown[place] for place in shown) != tuple(range(len(shown)))


def _css(page, selector, name):
    return page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")


def _assert_inert(page):
    assert page.title() == TITLE
    assert page.locator(".align-page").locator("script, img, b, i").count() == 0
    assert page.locator(".align-page style").count() == 1  # ours
    assert page.locator("body").is_visible()


def _assert_inside(box, size):
    assert min(box["x"], box["y"]) >= 0
    assert box["x"] + box["width"] <= size[0]
    assert box["y"] + box["height"] <= size[1]
