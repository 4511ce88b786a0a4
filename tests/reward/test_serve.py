"""The reward server and its client, over real HTTP: batches, a full queue, faults, time-outs."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from reward.batching import Batcher
from reward.errors import RewardError
from reward.functions import call_reward
from reward.remote import TOKEN, RemoteReward
from reward.serve import create_app, listen


class Lengths:
    """Scores by length, remembers its batches, and can be held back."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, prompts, completions, bonus=None, log_metric=None, **columns):
        self.entered.append(len(completions))
        self.gate.wait(300)
        self.batches.append(len(completions))
        if log_metric:
            log_metric("reward/disagreement", 0.5)
        if "bad" in completions:
            raise ValueError("bad completion")
        bonus = bonus or [0.0] * len(completions)
        scores = zip(completions, bonus, strict=True)
        return [None if text == "skip" else len(text) + extra for text, extra in scores]


@contextmanager
def serving(functions: dict[str, Any], token: str | None = None, **settings: Any) -> Iterator[str]:
    """A real server on a free port."""
    batchers = {name: Batcher(name, function, **settings) for name, function in functions.items()}
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(batchers, token), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def post(url: str, *completions: str, **more: Any) -> httpx.Response:
    body = {"prompts": ["p"] * len(completions), "completions": list(completions), **more}
    return httpx.post(f"{url}/score", json=body, timeout=60)


