"""A reward run of the policy's base is a role of the policy's model: the same scores as a model of its own, one base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import LuthierError

WORDS = ("ash", "birch", "cedar", "elm", "fir", "oak")


@pytest.fixture(scope="module")
def reward_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]
) -> Callable[..., tuple[Path, Path]]:
    """`reward_run(**adapter options) -> (its output folder, the base model's folder)`: three steps on a few pairs."""
    import luthier

    base = tiny_folder("llama")
    made: dict[str, Path] = {}

    def make(**options: Any) -> tuple[Path, Path]:
        key = json.dumps(options, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("reward")
            rows = folder / "pairs.jsonl"
            pairs = [{"prompt": f"say {word}", "chosen": f"{word}.", "rejected": f"{word} {word} {word}"} for word in WORDS]
            rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
            made[key] = folder / "run"
            config = {
                "model": str(options.get("base", base)),
                "data": {"train": [str(rows)], "max_length": 64},
                "stage": "rm",
                "adapter": options.get("adapter", {"use": "lora", "rank": 4}),
                "optimizer": {"use": "adamw", "lr": 0.02, "warmup": 0},
                "patches": [],
                "precision": "fp32",
                "train": {"max_steps": 3, "batch_tokens": 256, "seed": 3},
                "output": str(made[key]),
            }
            luthier.train(luthier.load_config(config))
        return made[key], base

    return make


def spied(run_of: Any, **changes: Any) -> tuple[Any, Any]:
    """A run of one step; the stage's object, and what was scored with what result."""
    from luthier.plugins.ppo import stage

    seen: list[Any] = []
    rollouts: list[Any] = []
    made, score = stage.Ppo.__init__, stage.Rewards.score

    def init(self: Any, *arguments: Any) -> None:
        made(self, *arguments)
        seen.append(self)

    def scored(self: Any, answers: Any) -> Any:
        found = score(self, answers)
        rollouts.append((answers, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.Ppo, "__init__", init)
        patch.setattr(stage.Rewards, "score", scored)
        run_of(train={"max_steps": 2}, **changes)
    return seen[0], rollouts


def alone(folder: Path, base: Any, answers: Any) -> list[float]:
    """The scores of the same answers from the reward run loaded as a model of its own."""
    from luthier.core.rewards.runs import RewardModel
    from luthier.core.testing.surroundings import installed_catalog
    from luthier.core.trained import read_run, run_tokenizer, trained_model

    plan, catalog = read_run(folder), installed_catalog()
    tokenizer = run_tokenizer(plan, folder, catalog)
    model = trained_model(plan, folder, catalog, tokenizer)
    return RewardModel("run", model, tokenizer, policy=tokenizer, batch_tokens=512)(answers)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"use": "lora", "rank": 4}, {"use": "lora", "rank": 4}),
        ({"use": "lora", "rank": 8, "target": ["attn", "mlp"]}, {"use": "lora", "rank": 2, "target": ["attn.q"]}),
        ({"use": "lora", "rank": 2, "target": ["attn.v"]}, {"use": "lora", "rank": 4, "modules_to_save": ["head"]}),
        ({"use": "lora", "rank": 4}, {"use": "lora", "rank": 4, "init": "gaussian", "dropout": 0.3}),
    ],
)
def test_scores_are_those_of_a_model_of_its_own(theirs: Any, ours: Any, reward_run: Any, run_of: Any) -> None:
    folder, base = reward_run(adapter=theirs)
    run_of.model = base
    ppo, rollouts = spied(
        run_of,
        adapter=ours,
        stage={"reward": [{"use": "length", "max_tokens": 4}, {"use": "run", "path": str(folder), "share": True}]},
    )
    assert any("on the policy's own base model" in text for text in run_of.said("notice"))
    assert "reward" in ppo.roles.model.peft_config
    assert len(rollouts) == 2
    for answers, found in rollouts:
        expected = alone(folder, base, answers)
        assert max(expected) - min(expected) > 1e-3
        assert found.terms["run"] == pytest.approx(expected, abs=1e-4)


def test_the_policy_does_not_know_that_it_shares(reward_run: Any, run_of: Any) -> None:
    """Numbers, weights and files of a run with `share: true` are those of one with two models; it resumes to the same."""
    from safetensors.torch import load_file

    folder, base = reward_run(adapter={"use": "lora", "rank": 8, "target": ["attn", "mlp"]})
    run_of.model = base
    found = {}
    for share in (True, False):
        output = run_of.folder / f"run-{share}"
        run_of(
            adapter={"use": "lora", "rank": 2, "target": ["attn.q", "mlp.down"]},
            stage={"reward": {"use": "run", "path": str(folder), "share": share}, "value_adapter": True},
            train={"max_steps": 2, "save_every": 1},
            output=str(output),
        )
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        found[share] = lines[0], load_file(output / "adapter_model.safetensors")
    # The scores differ by rounding, which Adam's first step makes larger: the first rollout is compared.
    for name in ("reward", "kl", "entropy", "answer_tokens"):
        assert found[True][0][name] == pytest.approx(found[False][0][name], rel=1e-4, abs=1e-4), name
    assert found[True][1].keys() == found[False][1].keys()
    for name, value in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], value, rtol=0.1, atol=5e-3)
    shutil.rmtree(run_of.folder / "run-True" / "checkpoint-2")
    run_of(
        adapter={"use": "lora", "rank": 2, "target": ["attn.q", "mlp.down"]},
        stage={"reward": {"use": "run", "path": str(folder), "share": True}, "value_adapter": True},
        train={"max_steps": 2, "save_every": 1},
        output=str(run_of.folder / "run-True"),
        resume=True,
    )
    again = load_file(run_of.folder / "run-True" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in found[True][1].items())


