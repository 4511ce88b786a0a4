"""Formats: what is recognised, what each becomes for each kind, and every way a row can be bad."""

from __future__ import annotations

import pytest

from align.data.formats import SERVES, check_serves, convert, detect_format
from align.errors import DataError
from feedback.dialogue import RowProblem


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Because.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Go away.",
}
HH_PROMPT = [user("Hi"), assistant("Hello."), user("Why?")]
SKY = [user("Sky?")]

# format, row, what it becomes for sft, for preference, for prompts (None: cannot serve)
CASES = {
    "text": ("text", {"text": "The sky."}, {"text": "The sky."}, None, None),
    "messages": (
        "messages",
        {"messages": [*SKY, assistant("Blue.")], "id": 7},
        {"prompt": SKY, "completion": [assistant("Blue.")]},
        None,
        {"prompt": SKY, "id": 7},
    ),
    "sharegpt": (
        "messages",
        {"conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}]},
        {"prompt": SKY, "completion": [assistant("Blue.")]},
        None,
        {"prompt": SKY},
    ),
    "plain prompt-completion": (
        "prompt-completion",
        {"prompt": "Sky?", "completion": " Blue."},
        {"prompt": "Sky?", "completion": " Blue."},
        None,
        {"prompt": "Sky?"},
    ),
    "conversational prompt-completion": (
        "prompt-completion",
        {"prompt": [system("Be brief."), *SKY], "completion": [assistant("Blue.")]},
        {"prompt": [system("Be brief."), *SKY], "completion": [assistant("Blue.")]},
        None,
        {"prompt": [system("Be brief."), *SKY]},
    ),
    "completion of several turns": (
        "prompt-completion",
        {"prompt": SKY, "completion": [assistant("Blue."), user("Why?"), assistant("Air.")]},
        {
            "prompt": [*SKY, assistant("Blue."), user("Why?")],
            "completion": [assistant("Air.")],
        },
        None,
        {"prompt": [*SKY, assistant("Blue."), user("Why?")]},
    ),
    "explicit preference": (
        "preference",
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red.", "margin": 2, "topic": "sky"},
        {"prompt": "Sky?", "completion": "Blue."},
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red.", "margin": 2.0},
        {"prompt": "Sky?", "margin": 2, "topic": "sky"},
    ),
    "explicit conversational preference": (
        "preference",
        {"prompt": SKY, "chosen": [assistant("Blue.")], "rejected": [assistant("Red.")]},
        {"prompt": SKY, "completion": [assistant("Blue.")]},
        {"prompt": SKY, "chosen": [assistant("Blue.")], "rejected": [assistant("Red.")]},
        {"prompt": SKY},
    ),
    "implicit conversational preference": (
        "preference",
        {"chosen": [*SKY, assistant("Blue.")], "rejected": [*SKY, assistant("Red.")]},
        {"prompt": SKY, "completion": [assistant("Blue.")]},
        {"prompt": SKY, "chosen": [assistant("Blue.")], "rejected": [assistant("Red.")]},
        {"prompt": SKY},
    ),
    "plain prompt repeated in conversations": (
        "preference",
        {
            "prompt": "Sky?",
            "chosen": [system("Be brief."), *SKY, assistant("Blue.")],
            "rejected": [system("Be brief."), *SKY, assistant("Red.")],
        },
        {"prompt": [system("Be brief."), *SKY], "completion": [assistant("Blue.")]},
        {
            "prompt": [system("Be brief."), *SKY],
            "chosen": [assistant("Blue.")],
            "rejected": [assistant("Red.")],
        },
        {"prompt": [system("Be brief."), *SKY]},
    ),
    "implicit plain preference": (
        "preference",
        {"chosen": "The sky is blue.", "rejected": "The sky is black.", "weight": "0.5"},
        {"prompt": "The sky is", "completion": " blue."},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " black.", "weight": 0.5},
        {"prompt": "The sky is", "weight": "0.5"},
    ),
    "hh": (
        "hh",
        HH,
        {"prompt": HH_PROMPT, "completion": [assistant("Because.")]},
        {
            "prompt": HH_PROMPT,
            "chosen": [assistant("Because.")],
            "rejected": [assistant("Go away.")],
        },
        {"prompt": HH_PROMPT},
    ),
    "unpaired": (
        "unpaired",
        {"prompt": "Sky?", "completion": "Blue.", "label": True},
        {"prompt": "Sky?", "completion": "Blue."},
        None,
        {"prompt": "Sky?"},
    ),
    "prompts": (
        "prompts",
        {"prompt": "Sky?", "answer": "blue"},
        None,
        None,
        {"prompt": "Sky?", "answer": "blue"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_detected_and_converted(name):
    format, row, *expected = CASES[name]
    assert detect_format([row], {}, "x") == format
    for kind, wanted in zip(("sft", "preference", "prompts"), expected, strict=True):
        if wanted is None:
            assert kind not in SERVES[format]
            with pytest.raises(
                DataError, match=f"x: {format} data cannot serve '{kind}'.*use data"
            ):
                check_serves(format, kind, "x")
        else:
            check_serves(format, kind, "x")
            assert convert(row, format, kind, {}) == wanted


def test_every_format_has_a_case():
    elsewhere = {"ranking", "rating", "steps"}  # tests/data/test_graded.py
    assert {case[0] for case in CASES.values()} | elsewhere == set(SERVES)


def test_an_answer_labelled_bad_is_left_out_of_sft_only():
    row = {"prompt": "Sky?", "completion": "Red.", "label": "False"}
    assert convert(row, "unpaired", "sft", {}) is None
    assert convert(row, "unpaired", "prompts", {}) == {"prompt": "Sky?"}


def test_messages_that_end_with_the_user_serve_prompts():
    assert convert({"messages": SKY}, "messages", "prompts", {}) == {"prompt": SKY}
    with pytest.raises(RowProblem, match="does not end with the assistant"):
        convert({"messages": SKY}, "messages", "sft", {})


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue", "The sky is black", "The sky is"),  # not inside a word
        ("Q: 1? A: yes", "Q: 1? A: yes, yes", "Q: 1? A:"),  # one goes on where the other ends
        ("Q? A: no", "Q? A:  yes", "Q? A:"),
        ("Q?\nno", "Q?\nyes", "Q?"),
    ],
)
def test_shared_beginning_is_split_between_words(chosen, rejected, prompt):
    row = convert({"chosen": chosen, "rejected": rejected}, "preference", "preference", {})
    assert row["prompt"] == prompt
    assert (prompt + row["chosen"], prompt + row["rejected"]) == (chosen, rejected)


def test_turns_of_one_speaker_in_a_row_are_joined():
    shared = "\n\nHuman: Hi\n\nAssistant: One.\n\nAssistant: Two.\n\nHuman: So?\n\nAssistant:"
    row = convert({"chosen": shared + " a", "rejected": shared + " b"}, "hh", "preference", {})
    assert row["prompt"] == [user("Hi"), assistant("One.\n\nTwo."), user("So?")]


class TestColumns:
    def test_gsm8k(self):
        row = {"question": "1 + 1?", "answer": "#### 2"}
        columns = {"prompt": "question", "completion": "answer"}
        assert detect_format([row], columns, "x") == "prompt-completion"
        sft = convert(row, "prompt-completion", "sft", columns)
        assert sft == {"prompt": "1 + 1?", "completion": "#### 2"}
        prompts = convert(row, "prompt-completion", "prompts", columns)
        assert prompts == {"prompt": "1 + 1?", "answer": "#### 2"}  # a reward function needs it

    def test_nested(self):
        row = {"q": "1 + 1?", "model": {"solution": "2", "is_correct": True}}
        columns = {"prompt": "q", "completion": "model.solution", "label": "model.is_correct"}
        assert detect_format([row], columns, "x") == "unpaired"
        wanted = {"prompt": "1 + 1?", "completion": "2"}
        assert convert(row, "unpaired", "sft", columns) == wanted

    def test_missing_everywhere(self):
        with pytest.raises(DataError, match=r"x: has no column 'qestion': did you mean 'question'"):
            detect_format([{"question": "a"}], {"prompt": "qestion"}, "x")

    def test_missing_in_one_row(self):
        with pytest.raises(RowProblem, match=r"has no column 'q': the row has other"):
            convert({"other": 1}, "prompts", "prompts", {"prompt": "q"})

    def test_no_known_format(self):
        with pytest.raises(
            DataError, match=r"these columns: answer, question\. Fix: name them with `columns`"
        ):
            detect_format([{"question": "a", "answer": "b"}], {}, "x")

    def test_names_that_reward_functions_use(self):
        with pytest.raises(RowProblem, match="reward functions use that name"):
            convert({"prompt": "a", "completions": []}, "prompts", "prompts", {})


class TestSystemPrompt:
    def test_begins_conversations(self):
        row = {"messages": [*SKY, assistant("Blue.")]}
        made = convert(row, "messages", "sft", {}, "Be brief.")
        assert made["prompt"] == [system("Be brief."), *SKY]

    def test_gives_way_to_a_conversations_own(self):
        row = {"prompt": [system("Rhyme."), *SKY]}
        assert convert(row, "prompts", "prompts", {}, "Be brief.") == row

    def test_makes_plain_rows_conversations(self):
        row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red."}
        made = convert(row, "preference", "preference", {}, "Be brief.")
        assert made["prompt"] == [system("Be brief."), *SKY]
        assert made["rejected"] == [assistant("Red.")]


def test_the_majority_decides_the_format():
    rows = [{"oops": 1}, {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}]
    assert detect_format(rows, {}, "x") == "prompt-completion"


BAD = [
    ("text", {"text": " "}, "text is empty"),
    ("text", {"text": 3}, "text has the wrong type: int"),
    ("text", {}, "text is missing"),
    ("prompt-completion", {"prompt": "a"}, "completion is missing"),
    ("prompt-completion", {"prompt": "a", "completion": "\n"}, "completion is empty"),
    ("prompt-completion", {"prompt": "", "completion": "b"}, "prompt is empty"),
    ("prompt-completion", {"prompt": 5, "completion": "b"}, "prompt has the wrong type: int"),
    ("prompt-completion", {"prompt": "a", "completion": {}}, "completion has the wrong type: dict"),
    ("prompt-completion", {"prompt": [], "completion": "b"}, "prompt is empty"),
    (
        "prompt-completion",
        {"prompt": [user("a"), assistant("b")], "completion": "c"},
        "prompt has no user turn before the answer: the assistant's 'b'",
    ),
    (
        "prompt-completion",
        {"prompt": SKY, "completion": [user("b")]},
        "completion does not end with the assistant: the last message is the user's 'b'",
    ),
    ("messages", {"messages": "hi"}, "messages has the wrong type: text"),
    ("messages", {"messages": []}, "messages is empty"),
    ("messages", {"messages": ["hi"]}, "messages has a bad message: messages[0] is text"),
    (
        "messages",
        {"messages": [user("a"), {"role": "bot", "content": "b"}]},
        "messages has an unknown role: messages[1] is from 'bot'; expected system, user, assistant",
    ),
    (
        "messages",
        {"messages": [{"role": "user"}]},
        "messages has a bad message: messages[0] has no",
    ),
    ("messages", {"messages": [user("a"), assistant("")]}, "messages has an empty message"),
    ("messages", {"messages": [assistant("b")]}, "messages has no user turn before the answer"),
    (
        "messages",
        {"messages": [user("a"), system("b"), assistant("c")]},
        "messages has a late system message",
    ),
    (
        "messages",
        {"messages": [user("a"), assistant("b"), user("c"), system("d")]},
        "messages has a late system message",
    ),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "b "}, "chosen equals rejected"),
    ("preference", {"chosen": "a b", "rejected": "a b"}, "chosen equals rejected"),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": None}, "rejected is missing"),
    ("preference", {"chosen": "a b", "rejected": "c d"}, "chosen and rejected share no beginning"),
    ("preference", {"chosen": "a b", "rejected": "a"}, "rejected is empty: it ends where"),
    ("preference", {"chosen": "a b ", "rejected": "a b c"}, "chosen is empty"),
    (
        "preference",
        {"chosen": [*SKY, assistant("b")], "rejected": [user("Sea?"), assistant("c")]},
        "chosen and rejected answer different prompts",
    ),
    (
        "preference",
        {"chosen": [*SKY, assistant("b")], "rejected": "c"},
        "chosen and rejected differ in type",
    ),
    (
        "preference",
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"},
        "margin has the wrong type: 'much'",
    ),
    (
        "preference",
        {"prompt": "a", "chosen": "b", "rejected": "c", "weight": float("nan")},
        "weight is not finite",
    ),
    ("hh", HH | {"rejected": HH["chosen"]}, "chosen equals rejected"),
    ("hh", HH | {"chosen": HH["chosen"] + "\n\nHuman: Oh"}, "chosen does not end with the assist"),
    ("hh", HH | {"chosen": "\n\nHuman: Hi\n\nAssistant: "}, "chosen is empty: turn 2 (Assistant)"),
    ("hh", HH | {"chosen": "\n\nHuman: \n\nAssistant: a"}, "chosen has an empty message"),
    ("hh", HH | {"chosen": "Hello"}, "chosen is no raw dialogue"),
    ("hh", HH | {"chosen": "\n\nHuman: Other\n\nAssistant: a"}, "chosen and rejected answer diff"),
    ("unpaired", {"prompt": "a", "completion": "b", "label": "good"}, "label has the wrong type"),
    ("unpaired", {"prompt": "a", "completion": "b", "label": 2}, "label has the wrong type: 2"),
    ("prompts", {"prompt": [user("a"), assistant("b")]}, "prompt has no user turn before"),
]


@pytest.mark.parametrize(("format", "row", "message"), BAD)
def test_bad_rows_say_what_is_wrong(format, row, message):
    kind = next(k for k in ("preference", "sft", "prompts") if k in SERVES[format])
    with pytest.raises(RowProblem) as error:
        convert(row, format, kind, {})
    assert str(error.value).startswith(message)
