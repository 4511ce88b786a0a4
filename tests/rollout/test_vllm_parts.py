"""The parts of the vLLM samplers that need no vLLM: weights, probe, HTTP, NCCL's seams."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from align.errors import ConfigError, MissingDependencyError, ModelError, SamplerError
from align.rollout import vllm_environment, vllm_nccl
from align.rollout.vllm_client import VLLMClient
from align.rollout.vllm_colocated import refuse
from align.rollout.vllm_nccl import Control, WeightChannel, bounded
from align.rollout.vllm_remote import on_first_rank
from align.rollout.vllm_server import VLLMServer
from align.rollout.vllm_weights import lora_settings, save_adapter, save_whole, whole_weights
from feedback.ports import free_port


def lora(model, **changes):
    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(**settings | changes))


# --- weights


@pytest.mark.parametrize("changes", [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}])
def test_merged_weights_are_the_policys_and_its_own_stay(tiny_llama, changes):
    policy = lora(tiny_llama(), **changes)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "modules_to_save" in name:
                weight += 0.1
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    weights = whole_weights(policy)
    after = policy.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    plain = tiny_llama(7)
    assert set(weights) == set(dict(plain.named_parameters()))
    plain.load_state_dict(weights)
    ids = torch.randint(200, (2, 12))
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, policy(ids).logits, atol=1e-4)
        plain.load_state_dict(whole_weights(policy, with_adapters=False))
        with policy.disable_adapter():
            assert torch.equal(plain(ids).logits, policy(ids).logits)
        assert not torch.allclose(plain(ids).logits, policy(ids).logits, atol=1e-2)


def test_a_saved_policy_loads_as_it_was(tiny_llama, tiny_tokenizer, tmp_path):
    for number, policy in enumerate([lora(tiny_llama()), tiny_llama(tie_word_embeddings=True)]):
        folder = tmp_path / str(number)
        save_whole(policy, folder, tokenizer=tiny_tokenizer)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        ids = torch.randint(200, (2, 12))
        with torch.no_grad():
            assert torch.allclose(loaded(ids).logits, policy(ids).logits, atol=1e-4)
        assert (folder / "tokenizer.json").is_file()
        if number and not torch.cuda.is_available():  # vLLM repacks the output layer there
            assert loaded.config.tie_word_embeddings is False
        assert policy.config.tie_word_embeddings is bool(number)  # the policy's own stays
    assert not list(tmp_path.glob("*.partial"))


def test_what_cannot_be_sent_is_refused(tiny_llama, tmp_path):
    virtual = get_peft_model(
        tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ModelError, match="virtual tokens"):
        whole_weights(virtual)
    with pytest.raises(ModelError, match="the policy has none"):
        save_adapter(tiny_llama(), tmp_path / "adapter")
    with pytest.raises(ModelError, match="trainable_token_indices"):
        whole_weights(lora(tiny_llama(), trainable_token_indices=[1, 2]))
    assert lora_settings(lora(tiny_llama(), rank_pattern={"q_proj": 16})) == 16


# --- probe


@pytest.fixture
def http():
    """A server that answers as it is told: path -> (status, type, body, seconds)."""
    told: dict[str, tuple[int, str, str, float]] = {}
    seen: list[str] = []
    now: set[object] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(self.path)
            status, kind, body, seconds = told[self.path]
            now.add(self)
            server.together = max(server.together, len(now))
            time.sleep(seconds)
            now.discard(self)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST  # noqa: N815

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.together = 0  # the most requests that were in hand at once
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", told, seen, server
    server.shutdown()
    server.server_close()


def test_the_client_asks_side_by_side_and_waits_no_longer_than_it_should(http):
    url, told, _, server = http
    told["/fast"] = (200, "application/json", '{"a": 1}', 0.5)
    told["/slow"] = (200, "application/json", "{}", 60.0)
    assert VLLMClient(url, 60.0, 8).post_all("/fast", [{}] * 8) == [{"a": 1}] * 8
    assert server.together > 2
    server.together = 0
    assert len(VLLMClient(url, 60.0, 2).post_all("/fast", [{}] * 8)) == 8
    assert server.together == 2
    start = time.monotonic()
    with pytest.raises(SamplerError, match=r"did not answer /slow within 0.5 s"):
        VLLMClient(url, 0.5).post_all("/slow", [{}] * 3)
    assert time.monotonic() - start < 30


def test_the_client_says_what_the_server_said(http):
    url, told, seen, _ = http
    error = json.dumps({"error": {"message": "the prompt is too long", "code": 400}})
    told["/bad"] = (400, "application/json", error, 0.0)
    told["/text"] = (500, "text/plain", "out of memory", 0.0)
    told["/odd"] = (200, "text/plain", "Success: adapter", 0.0)
    client = VLLMClient(url, 10.0)
    with pytest.raises(SamplerError, match=r"refused /bad \(400\): the prompt is too long"):
        client.post("/bad")
    with pytest.raises(SamplerError, match=r"refused /text \(500\): out of memory"):
        client.get("/text")
    assert seen == ["/bad", "/text"]  # nothing was tried twice
    assert client.post("/odd") == {"text": "Success: adapter"}
    with pytest.raises(SamplerError, match="cannot be reached"):
        VLLMClient("http://127.0.0.1:9", 5.0).get("/health")


def test_the_client_works_inside_an_event_loop(http):
    import asyncio

    url, told, _, _ = http
    told["/a"] = (200, "application/json", '{"a": 1}', 0.0)

    async def notebook():
        return VLLMClient(url).post("/a")

    assert asyncio.run(notebook()) == {"a": 1}


# --- server and environment


def test_a_server_that_ends_or_hangs_is_reported_with_its_log(tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'no such device'; exit 3\n")
    program.chmod(0o755)
    with pytest.raises(SamplerError, match=r"ended \(3\).*ends:\nno such device"):
        VLLMServer("model", tmp_path, program).start()
    program.write_text("#!/bin/sh\necho busy; sleep 60\n")
    server = VLLMServer("model", tmp_path, program, timeout=3.0)
    with pytest.raises(SamplerError, match=r"(?s)did not answer within 3 s.*busy"):
        server.start()
    assert server.process is None


def test_a_missing_vllm_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vllm_environment, "vllm_here", lambda: False)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'align-rlhf\[vllm\]'.*make vllm"
    ):
        vllm_environment.find_python()
    with pytest.raises(MissingDependencyError, match="no program"):
        vllm_environment.find_python(tmp_path / "nothing")
    assert str(vllm_environment.find_python(sys.executable)) == sys.executable
    assert any(line.startswith("trl") for line in vllm_environment.requirements())
    assert not any(line.startswith("torch") for line in vllm_environment.requirements())


def test_importing_align_imports_no_vllm():
    code = (
        "import sys; import align.rollout.open, align.rollout.vllm_colocated, "
        "align.rollout.vllm_remote; sys.exit('vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- NCCL: it cannot run here, its seams can


def test_bounded_gives_up_on_what_never_returns():
    assert bounded(lambda: 5, 5.0, "work") == 5
    with pytest.raises(SamplerError, match=r"work took longer than 0\.2 s"):
        bounded(lambda: time.sleep(3), 0.2, "work")
    with pytest.raises(SamplerError, match="work failed: division by zero"):
        bounded(lambda: 1 / 0, 5.0, "work")


def test_control_makes_vllms_calls_in_its_words(http):
    url, told, seen, _ = http
    names = ["init_weight_transfer_engine", "start_weight_update", "update_weights"]
    names += ["finish_weight_update", "shutdown_weight_transfer_engine"]
    told |= {f"/{name}": (200, "application/json", "{}", 0.0) for name in names}
    control = Control(VLLMClient(url))
    control.init_weight_transfer_engine({"master_port": 1})
    control.start_weight_update()
    control.update_weights({"names": []})
    control.finish_weight_update()
    control.shutdown_weight_transfer_engine()
    assert seen == [f"/{name}" for name in names]


def test_nccl_without_vllm_or_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(vllm_nccl, "vllm_here", lambda: False)
    with pytest.raises(MissingDependencyError, match="needs vLLM beside Align"):
        WeightChannel(VLLMClient("http://127.0.0.1:9"))
    monkeypatch.setattr(vllm_nccl, "vllm_here", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDependencyError, match="needs a GPU"):
        WeightChannel(VLLMClient("http://127.0.0.1:9"))


# --- several ranks


def ranks(rank: int, port: int, folder: str) -> None:
    import datetime

    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )

    def act() -> str:
        assert rank == 0, "only the first rank acts"
        return "weights-1"

    def fail() -> str:
        raise SamplerError("the server is gone")

    said = [on_first_rank(act)]
    try:
        on_first_rank(fail)
    except SamplerError as error:
        said.append(str(error))
    try:
        refuse(sleep=False)
    except ConfigError as error:
        said.append(str(error))
    except MissingDependencyError:
        said.append("vllm-server")  # no vLLM here: refused before the ranks are counted
    with open(f"{folder}/{rank}", "w") as stream:
        json.dump(said, stream)
    torch.distributed.destroy_process_group()


def test_the_first_rank_acts_and_all_know(tmp_path):
    torch.multiprocessing.spawn(ranks, (free_port(), str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    assert first[:2] == ["weights-1", "the server is gone"]
    assert second[:2] == ["weights-1", "on the first rank: the server is gone"]
    assert "vllm-server" in first[2]
