"""Models that write, over HTTP and from a directory; a masked model; mixup; filters."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from align.config.augment import QualitySection
from align.config.sections import DataSection
from align.data import load_splits
from align.data.augment import augment, filter_rows, heuristic_problem, mixup, repetition
from align.data.augment.masked import contextual, load_masked
from align.data.rows import Row
from align.errors import ConfigError, DataError, ModelError
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
        entry = {"kind": "paraphrase", "url": url, "model": "m", "temperature": 1.0}
        section = DataSection(
            train=str(write("x.jsonl", ROWS)), validation_fraction=0.0, augment=[entry]
        )
        aside = tmp_path / "run" / "quarantine.jsonl"
        first = load_splits(section, "prompts", quarantine=aside).train["prompt"]
        assert len(made.requests) == 6
        assert load_splits(section, "prompts", quarantine=aside).train["prompt"][:] == first[:]
        assert len(made.requests) == 6
        replies = tmp_path / "run" / "augment_replies.jsonl"
        replies.write_text(replies.read_text()[:-20])  # as if cut short
        load_splits(section, "prompts", quarantine=aside)
        assert len(made.requests) == 7


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


TEMPLATES = {
    "slots": {"city": ["Oslo", "Lima", "Pune"], "day": ["today", "tomorrow"]},
    "rows": [
        {"prompt": "Will it rain in {city} {day}?", "completion": "I cannot see {city} from here."},
        {"prompt": "Where is {city}, and {{why}}?", "completion": "On the map, I should think."},
    ],
}


class TestTemplates:
    def test_slots_are_filled_once_each_and_rows_stay_together(self, write):
        path = write("t.yaml", json.dumps(TEMPLATES))
        quality = {"near_threshold": 1.0}
        entry = {"kind": "templates", "path": str(path), "count": 50, "quality": quality}
        rows = [{"prompt": "Why is the sky blue?", "completion": "It scatters the light."}]
        data, (report,) = augment(rows, [entry], "sft")
        prompts = data["prompt"][1:]
        assert len(prompts) == len(set(prompts)) == 6 + 0  # {why} looks like an empty slot
        assert report.reasons == {"an empty slot": 3}
        for row in data.to_list()[1:]:
            chosen = json.loads(row["lineage"]["steps"][0]["options"])["slots"]
            assert row["prompt"] == f"Will it rain in {chosen['city']} {chosen['day']}?"
            assert row["completion"] == f"I cannot see {chosen['city']} from here."
        assert len({row["lineage"]["key"] for row in data.to_list()[1:]}) == 1
        few, _ = augment(rows, [entry | {"count": 3}], "sft")
        again, _ = augment(rows, [entry | {"count": 3}], "sft")
        other, _ = augment(rows, [entry | {"count": 3, "seed": 1}], "sft")
        assert few.to_list() == again.to_list() != other.to_list()

    def test_chat_data_get_conversations(self, write):
        path = write("t.yaml", json.dumps(TEMPLATES))
        rows = [{"prompt": [{"role": "user", "content": "Why is the sky blue?"}]}]
        entry = {"kind": "templates", "path": str(path), "count": 2}
        data, _ = augment(rows, [entry], "prompts")
        assert data["prompt"][1][0]["role"] == "user"

    def test_everything_wrong_with_a_file_at_once(self, write):
        bad = {"slots": {"a": [], "b": ["x"]}, "rows": [{"prompt": "{a} {c}"}]}
        path = write("t.yaml", json.dumps(bad))
        with pytest.raises(ConfigError) as error:
            augment(ROWS, [{"kind": "templates", "path": str(path), "count": 1}], "prompts")
        for part in ("'a' has no list", "row 1 has an unknown slot 'c'", "slot 'b' is in no row"):
            assert part in str(error.value)


class TestFilters:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("A fine and simple sentence.", None),
            ("Kurz.", "too short"),
            ("word and another " * 600, "too long"),
            ("Dear {name}, how are you?", "an empty slot"),
            ("Run `f({name})` now, please", None),
            ("Look:\n```\nx = 1\n", "an open code fence"),
            ("?!?! -- %% ## ** && ok", "hardly any letters"),
            ("so it goes on " * 20, "repetition"),
            ("今日は天気がいいですね", None),
        ],
    )
    def test_heuristics(self, text, problem):
        assert heuristic_problem(text, QualitySection()) == problem

    def test_repetition_by_hand(self):
        assert repetition("a b c d e f") == 0
        assert repetition("a b c a b c") == 0.5
        assert repetition("a a a a") == 0.75

    def test_near_duplicates_of_rows_and_of_each_other(self):
        def row(text: str) -> Row:
            return Row("", 0, {"prompt": text})

        base = "one two three four five six seven eight nine ten"
        made = [row(f"{base} eleven"), row("quite another thing to ask"), row(f"{base}!")]
        made.append(row("quite another thing to ask"))
        kept, reasons = filter_rows(made, [row(base)], QualitySection(near_threshold=0.7))
        assert [r.values["prompt"] for r in kept] == ["quite another thing to ask"]
        assert reasons == {"near-duplicate": 3}


WORDS = ["the", "dog", "cat", "big", "small", "runs", "sleeps", "home", "here", "now", "and", "red"]


@pytest.fixture(scope="module")
def masked() -> tuple[Any, Any]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "##s", "7"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": word for name, word in zip(names, special, strict=True)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=1.0,
    )
    return BertForMaskedLM(config), tokenizer


class TestContextual:
    TEXT = "The big dog runs home 7 times `cat` now"

    def test_words_come_from_the_model_and_its_context(self, masked):
        rewrite = contextual(*masked, rate=0.4, top_k=3)
        made = {rewrite(self.TEXT, random.Random(seed)) for seed in range(8)}
        assert len(made) > 3
        for text in made:
            assert text == rewrite(text, random.Random(0)) or True
            assert "7" in text.split()
            assert "`cat`" in text
            assert len(text.split()) == len(self.TEXT.split())
            assert {w.lower() for w in text.split()} <= {*WORDS, "7", "times", "`cat`"}
            changed = [a != b for a, b in zip(text.split(), self.TEXT.split(), strict=True)]
            assert sum(changed) == 3  # 0.4 of the 7 words that are free
            assert text[0].isupper()
        assert rewrite(self.TEXT, random.Random(1)) == rewrite(self.TEXT, random.Random(1))

    def test_the_likeliest_word_is_the_models(self, masked):
        model, tokenizer = masked
        text = "the big dog"
        made = contextual(model, tokenizer, rate=0.1, top_k=1)(text, random.Random(0)).split()
        (at,) = [i for i, word in enumerate(made) if word != text.split()[i]]
        words = text.split()
        words[at] = "[MASK]"
        inputs = tokenizer(" ".join(words), return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            logits = model(**inputs).logits[0, at + 1]
        order = tokenizer.convert_ids_to_tokens(logits.argsort(descending=True))
        likely = [w for w in order if w in WORDS and w != text.split()[at]]
        assert made[at] == likely[0]

    def test_longer_texts_than_the_model_are_read_in_a_window(self, masked):
        text = " ".join(WORDS * 20)
        made = contextual(*masked, rate=0.05, top_k=2)(text, random.Random(0))
        changed = sum(a != b for a, b in zip(made.split(), text.split(), strict=True))
        assert changed == 12

    def test_from_a_directory_through_a_configuration(self, masked, tmp_path):
        for part in masked:
            part.save_pretrained(tmp_path / "bert")
        entry = {"kind": "contextual", "model": str(tmp_path / "bert"), "rate": 0.2}
        rows = [{"prompt": " ".join(random.Random(n).sample(WORDS, 8))} for n in range(5)]
        one, (report,) = augment(rows, [entry], "prompts")
        two, _ = augment(rows[::-1], [entry], "prompts")
        assert report.made == 5
        assert sorted(one["prompt"]) == sorted(two["prompt"])
        with pytest.raises(ModelError, match="cannot be loaded as a masked language model"):
            load_masked(str(tmp_path))


def test_a_model_of_a_directory_writes(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    rows = [{"prompt": f"What color is the sky {w}?"} for w in ("here", "now", "today")]
    entry = {
        "kind": "paraphrase",
        "model": str(tmp_path / "m"),
        "max_tokens": 12,
        "length_ratio": 50.0,
        "temperature": 1.0,
    }
    one, (report,) = augment(rows, [entry], "prompts")
    two, _ = augment(rows[::-1], [entry], "prompts")
    assert report.made + report.refused == 3
    assert report.made >= 1
    assert sorted(one["prompt"]) == sorted(two["prompt"])


class TestMixup:
    def test_by_hand_on_arrays_and_tensors(self):
        states = np.arange(12, dtype=np.float32).reshape(4, 3)
        targets = np.eye(4, dtype=np.float32)
        mixed = mixup(states, targets, alpha=1.0, seed=3)
        for row in range(4):
            weight, partner = mixed.weight[row], mixed.partner[row]
            expected = weight * states[row] + (1 - weight) * states[partner]
            assert np.allclose(mixed.states[row], expected, atol=1e-6)
            assert np.isclose(mixed.targets[row].sum(), 1.0)
        tensors = mixup(torch.tensor(states), torch.tensor(targets), alpha=1.0, seed=3)
        assert np.allclose(tensors.states.numpy(), mixed.states, atol=1e-6)
        assert np.allclose(tensors.targets.numpy(), mixed.targets, atol=1e-6)
        assert sorted(mixed.partner) == [0, 1, 2, 3]

    def test_gradients_flow_and_dtypes_stay(self):
        states = torch.randn(4, 5, 3, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
        mixed = mixup(states, mask=mask, seed=1)
        assert mixed.states.dtype == torch.bfloat16
        mixed.states.sum().backward()
        assert torch.allclose(states.grad.sum().float(), torch.tensor(60.0), rtol=0.05)
        assert torch.equal(mixed.mask, mask | mask[mixed.partner])

    def test_weights_are_of_the_beta_distribution(self):
        weight = mixup(np.zeros((20000, 1)), alpha=0.4).weight
        assert abs(weight.mean() - 0.5) < 0.015
        assert abs(weight.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01
        assert len(set(mixup(np.zeros((5, 1)), per_row=False).weight)) == 1

    def test_a_linear_margin_keeps_its_sign(self):
        """Chosen and rejected mixed with one seed: mixtures of right margins are right."""
        draw = np.random.default_rng(0)
        w, rejected = draw.normal(size=8), draw.normal(size=(50, 8))
        chosen = rejected + np.abs(draw.normal(size=(50, 8))) * np.sign(w)
        one, two = (mixup(side, alpha=1.0, seed=5).states for side in (chosen, rejected))
        assert ((one - two) @ w > 0).all()

    def test_refusals(self):
        with pytest.raises(ValueError, match="alpha is 0"):
            mixup(np.zeros((2, 1)), alpha=0)
        with pytest.raises(ValueError, match="one-hot for classes"):
            mixup(np.zeros((2, 1)), np.array([0, 1]))
        with pytest.raises(ValueError, match="targets has 3 rows, but states has 2"):
            mixup(np.zeros((2, 1)), np.zeros((3, 1)))
