"""Label Studio's JSON export of tasks that Align pushed; the order shown is undone.

The export says what was asked and what people did, but not who wrote the answers and, as Align
pushes tasks, not in which order the store holds them: answers are then read as shown, the first
one as `response_a`, and the store turns them round. What people said is read by
`feedback.labelstudio.parse`, as a pull reads it. An annotation that does not fit is set aside
alone. Other exports (JSON_MIN, CSV) drop skips and are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from feedback.conversation import shorten, type_name
from feedback.dialogue import RowProblem
from feedback.formats.found import Declined, Found, Misfit, Outcome, check_storable, digest
from feedback.formats.result import Values
from feedback.formats.text import IMPORTED
from feedback.labelstudio.parse import parse_annotation
from feedback.labelstudio.tasks import item_of_key
from feedback.schema import KINDS, Correction, Item, Kind, Messages, Text, item_id


def parse(row: Values) -> Iterator[Outcome]:
    """The judgements and skips of one task.

    Raises:
        RowProblem: the task is none that Align pushed, or its text was changed since.
    """
    annotations = row.get("annotations")
    if not isinstance(annotations, list):
        raise RowProblem(
            "the task has no list of annotations", "expected Label Studio's JSON export"
        )
    check_storable(row.get("data"))
    item = read_item(row.get("data"))
    for annotation in annotations:
        try:
            yield from _read_annotation(annotation, item, row.get("project"))
        except RowProblem as problem:
            yield Misfit(problem, annotation)


def read_item(data: object) -> Item:
    """What was asked, from a task's data.

    The answers are `answer_1`, `answer_2`, ..., or the bodies of a ranking's `items`, or
    `responses`, in the order shown; `shown[i]`, if there, is the index of the answer at place i.
    `sources` are the policies by index. The id, `key` or `pair_id`, is made from the text, so it
    also tells whether the prompt is text or a conversation, and whether anything was changed.

    Raises:
        RowProblem: the data do not fit, or their text is not the one the id was made from.
    """
    if not isinstance(data, dict):
        raise RowProblem("the task has no data", f"{type_name(data)}; expected an object")
    kind = data.get("kind")
    if kind not in KINDS:
        raise RowProblem("kind is unknown", f"{shorten(kind)}; expected {', '.join(KINDS)}")
    places = _read_answers(data, kind)
    shown = data.get("shown", list(range(len(places))))
    if not isinstance(shown, list) or not _is_order(shown, len(places)):
        raise RowProblem(
            "shown is no display order",
            f"{shorten(shown)} for {len(places)} answers; expected each index once",
        )
    answers = tuple(places[shown.index(i)] for i in range(len(places)))
    sources = data.get("sources") or [""] * len(answers)
    if (
        not isinstance(sources, list)
        or len(sources) != len(answers)
        or not all(isinstance(name, str) for name in sources)
    ):
        raise RowProblem("sources do not fit", f"expected a name for each of {len(answers)}")
    key = data.get("key", data.get("pair_id"))
    name = item_of_key(key) if isinstance(key, str) else ""
    for prompt in _prompts(data):
        if item_id(kind, prompt, answers) == name:
            return Item(name, kind, prompt, answers, tuple(sources), shown=tuple(shown))
    raise RowProblem(
        "the id does not fit the text",
        f"{shorten(key)} was not made from this prompt and these answers: one was changed since",
    )


def annotation_id(annotation: Mapping[str, Any], project: object, item: str, part: str) -> str:
    """The id of one part (judgement or skip, correction) of an annotation; an update keeps it.

    `unique_id` names an annotation on any server. Without it the project, its own id and the item
    do. Without these too it is empty: the id is then made from what was said.
    """
    if isinstance(annotation.get("unique_id"), str):
        return digest("label-studio", annotation["unique_id"], part)
    if isinstance(annotation.get("id"), int):
        return digest("label-studio", project, annotation["id"], item, part)
    return ""


def _read_annotation(annotation: object, item: Item, task_project: object) -> Iterator[Outcome]:
    if not isinstance(annotation, dict):
        raise RowProblem(
            "an annotation is no object", f"{type_name(annotation)}; expected an object"
        )
    check_storable(annotation)
    projects = (annotation.get("project"), task_project)
    project = next((value for value in projects if isinstance(value, int)), None)
    annotator = _read_person(annotation.get("completed_by"))
    if annotation.get("was_cancelled") is True:
        name = annotation_id(annotation, project, item.id, "judgement")  # it may have been one
        yield Declined(item, annotator, name or digest("skip", item.id, annotator), annotation)
        return
    try:
        judgements = parse_annotation(annotation, item, item.id, annotator)
    except (ValueError, OverflowError) as error:  # Misfit; a number past any float
        raise RowProblem("the result does not fit the page", str(error)) from None
    for judgement in judgements:
        corrects = isinstance(judgement, Correction)
        name = annotation_id(
            annotation, project, item.id, "correction" if corrects else "judgement"
        )
        yield Found(judgement, annotation, name, dated=True)


def _read_person(value: object) -> str:
    """An annotator's email, user name or number; "imported" where none is named.

    Exports give a number, `tasks.get` an object; `read_feedback(annotators=...)` makes them one.
    """
    if isinstance(value, dict):
        keys = ("email", "username", "id")
        value = next((value[key] for key in keys if value.get(key) not in (None, "")), None)
    if value is None:
        return IMPORTED
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RowProblem(
        "completed_by names nobody", f"{shorten(value)}; expected a number, a name or a user"
    )


def _read_answers(data: Values, kind: Kind) -> list[str]:
    """The answers in the order shown."""
    answers: object = data.get("responses")
    if answers is None and isinstance(data.get("items"), list):
        answers = [item.get("body") if isinstance(item, dict) else None for item in data["items"]]
    if answers is None:
        names = [f"answer_{place}" for place in range(1, len(data) + 1)]
        answers = [data[name] for name in names if name in data]
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
        raise RowProblem("the answers have the wrong type", "expected texts")
    low, high = {"pair": (2, 2), "ranking": (2, 26), "rating": (1, 1), "thumb": (1, 1)}[kind]
    if not low <= len(answers) <= high:
        found = ", ".join(data)
        raise RowProblem(f"the answers do not fit a {kind}", f"{len(answers)}; keys: {found}")
    if len(set(answers)) < len(answers):
        raise RowProblem("two answers are equal", "nobody can prefer one to the other")
    return answers


def _prompts(data: Values) -> list[Text]:
    """What the prompt may have been: pages show text as a conversation of one message."""
    value = data.get("prompt")
    fits = isinstance(value, list) and all(
        isinstance(message, dict) and all(isinstance(text, str) for text in message.values())
        for message in value
    )
    if not fits or not value:
        raise RowProblem("prompt has the wrong type", "expected a list of messages")
    messages: Messages = value
    as_text = data.get("prompt_is_text")
    prompts: list[Text] = [messages] if as_text is not True else []
    if len(messages) == 1 and as_text is not False:
        prompts.append(messages[0].get("content", ""))
    return prompts


def _is_order(value: list[Any], count: int) -> bool:
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in value)
    return whole and sorted(value) == list(range(count))
