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

# The page fills the window: prompt and answers scroll inside their panes, so the question stays in
# view and every task has it at the same place. Side panels, times, author filter and ids speak of
# regions and audio, which nobody labels here. No `<`, `>` or `&`: the page escapes them in a style.
# Names like `time--` are the stems of Label Studio's hashed class names.
_STYLE = """<Style>
  .lsf-sidepanels { padding-right: 0 !important; }
  .lsf-sidepanels__wrapper { display: none; }
  .lsf-main-view, .lsf-main-view__annotation { height: 100%; }
  .align-page { display: flex; flex-direction: column; gap: 10px; height: 100%; min-height: 500px;
    max-width: 1680px; margin: 0 auto; }
  .align-rating, .align-thumb, .align-ranking { max-width: 1120px; }
  .align-page h3, .align-page h4 { margin: 0 !important; flex: none; }
  .align-page ::-webkit-scrollbar { width: 10px; }
  .align-page ::-webkit-scrollbar-thumb { border-radius: 5px;
    background: var(--color-neutral-border-bold, #98a2b3); }
  .align-prompt { flex: none; display: flex; flex-direction: column-reverse; max-height: 30%;
    overflow: auto; }
  .align-prompt [class*=wrapper_header--], .align-prompt [class*=time--],
  .align-prompt [class*=selectAllBtnWrapper--] { display: none; }
  .align-prompt [class*=container--] { margin: 0; overflow: visible; }
  .align-prompt [class*=phraseContainer--] { display: block; margin: 0 0 6px; padding: 4px 12px;
    border-left: 4px solid var(--color-neutral-border, #d0d5dd); }
  .align-prompt [class*=phraseContainer--]:last-child { margin: 0;
    border-color: var(--color-primary-border, #4c5fa9); }
  .align-prompt [class*=phrase--] { display: contents; }
  .align-prompt [class*=dialoguename--] { text-transform: capitalize; font-size: 13px;
    line-height: 18px; color: var(--color-neutral-content-subtle) !important; }
  .align-prompt [class*=dialoguetext--] { display: block; margin: 0 !important; }
  .align-answers { flex: 1 1 0; min-height: 120px; display: grid; gap: 16px;
    grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); grid-template-rows: minmax(0, 1fr); }
  .align-single { grid-template-columns: minmax(0, 1fr); }
  .align-answer { overflow: auto; padding: 10px 16px; border-radius: 8px;
    border: 1px solid var(--color-neutral-border, #d0d5dd); }
  .align-answer .lsf-richtext__container { padding: 4px 0 0; line-height: 22px; }
  .align-answer br { display: none; }
  .align-answer .lsf-richtext__line { display: block; min-height: 22px; padding: 0; }
  .align-answer .lsf-richtext__line, .align-prompt [class*=dialoguetext--],
  .htx-ranker-item [class*=itemLine--] { font-size: 15px !important; letter-spacing: 0; tab-size: 4;
    white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; text-align: start; }
  .align-page .lsf-choices { flex: none; margin: 0; display: grid; gap: 8px; grid-auto-flow: column;
    grid-auto-columns: minmax(0, 1fr); }
  .align-page .lsf-choice { margin: 0; padding: 0; }
  .align-page .lsf-choice__checkbox { flex: 1; margin: 0; padding: 7px 10px; border-radius: 8px;
    border: 1px solid var(--color-neutral-border, #d0d5dd); }
  .align-thumb .lsf-choices { max-width: 400px; }
  .align-scores { flex: none; display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .align-scores .ant-rate-star-zero .anticon { color: var(--color-neutral-border-bold, #98a2b3); }
  .align-scores .ant-rate-star-full .anticon { color: #b54708; }
  .align-fields { flex: none; display: grid; gap: 16px; grid-auto-flow: column;
    grid-auto-columns: minmax(0, 1fr); }
  .align-fields .lsf-text-area { margin: 0 !important; }
  .align-fields .ant-form-item { margin: 0; }
  .align-ranks { flex: 1 1 0; min-height: 200px; overflow: auto; }
  .align-ranks [class*=board--], .align-ranks [class*=column--] { border: 0; padding: 0;
    overflow: visible; }
  .align-ranks [class*=columnTitle--], .htx-ranker-item p:last-of-type { display: none; }
  .align-ranks { counter-reset: place; }
  .htx-ranker-item { counter-increment: place; }
  .htx-ranker-item [class*=itemTitle--]::before { content: 'Place ' counter(place) ': answer';
    margin-right: 6px; }
  .htx-ranker-item [class*=itemLine--] { max-height: 20vh; overflow: auto; padding-top: 4px; }
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
            fields.append(_field(REASON, "Why? (optional)"))
        if self.correction:
            fields.append(_field(CORRECTION, "A better answer, if you would write one"))
        question = self.question or QUESTIONS[self.kind]
        parts = [_STYLE, _PROMPT, body(question)]
        if fields:
            parts.append(f'<View className="align-fields">{"".join(fields)}</View>')
        return f'<View className="align-page align-{self.kind}">{"".join(parts)}</View>'


QUESTIONS: dict[Kind, str] = {
    "pair": "Which answer is better?",
    "ranking": "Drag the answers into order, the best on top.",
    "rating": "How good is the answer? One star is worst, seven are best.",
    "thumb": "Is this a good answer?",
}
# The server strips styles and the page strips bullets, hence paragraphs.
GUIDELINES = """<h3>How to judge</h3>
<p>• Read the whole conversation (scroll up for its beginning), then every answer to its end.</p>
<p>• Ask: is it true, does it do what was asked, is it safe? Length and polish do not count.</p>
<p>• Answers are shown in a random order. Call two the same only if you are happy with either.</p>
<p>• Skip what you cannot judge.</p>
<p>• Keys: the one in brackets beside a choice makes it, <b>Ctrl+Enter</b> submits,
<b>Ctrl+Space</b> skips. Inside a text field keys only write: click beside it first.</p>"""

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
        f'<View className="align-answer">{_header(title)}'
        f'<Text name="answer_{place}" value="$answer_{place}"/></View>'
    )


def _field(name: str, placeholder: str) -> str:
    return (
        f'<TextArea name="{name}" toName="chat" rows="2" editable="true" maxSubmissions="1" '
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
    return f"{panes}{_header(question)}{_choices(PREFERENCE, options)}"


def _ranking(question: str) -> str:
    return (
        f'{_header(question)}<View className="align-ranks">'
        '<List name="items" value="$items" title="Answers"/>'
        f'<Ranker name="{RANK}" toName="items"/></View>'
    )


def _rating(question: str) -> str:
    stars = "".join(
        f'<View>{_header(f"{aspect.capitalize()} [{key}]")}<Rating name="{aspect}" toName="chat" '
        f'maxRating="7" icon="star" size="medium" required="true" '
        f'requiredMessage="Give all three stars, or skip." hotkey="{key}"/></View>'
        for key, aspect in zip("asd", ASPECTS, strict=True)
    )
    return f'{_single()}{_header(question)}<View className="align-scores">{stars}</View>'


def _thumb(question: str) -> str:
    options = [("Good", "up", "1"), ("Bad", "down", "2")]
    return f"{_single()}{_header(question)}{_choices(THUMB, options)}"


def _single() -> str:
    return f'<View className="align-answers align-single">{_answer(1, "Answer")}</View>'


def _header(text: str) -> str:
    return f'<Header value={quoteattr(text)} size="5"/>'