@contextmanager
def asking(url: str, *completions: str) -> Iterator[None]:
    """A request whose client hangs up at the end."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps({"prompts": ["p"] * len(completions), "completions": completions})
    head = f"POST /score HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall((head + body).encode())
        yield


def health(url: str, name: str = "lengths") -> dict[str, float]:
    return httpx.get(f"{url}/health", timeout=60).json()["rewards"][name]


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_scores_and_what_the_function_logs():
    with serving({"lengths": Lengths()}) as url:
        noted = {}
        remote = RemoteReward(url, columns=["bonus"], batch_size=2)
        arguments = (["p"] * 3, ["a", "bbb", "skip"])
        found = asyncio.run(
            remote(*arguments, log_metric=noted.__setitem__, bonus=[0.5, 0, 0], unused=[object()])
        )
        assert found == [1.5, 3.0, None]
        assert noted == {"reward/disagreement": 0.5}
        assert call_reward(RemoteReward(url), ["p"], ["four"]) == [4.0]
        assert asyncio.run(remote([], [], bonus=[])) == []


def test_conversations_arrive_as_they_are():
    def roles(prompts, completions):
        return [len(prompts[0][0]["content"]) + len(completions[0][0]["content"])]

    with serving({"roles": roles}) as url:
        prompt = [{"role": "user", "content": "four"}]
        assert call_reward(
            RemoteReward(url), [prompt], [[{"role": "assistant", "content": "x"}]]
        ) == [5.0]


def test_requests_that_come_together_are_one_batch():
    function = Lengths()
    function.gate.clear()
    with serving({"lengths": function}, max_batch=16) as url, ThreadPoolExecutor(12) as pool:
        pool.submit(post, url, "a")
        until(lambda: function.entered == [1])
        others = [pool.submit(post, url, "x" * (n + 1), "y") for n in range(10)]
        until(lambda: health(url)["queued"] == 20)
        function.gate.set()
        rewards = [other.result().json()["rewards"] for other in others]
    assert rewards == [[n + 1.0, 1.0] for n in range(10)]  # each gets its own
    assert sum(function.batches) == 21
    assert len(function.batches) == 3  # the first, then 16 and 4
    assert max(function.batches) == 16


def test_requests_with_other_columns_are_not_mixed():
    function = Lengths()
    function.gate.clear()
    with serving({"lengths": function}) as url, ThreadPoolExecutor(4) as pool:
        pool.submit(post, url, "a")
        until(lambda: function.entered == [1])
        plain = pool.submit(post, url, "aa")
        with_bonus = pool.submit(post, url, "aa", columns={"bonus": [5]})
        until(lambda: health(url)["queued"] == 2)
        function.gate.set()
        assert plain.result().json()["rewards"] == [2.0]
        assert with_bonus.result().json()["rewards"] == [7.0]


def test_a_full_queue_refuses_and_the_client_waits_its_turn():
    function = Lengths()
    function.gate.clear()
    with serving({"lengths": function}, max_queue=4) as url, ThreadPoolExecutor(8) as pool:
        running = pool.submit(post, url, "a")
        until(lambda: function.entered == [1])
        waiting = pool.submit(post, url, *"abcd")
        until(lambda: health(url)["queued"] == 4)
        refused = post(url, "b")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"] == {
            "type": "Overloaded",
            "message": "4 completions wait already, and the queue holds 4.",
        }
        assert post(url, *"abcde").status_code == 413
        patient = pool.submit(call_reward, RemoteReward(url), ["p"], ["patient"])
        time.sleep(0.3)
        assert not patient.done()
        function.gate.set()
        assert patient.result() == [7.0]
        assert waiting.result().status_code == running.result().status_code == 200


def test_one_bad_request_spoils_no_other():
    function = Lengths()
    function.gate.clear()
    with serving({"lengths": function}) as url, ThreadPoolExecutor(4) as pool:
        pool.submit(post, url, "a")
        until(lambda: function.entered == [1])
        good, bad = pool.submit(post, url, "good"), pool.submit(post, url, "bad")
        until(lambda: health(url)["queued"] == 2)
        function.gate.set()
        assert good.result().json()["rewards"] == [4.0]
        answer = bad.result()
        assert answer.status_code == 500
        assert "raised ValueError: bad completion" in answer.json()["error"]["message"]
        with pytest.raises(RewardError, match=r"answered 500: .*raised ValueError: bad"):
            call_reward(RemoteReward(url, retries=5), ["p"], ["bad"])


def test_what_nobody_waits_for_any_more_is_not_scored():
    function = Lengths()
    function.gate.clear()
    with serving({"lengths": function}) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, url, "a")
        until(lambda: function.entered == [1])
        with asking(url, "gone", "gone"), asking(url, "gone"):
            stays = pool.submit(post, url, "stays")
            until(lambda: health(url)["queued"] == 4)
        until(lambda: health(url)["queued"] == 1)
        function.gate.set()
        assert first.result().json()["rewards"] == [1.0]
        assert stays.result().json()["rewards"] == [5.0]
        assert health(url)["dropped"] == 3
    assert function.batches == [1, 1]


def test_a_client_that_gives_up_leaves_no_copies_behind():
    function = Lengths()
    function.gate.clear()
    with serving({"lengths": function}) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, "a")
        until(lambda: function.entered == [1])
        with pytest.raises(RewardError, match=r"in 3 attempts; .*no answer within 0.4 s"):
            call_reward(RemoteReward(url, timeout=0.4, retries=2), ["p"], ["copy"])
        until(lambda: health(url)["queued"] == 0)
        function.gate.set()
        assert first.result().json()["rewards"] == [1.0]
        assert post(url, "ab").json()["rewards"] == [2.0]
    assert function.batches == [1, 1]


def test_a_function_that_hangs_is_given_up_and_nothing_runs_beside_it(monkeypatch):
    monkeypatch.setattr("reward.batching.OVERDUE_WAIT", 1.0)
    function = Lengths()
    function.gate.clear()
    with serving({"lengths": function}, timeout=1.0) as url, ThreadPoolExecutor(1) as pool:
        answer = post(url, "a")
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "RewardTimeoutError")
        until(lambda: health(url)["overdue"] > 0)
        refused = post(url, "b")
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "Overdue")
        assert refused.headers["retry-after"] == "1"
        assert "'lengths' did not return within 1 s and" in refused.json()["error"]["message"]
        patient = pool.submit(call_reward, RemoteReward(url, retries=0), ["p"], ["patient"])
        time.sleep(0.3)
        assert not patient.done()
        assert function.entered == [1]
        function.gate.set()
        assert patient.result() == [7.0]
        assert health(url)["overdue"] == 0
    assert function.batches == [1, 1]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompts": ["p"], "completions": []}, 422, "0 completions came with 1 prompts"),
        ({"prompts": ["p"]}, 422, "completions: Field required"),
        ({"prompts": ["p"], "completions": ["c"], "columns": {"x": []}}, 422, "with 0 x"),
        ({"prompts": ["p"], "completions": ["c"], "columns": {"prompts": ["q"]}}, 422, "no column"),
        ({"prompts": ["p"], "completions": ["c"], "rewards": "x"}, 422, "rewards: Extra inputs"),
        (
            {"prompts": ["p"], "completions": ["c"], "reward": "x"},
            404,
            "no reward 'x'; there are a",
        ),
        ({"prompts": ["p"], "completions": ["c"]}, 404, "say which `reward`; there are a, b"),
    ],
)
def test_wrong_requests(body, status, message):
    with serving({"a": Lengths(), "b": Lengths()}) as url:
        answer = httpx.post(f"{url}/score", json=body, timeout=60)
        assert answer.status_code == status
        assert message in answer.json()["error"]["message"]
        with pytest.raises(RewardError, match=f"answered {404}"):
            call_reward(RemoteReward(url), ["p"], ["c"])
        assert call_reward(RemoteReward(url, reward="b"), ["p"], ["c"]) == [1.0]


def test_a_token(monkeypatch):
    with serving({"lengths": Lengths()}, token="s3cret") as url:
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        with pytest.raises(RewardError, match="answered 401: the token is missing or wrong"):
            call_reward(RemoteReward(url), ["p"], ["c"])
        monkeypatch.setenv(TOKEN, "wrong")
        with pytest.raises(RewardError, match="answered 401") as caught:
            call_reward(RemoteReward(url), ["p"], ["c"])
        assert "wrong" not in str(caught.value).replace("missing or wrong", "")
        monkeypatch.setenv(TOKEN, "s3cret")
        assert call_reward(RemoteReward(url), ["p"], ["c"]) == [1.0]


def test_a_server_out_of_reach_is_told_within_its_time():
    with listen("127.0.0.1", 0) as silent:  # takes connections and says nothing
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(RewardError, match=r"in 2 attempts; .*no answer within 0.3 s"):
            call_reward(RemoteReward(place, timeout=0.3, retries=1), ["p"], ["c"])
        assert time.monotonic() - started < 30
    with pytest.raises(RewardError, match="ConnectError"):
        call_reward(RemoteReward(place, timeout=30, retries=1), ["p"], ["c"])
    with pytest.raises(RewardError, match="expected a URL"):
        RemoteReward("localhost:8500")


def test_a_server_that_comes_back_is_asked_again():
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    remote = RemoteReward(f"http://127.0.0.1:{port}", timeout=5, retries=6)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call_reward, remote, ["p"], ["late"])
        time.sleep(0.4)
        assert not waiting.done()
        batcher = Batcher("lengths", Lengths())
        app = create_app({"lengths": batcher})
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        sockets = {"sockets": [listen("127.0.0.1", port)]}
        thread = threading.Thread(target=server.run, kwargs=sockets, daemon=True)
        thread.start()
        assert waiting.result(60) == [4.0]
        server.should_exit = True
        thread.join(60)


def test_a_server_that_stays_full_is_not_waited_for_for_ever():
    function = Lengths()
    function.gate.clear()
    with serving({"lengths": function}, max_queue=1) as url, ThreadPoolExecutor(4) as pool:
        pool.submit(post, url, "a")
        until(lambda: function.entered == [1])
        pool.submit(post, url, "b")
        until(lambda: health(url)["queued"] == 1)
        with pytest.raises(RewardError, match=r"429: 1 completions wait already"):
            call_reward(RemoteReward(url, timeout=4, retries=1), ["p"], ["c"])
        function.gate.set()


def test_a_missing_column_is_named():
    with pytest.raises(RewardError, match="needs the column 'bonus'"):
        call_reward(RemoteReward("http://127.0.0.1:9", columns=["bonus"]), ["p"], ["c"])


def test_a_port_that_is_none_is_told():
    with pytest.raises(RewardError, match=r"cannot listen on 127.0.0.1:70000 .*0-65535"):
        listen("127.0.0.1", 70000)
