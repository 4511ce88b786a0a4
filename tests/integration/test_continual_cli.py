"""`align continual` through the command line on a tiny model: matrices, sharing, kills, faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.integration, pytest.mark.slow]
QUICK = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1}


def story_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "continual.json").read_text())


def test_two_tasks_two_arms_two_seeds_and_a_report(continual, cli, tmp_path):
    dry = cli(*continual(), "--dry-run")
    assert dry.code == 0, dry.text
    assert "6 trainings to do" in dry.text  # the first task once a seed
    assert not (tmp_path / "run").exists()
    result = cli(*continual())
    assert result.code == 0, result.text
    run = tmp_path / "run"
    story = story_of(run)
    assert [one["name"] for one in story["columns"]] == ["preferences", "answers", "chat"]
    assert [one["n"] for one in story["columns"]][2] == 5
    naive, replay = story["arms"]["naive"], story["arms"]["replay"]
    assert naive["matrix"][:2] == replay["matrix"][:2]  # before, and after what they share
    assert naive["matrix"][2] != replay["matrix"][2]  # the guard did something
    assert len(naive["matrix"]) == 3
    assert naive["matrix"][0][0] == 0.5  # a model has gained nothing on itself
    assert naive["figures"]["forgetting"]["n"] == 2
    assert "low" in replay["figures"]["new less naive"]
    assert story["naive"] == "naive"
    record = json.loads((run / "run.json").read_text())
    assert record["results"]["front"] == story["front"]
    assert not (
        run / "shared/seed-0/01-preferences/model"
    ).exists()  # nobody starts from it any more
    assert (run / "arms/replay/seed-1/02-answers/model").is_dir()

    page = tmp_path / "report.html"
    result = cli("report", run, "-o", page)
    assert result.code == 0, result.text
    html = page.read_text()
    assert "Continual training" in html
    assert "after preferences" in html
    assert "replay 1" in html
    assert "heat-6" in html


def test_rewards_of_answers_are_measured_by_functions_and_models(continual, cli, world, tmp_path):
    (tmp_path / "tiny_length.py").write_text(
        "def length(prompts, completions, place, **columns):\n"
        "    return [len(text) / 10 for text in completions]\n"
    )
    reward = {"kind": "reward", "data": str(world.prompts), "rows": 6, "max_new_tokens": 4}
    others = [{"name": "length", **reward, "reward": "tiny_length:length"}]
    given = {"others": others, "arms": {"naive": []}, "seeds": [0]}
    result = cli(*continual(**given))
    assert result.code == 0, result.text
    found = json.loads((tmp_path / "run/start.json").read_text())["length"]
    assert len(found["raw"]) == 6
    assert found["low"] <= found["value"] <= found["high"]
    story = story_of(tmp_path / "run")
    assert "change of length" in story["arms"]["naive"]["figures"]

    missing = [{"name": "length", "data": str(world.prompts), "kind": "reward"}]
    result = cli(*continual("other", others=missing))
    assert result.code == 2
    assert "reward is missing" in result.text


def test_a_task_answers_with_its_own_adapter(continual, cli, tmp_path):
    """Apart: nothing is lost; progressive: the same, on the adapters before; others: the trunk."""
    kwargs = {"r": 4, "target_modules": "all-linear"}
    apart = {"type": "adapters", "kwargs": kwargs}
    arms = {
        "naive": [],
        "apart": [apart],
        "progressive": [apart | {"mode": "progressive"}],
        "late": [apart | {"from": 2}],
    }
    result = cli(*continual(arms=arms, seeds=[0]))
    assert result.code == 0, result.text
    run = tmp_path / "run"
    story = story_of(run)
    matrix = {arm: story["arms"][arm]["matrix"] for arm in arms}
    start = matrix["naive"][0]
    for arm in ("apart", "progressive"):
        assert matrix[arm][1][0] == pytest.approx(matrix["apart"][1][0])  # the first is the same
        assert matrix[arm][2][0] == matrix[arm][1][0] != start[0]  # kept to the bit
        assert matrix[arm][2][1] != start[1]
        assert matrix[arm][2][2] == start[2]
        assert story["arms"][arm]["figures"]["forgetting"]["value"] == 0
    assert matrix["apart"][1][1] == start[1]  # what is to come: the trunk
    assert matrix["progressive"][1][1] != start[1]  # the newest
    assert matrix["progressive"][2][1] != matrix["apart"][2][1]
    assert matrix["late"][1] == matrix["naive"][1]
    assert matrix["late"][2][0] == matrix["late"][1][0]
    assert matrix["late"][2][2] == matrix["late"][1][2]  # the trunk is the first task's model
    page = tmp_path / "report.html"
    result = cli("report", run, "-o", page)
    assert result.code == 0, result.text
    assert "adapters" in page.read_text()
    kept = json.loads((run / "arms/progressive/seed-0/adapters.json").read_text())
    assert list(kept["tasks"]) == ["preferences", "answers"]
    for path in (*kept["tasks"].values(), kept["trunk"]):
        assert (Path(path) / "config.json").is_file() or (
            Path(path) / "adapter_config.json"
        ).is_file()


def test_what_an_adapter_stands_on_stays(continual, cli, world, tmp_path):
    """LoRA tasks under `keep: last`: each is an adapter on the one before."""
    tasks = []
    for number in range(3):
        settings = {
            "data": {"train": str(world.sft), "validation_fraction": 0.0, "test_fraction": 0.4},
            "trainer": {**QUICK, "learning_rate": 1e-2},
            "peft": {"method": "lora"},
            "tracking": {"report_to": ["none"]},
        }
        tasks.append({"name": f"t{number}", "settings": settings})
    result = cli(*continual(tasks=tasks, arms={"naive": []}, seeds=[0]))
    assert result.code == 0, result.text
    run = tmp_path / "run"
    assert (run / "shared/seed-0/01-t0/model/adapter_config.json").is_file()
    assert (run / "arms/naive/seed-0/02-t1/model/adapter_config.json").is_file()


def test_adapters_apart_all_start_from_the_model_as_it_is_named(continual, cli, world, tmp_path):
    bare = Path(shutil.copytree(world.model, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    tasks = []
    for name in ("one", "two"):
        settings = {
            "data": {"train": str(world.chat), "validation_fraction": 0.0, "test_fraction": 0.4},
            "trainer": {**QUICK, "learning_rate": 1e-2},
            "tracking": {"report_to": ["none"]},
        }
        tasks.append({"name": name, "settings": settings})
    model = {"path": str(bare), "chat_template": "chatml"}
    arms = {"apart": [{"type": "adapters"}]}
    result = cli(*continual(model=model, tasks=tasks, arms=arms, seeds=[0]))
    assert result.code == 0, result.text


def test_prompts_find_their_adapter(continual, cli, tmp_path):
    texts, tasks = {"digits": "12 34 56 {}?", "letters": "Who lives in the north {}?"}, []
    for name, text in texts.items():
        file = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": text.format(n), "completion": f" {n}"} for n in range(40)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": str(file), "validation_fraction": 0.0, "test_fraction": 0.3}
        trainer = {**QUICK, "learning_rate": 1e-2}
        settings = {"data": data, "trainer": trainer, "tracking": {"report_to": ["none"]}}
        tasks.append({"name": name, "settings": settings})
    arm = [{"type": "adapters", "route": "prompt", "kwargs": {"target_modules": "all-linear"}}]
    result = cli(*continual(tasks=tasks, arms={"routed": arm}, seeds=[0]))
    assert result.code == 0, result.text
    place = tmp_path / "run/arms/routed/seed-0"
    after = [json.loads((place / f"after-0{n}.json").read_text()) for n in (1, 2)]
    start = json.loads((tmp_path / "run/start.json").read_text())
    digits, letters = ([one[name]["raw"] for one in (start, *after)] for name in texts)
    assert digits[0] != digits[1] == digits[2]  # its own adapter goes on answering
    assert letters[0] != letters[1] != letters[2]  # the only adapter, then its own
    assert set(load_file(place / "router.safetensors")) == set(texts)
    (place / "router.safetensors").unlink()  # killed between the measure and the router
    again = cli(*continual(tasks=tasks, arms={"routed": arm}, seeds=[0]), "--resume")
    assert again.code == 0, again.text
    assert set(load_file(place / "router.safetensors")) == set(texts)


def test_every_fault_at_once_and_by_name(continual, cli, world):
    task = {
        "name": "answers",
        "stage": "sft",
        "settings": {
            "model": {"path": "elsewhere"},
            "data": {"train": str(world.sft)},
            "trainer": {"learning_rat": 1.0},
        },
    }
    other = {"name": "more", "stage": "dpo", "settings": {"dat": {}, "peft": {"method": "lora"}}}
    adapters = {"type": "adapters", "mod": "apart", "from": 3}
    result = cli(
        *continual(
            tasks=[task, task, other],
            others=[{"name": "tax"}],
            arms={"a/b": [{"type": "ewcc", "strength": 1.0, "from": 0}], "c": [adapters] * 2}
            | {"d": [{"type": "adapters", "from": 9}]},
            seeds=[1, 1],
        )
    )
    assert result.code == 2
    for words in (
        "tasks.0.settings.model: is set for all tasks at once",
        "tasks.0.settings.trainer.learning_rat",
        "tasks.1.name: 'answers' is there twice",
        "tasks.2.settings.dat",
        "others.0.data",
        "'a/b' is no name of a folder",
        "arms.a/b.0.from: 0 is no number of a task",
        "arms.c.0.mod: unknown key in the top level. Fix: did you mean `mode`?",
        "arms.d.0.from: there are 3 tasks, so that none has an adapter",
        "arms.c.1: there are adapters already",
        "tasks.2.settings.peft: c trains an adapter of its own here",
        "seeds: one of them is there twice",
        "ewcc",
    ):
        assert words in result.text, words


def test_faults_of_an_arms_adapters_are_named_in_the_arm(continual, cli, world):
    task = {"name": "answers", "settings": {"data": {"train": str(world.sft)}}}
    for kwargs, words in (
        ({"rr": 2}, "arms.own: adapters.kwargs: lora refuses them"),
        ({"target_modules": ["q_prj"]}, "no module 'q_prj'. Fix: did you mean q_proj?"),
    ):
        arms = {"own": [{"type": "adapters", "kwargs": kwargs}]}
        result = cli(*continual(tasks=[task], others=[], arms=arms, seeds=[0]))
        assert result.code == 2, result.text
        assert words in result.text
        assert "tasks.0.settings.peft" not in result.text


def test_a_routed_arm_reads_every_tasks_prompts_first(continual, cli, world, tmp_path):
    gone = tmp_path / "gone.jsonl"
    measure = {"data": str(world.sft)}
    tasks = [
        {"name": name, "settings": {"data": {"train": str(path)}}, "measure": measure}
        for name, path in (("here", world.sft), ("there", gone))
    ]
    arms = {"routed": [{"type": "adapters", "route": "prompt"}]}
    result = cli(*continual(tasks=tasks, others=[], arms=arms, seeds=[0]), "--dry-run")
    assert result.code != 0
    assert "gone.jsonl" in result.text


def test_a_task_without_held_out_rows_says_what_to_do(continual, cli, world):
    task = {
        "name": "answers",
        "settings": {"data": {"train": str(world.sft), "validation_fraction": 0.0}},
    }
    result = cli(*continual(tasks=[task], others=[], seeds=[0]))
    assert result.code != 0
    assert "answers: its own data has no held-out rows" in result.text
    assert "data.test_fraction" in result.text
