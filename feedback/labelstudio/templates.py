"""Labelling configurations: what an annotator's page looks like, one for each kind of item.

Label Studio's community edition does not check results against the configuration, so `parse` does;
the names used there are the constants here. Model names appear nowhere. The two panes of a pair are
a grid of equal columns: unequal panes bias people.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from feedback.schema import Kind

PREFERENCE, REASON, CORRECTION, RANK, THUMB = "pref", "reason", "correction", "rank", "thumb"
ASPECTS = ("helpful", "honest", "harmless")
# alias -> (label of the answer on the left = a, strength)
LEVELS = {"a2": ("a", 2), "a1": ("a", 1), "tie": ("tie", 0), "b1": ("b", 1), "b2": ("b", 2)}

_STYLE = """<Style>
  .align-page { max-width: 1680px; margin: 0 auto; }
  .align-answers { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr);
    gap: 16px; align-items: stretch; }
  .align-answer { border: 1px solid #d0d5dd; border-radius: 8px; padding: 12px 16px;
    max-height: 34vh; overflow: auto; overflow-wrap: anywhere; }
  .align-prompt { max-height: 22vh; overflow: auto; margin-bottom: 12px; }
  .align-answer .lsf-richtext__container, .align-answer pre { white-space: pre-wrap; }
</Style>"""


@dataclass(frozen=True)
class Template:
    """How to ask: texts the team lead may change before the first label, and never after."""

    kind: Kind
    question: str = ""
    reason: bool = True  # a field for why
    correction: bool = False  # a field for a better answer: it becomes SFT data

    def config(self) -> str:
        """The configuration in Label Studio's XML."""
        body = {"pair": _pair, "ranking": _ranking, "rating": _rating, "thumb": _thumb}[self.kind]
        fields = []
        if self.reason:
            fields.append(_field(REASON, "Why? (optional)", rows=2))
        if self.correction:
            fields.append(_field(CORRECTION, "A better answer, if you would write one", rows=4))
        question = self.question or QUESTIONS[self.kind]
        parts = [_STYLE, _PROMPT, body(question), *fields]
        return f'<View className="align-page">{"".join(parts)}</View>'


QUESTIONS: dict[Kind, str] = {
    "pair": "Which answer is better?",
    "ranking": "Drag the answers into order, the best on top.",
    "rating": "How good is the answer? 1 is worst, 7 is best.",
    "thumb": "Is this a good answer?",
}
GUIDELINES = """<h3>How to judge</h3>
<ul>
<li>Read the whole conversation first, then every answer to its end.</li>
<li>Ask: is it true, does it do what was asked, is it safe? Length and polish do not count.</li>
<li>Answers are shown in a random order. Choose a tie only when you would be happy with either.</li>
<li>Skip what you cannot judge. Nobody sees your labels but the team lead.</li>
</ul>
<p>Keys: <b>1</b> to <b>5</b> choose, <b>Ctrl+Enter</b> submits, <b>Ctrl+Space</b> skips.</p>"""

_PROMPT = (
    '<View className="align-prompt"><Paragraphs name="chat" value="$prompt" layout="dialogue" '
    'nameKey="role" textKey="content"/></View>'
)


def config_hash(config: str) -> str:
    """SHA-256 of a configuration, white space between tags apart (servers reformat it)."""
    plain = "".join(line.strip() for line in config.splitlines())
    return hashlib.sha256(plain.encode()).hexdigest()


def _answer(place: int, title: str) -> str:
    return (
        f'<View className="align-answer"><Header value={quoteattr(title)} size="5"/>'
        f'<Text name="answer_{place}" value="$answer_{place}"/></View>'
    )


def _field(name: str, placeholder: str, rows: int) -> str:
    return (
        f'<TextArea name="{name}" toName="chat" rows="{rows}" editable="true" maxSubmissions="1" '
        f'showSubmitButton="false" placeholder={quoteattr(placeholder)}/>'
    )


def _choices(name: str, options: list[tuple[str, str, str]]) -> str:
    lines = "".join(
        f'<Choice value={quoteattr(text)} alias="{alias}" hotkey="{key}"/>'
        for text, alias, key in options
    )
    return (
        f'<Choices name="{name}" toName="chat" choice="single-radio" required="true" '
        f'showInline="true" requiredMessage="Choose one, or skip.">{lines}</Choices>'
    )


def _pair(question: str) -> str:
    panes = f'<View className="align-answers">{_answer(1, "A")}{_answer(2, "B")}</View>'
    options = [
        ("A is much better", "a2", "1"),
        ("A is better", "a1", "2"),
        ("About the same", "tie", "3"),
        ("B is better", "b1", "4"),
        ("B is much better", "b2", "5"),
    ]
    return f"{panes}<Header value={quoteattr(question)}/>{_choices(PREFERENCE, options)}"


def _ranking(question: str) -> str:
    return (
        f'<Header value={quoteattr(question)}/><List name="items" value="$items" title="Answers"/>'
        f'<Ranker name="{RANK}" toName="items"/>'
    )


def _rating(question: str) -> str:
    stars = "".join(
        f'<Header value="{aspect.capitalize()}" size="6"/><Rating name="{aspect}" toName="chat" '
        'maxRating="7" icon="star" size="medium" required="true"/>'
        for aspect in ASPECTS
    )
    return f"{_answer(1, 'Answer')}<Header value={quoteattr(question)}/>{stars}"


def _thumb(question: str) -> str:
    options = [("Good", "up", "1"), ("Bad", "down", "2")]
    return f"{_answer(1, 'Answer')}<Header value={quoteattr(question)}/>{_choices(THUMB, options)}"