def test_adapters_below_belong_to_policy_and_reference_and_not_to_the_reward(reward_run: Any, run_of: Any) -> None:
    """Both runs stand on one more adapter; the reward's file has it in itself."""
    import luthier

    _, run_of.model = reward_run()
    below = run_of.folder / "below"
    run_of(train={"max_steps": 2}, optimizer={"use": "adamw", "lr": 0.05}, output=str(below))
    pairs = run_of.folder / "pairs.jsonl"
    lines = [{"prompt": f"say {word}", "chosen": f"{word}.", "rejected": f"{word} {word}"} for word in WORDS]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    standing = {"use": "lora", "rank": 4, "stack_on": [str(below)]}
    reward = run_of.folder / "reward"
    config = run_of.config(
        data={"train": [str(pairs)], "max_length": 64}, adapter=standing, output=str(reward), train={"max_steps": 2}
    )
    luthier.train(luthier.load_config(config | {"stage": "rm"}))
    _, rollouts = spied(
        run_of, adapter=standing, stage={"reward": {"use": "run", "path": str(reward), "share": True}, "value_adapter": True}
    )
    first = run_of.told("step")[-2]
    assert first["kl"] == pytest.approx(0, abs=1e-4), "the reference stands on it as well"
    for answers, found in rollouts:
        assert found.terms["run"] == pytest.approx(alone(reward, run_of.model, answers), abs=1e-4)


def test_nothing_of_the_reward_trains(reward_run: Any, run_of: Any) -> None:
    from safetensors.torch import load_file

    folder, run_of.model = reward_run()
    stored = load_file(folder / "adapter_model.safetensors")
    ppo, _ = spied(run_of, stage={"reward": {"use": "run", "path": str(folder)}})
    parameters = dict(ppo.roles.model.named_parameters())
    mine = {name: one for name, one in parameters.items() if ".reward." in f"{name}."}
    assert len(mine) == len([name for name in stored if ".lora_" in name])
    for name, parameter in mine.items():
        assert not parameter.requires_grad
        assert torch.equal(parameter, stored[name.replace(".reward", "")])


def test_another_base_is_an_error_or_a_second_model(reward_run: Any, run_of: Any, tiny_folder: Any) -> None:
    folder, _ = reward_run()
    run_of.model = tiny_folder("llama", num_hidden_layers=1)
    with pytest.raises(LuthierError, match=r"cannot share[\s\S]*one sits on"):
        run_of(stage={"reward": {"use": "run", "path": str(folder), "share": True}}, train={"max_steps": 1})
    assert not any(event.message.startswith("loading") for event in run_of.events), "said before the model is loaded"
    shutil.rmtree(run_of.folder / "run", ignore_errors=True)
    run_of(stage={"reward": {"use": "run", "path": str(folder)}}, train={"max_steps": 1})
    assert any("loaded as a second model, because one sits on" in text for text in run_of.said("notice"))


def test_a_policy_that_changes_the_base_gets_a_second_model(reward_run: Any, run_of: Any) -> None:
    folder, run_of.model = reward_run()
    options = {"adapter": {"use": "freeze", "layers": 1}, "train": {"max_steps": 1}}
    with pytest.raises(LuthierError, match="cannot share"):
        run_of(stage={"reward": {"use": "run", "path": str(folder), "share": True}}, **options)
    shutil.rmtree(run_of.folder / "run", ignore_errors=True)
    run_of(stage={"reward": {"use": "run", "path": str(folder)}}, **options)
    assert any("second model" in text for text in run_of.said("notice"))


def test_a_run_that_trained_no_reward_is_refused(run_of: Any) -> None:
    run_of(train={"max_steps": 1}, output=str(run_of.folder / "policy"))
    with pytest.raises(LuthierError, match="trains no reward model"):
        run_of(stage={"reward": {"use": "run", "path": str(run_of.folder / "policy")}}, train={"max_steps": 1})


def test_the_score_is_read_before_padding_and_end(model: Any) -> None:
    """As transformers: at the last token that is not the padding token, which an end token may be."""
    from luthier.plugins.ppo.sharing import SharedScores

    one = model(adapter={})
    shared = SharedScores.__new__(SharedScores)
    shared._model, shared._adapter, shared._policy = one, "default", ["default"]
    shared._head, shared.pad_token_id = torch.randn(1, 64), 257
    ids = torch.tensor([[5, 6, 7, 257, 257], [5, 6, 7, 8, 257], [5, 6, 7, 0, 0]])
    with torch.no_grad():
        found = shared(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
        hidden = one.eval().get_base_model().model(input_ids=ids).last_hidden_state
    expected = [hidden[0, 2], hidden[1, 3], hidden[2, 4]]
    torch.testing.assert_close(found, torch.stack([shared._head[0] @ state for state in expected]), rtol=1e-4, atol=1e-4)
