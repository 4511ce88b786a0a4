"""Models that write, behind a real HTTP server: paraphrase, back-translation, new rows."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from align.config.sections import DataSection
from align.data import load_splits
from align.data.augment import augment
from align.errors import ConfigError, DataError
from reward.serve import listen


class Service:
    """An OpenAI-compatible service; `rule` makes the reply from the question."""

    def __init__(self) -> None:
        self.rule: Callable[[str, int], str] = lambda text, seed: text
        self.faults: list[JSONResponse] = []
        self.requests: list[dict[str, Any]] = []

    async def complete(self, request: Request) -> Any:
        body = await request.json()
        self.requests.append(body)
        if self.faults:
            return self.faults.pop(0)
        reply = self.rule(body["messages"][-1]["content"], body["seed"])
        message = {"role": "assistant", "content": reply}
        return {"object": "chat.completion", "choices": [{"index": 0, "message": message}]}


@pytest.fixture
def service() -> Iterator[tuple[Service, str]]:
    made = Service()
    app = FastAPI()
    made.complete.__func__.__annotations__["request"] = Request
    app.post("/v1/chat/completions")(made.complete)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield made, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)


def material(question: str) -> str:
    return re.search(r"<text-(\w+)>\n(.*)\n</text-\1>", question, re.DOTALL)[2]


ROWS = [{"prompt": f"How far is the town, {n} miles or more?"} for n in range(6)]


class TestParaphrase:
    def test_replies_become_rows_and_unfit_ones_are_refused(self, service):
        made, url = service
        replies = {
            0: lambda text: f"The town: is it {text.split()[5]} miles away or more?",
            1: lambda text: "The town: is it far away or not so far?",  # lost its number
            2: lambda text: "",
            3: lambda text: text * 3,  # too long
            4: lambda text: text,  # unchanged
            5: lambda text: f"<text-x>\nIs the town {text.split()[5]} miles off, or more?",
        }
        made.rule = lambda q, seed: replies[int(material(q).split()[5])](material(q))
        entry = {"kind": "paraphrase", "url": url, "model": "m", "seed": 7, "max_tokens": 64}
        data, (report,) = augment(ROWS, [entry], "prompts")
        assert data["prompt"][6:] == [
            "The town: is it 0 miles away or more?",
            "<text-x>\nIs the town 5 miles off, or more?",
        ]
        assert (report.made, report.refused, report.unchanged) == (2, 3, 1)
        body = made.requests[0]
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 64, 0.7)
        assert len({request["seed"] for request in made.requests}) == 6
        options = json.loads(data["lineage"][6]["steps"][0]["options"])
        assert (options["model"], options["url"]) == ("m", url)

    def test_order_does_not_matter_and_copies_differ(self, service):
        made, url = service
        made.rule = lambda q, seed: f"{material(q)} {chr(97 + seed % 26)}{chr(97 + seed % 25)}"
        entry = {"kind": "paraphrase", "url": url, "model": "m", "copies": 3}
        one, _ = augment(ROWS, [entry], "prompts")
        two, _ = augment(ROWS[::-1], [entry], "prompts")
        assert sorted(one["prompt"]) == sorted(two["prompt"])
        assert len(set(one["prompt"])) == len(one) > 18

    def test_a_failing_service_is_named_as_the_writer(self, service):
        made, url = service
        made.faults = [JSONResponse({"error": {"message": "no such model"}}, 404)] * 6
        entry = {"kind": "paraphrase", "url": url, "model": "m"}
        with pytest.raises(DataError, match=r"writer 'm' at .* refused: 404: no such model"):
            augment(ROWS, [entry], "prompts")

    def test_a_missing_key_is_refused_before_anything_is_sent(self, service, monkeypatch):
        made, url = service
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        entry = {"kind": "paraphrase", "url": url, "model": "m", "api_key_env": "NO_SUCH_KEY"}
        with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
            augment(ROWS, [entry], "prompts")
        with pytest.raises(ConfigError, match="expected one such as http"):
            augment(ROWS, [entry | {"url": "localhost"}], "prompts")
        assert made.requests == []

    def test_a_resumed_run_asks_nothing_again(self, service, write, tmp_path):
        made, url = service
        count = iter(range(100))
        made.rule = lambda q, seed: f"{material(q)} {'abcdefghijklmnop'[next(count)]}"
        entry = {"kind": "paraphrase", "url": url, "model": "m", "copies": 2}
        section = DataSection(
            train=str(write("x.jsonl", ROWS)), validation_fraction=0.0, augment=[entry]
        )
        aside = tmp_path / "run" / "quarantine.jsonl"
        first = load_splits(section, "prompts", quarantine=aside).train["prompt"]
        assert len(made.requests) == 12 == len(set(first)) - 6
        assert load_splits(section, "prompts", quarantine=aside).train["prompt"][:] == first[:]
        assert len(made.requests) == 12
        replies = tmp_path / "run" / "augment_replies.jsonl"
        replies.write_text(replies.read_text()[:-20])  # as if cut short
        load_splits(section, "prompts", quarantine=aside)
        assert len(made.requests) == 13


def test_back_translation_goes_there_and_back(service):
    made, url = service

    def rule(question: str, seed: int) -> str:
        text = material(question)
        if "from English to" in question:
            pivot = re.search(r"from English to (\w+)", question)[1]
            return f"({pivot}) {text}"
        assert "to English" in question
        pivot = re.search(r"from (\w+) to English", question)[1]
        assert text.startswith(f"({pivot}) ")
        return text.removeprefix(f"({pivot}) ").replace("How far is", "What is the way to")

    made.rule = rule
    entry = {"kind": "back_translation", "url": url, "model": "m", "pivot": ["German", "Thai"]}
    data, (report,) = augment(ROWS, [entry], "prompts")
    assert report.made == 6
    assert data["prompt"][6] == "What is the way to the town, 0 miles or more?"
    pivots = {re.search(r"English to (\w+)", str(r["messages"])) for r in made.requests}
    assert {found[1] for found in pivots if found} == {"German", "Thai"}


class TestGenerated:
    ENTRY: ClassVar = {"kind": "generated", "model": "m", "count": 6, "seed": 4}

    def test_new_rows_with_answers_pass_the_filters(self, service):
        made, url = service
        asked = iter(
            [
                "Which river is the longest in the north of that country?",
                "Which river is the longest in the north of that country?!",  # nearly again
                "How far is the town, 3 miles or more?",  # is in the data
                "",
                "Name a bird that cannot fly, and say where it lives.",
                "Is it held out, and by whom?",
            ]
        )
        lock = threading.Lock()

        def rule(question: str, seed: int) -> str:
            if "<request-" not in question:
                return f"An answer to: {question}"
            assert question.count("How far is the town") == 2
            with lock:
                return next(asked)

        made.rule = rule
        rows = [row | {"completion": f"It is {n} miles."} for n, row in enumerate(ROWS)]
        entry = self.ENTRY | {"url": url, "examples": 2, "concurrency": 1}
        held = [{"prompt": "is it held out, and by whom?", "completion": "x"}]
        data, (report,) = augment(rows, [entry], "sft", held_out=held)
        new = data.to_list()[6:]
        assert [row["prompt"][:11] for row in new] == ["Which river", "Name a bird"]
        assert new[0]["completion"] == f"An answer to: {new[0]['prompt']}"
        assert (report.rows, report.made, report.leaks, report.refused) == (6, 2, 1, 3)
        assert report.reasons == {"near-duplicate": 2}
        shown = json.loads(new[0]["lineage"]["steps"][0]["options"])["shown"]
        assert len(shown) == 2

    def test_what_nothing_reads_is_refused(self):
        with pytest.raises(ConfigError, match="share: whole rows are written"):
            augment(ROWS, [self.ENTRY | {"url": "http://x/v1", "share": 0.5}], "prompts")

    def test_a_reward_threshold(self, service, monkeypatch, tmp_path):
        made, url = service
        (tmp_path / "my_rewards_x.py").write_text(
            "def length(prompts, completions, **c):\n"
            "    return [float(len(text)) for text in completions]\n"
        )
        monkeypatch.chdir(tmp_path)
        number = iter(range(100))

        def rule(question: str, seed: int) -> str:
            if "<request-" in question:
                n = next(number)
                return f"{'abcdef'[n] * 8} {'ghijkl'[n] * 8} {'mnopqr'[n] * 8} {'stuvwx'[n] * 8}?"
            return "A long enough answer." if question < "d" else "Too short."

        made.rule = rule
        rows = [row | {"completion": "It is far."} for row in ROWS]
        quality = {"reward": "my_rewards_x:length", "least": 15}
        entry = self.ENTRY | {"url": url, "quality": quality}
        data, (report,) = augment(rows, [entry], "sft")
        assert len(data) == 6 + 3
        assert report.reasons == {"low reward": 3}
        wrong = entry | {"quality": {"reward": "my_rewards_x:breadth", "least": 1}}
        with pytest.raises(ConfigError, match=r"quality.reward: .*breadth"):
            augment(rows, [wrong], "sft")
