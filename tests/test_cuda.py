"""The same code on a GPU, where there is one."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import status, train, train_until

from mtrl.config import ActorConfig, AgentConfig, CriticConfig
from mtrl.replay import Batch, TaskReplay
from mtrl.sac import MTSAC, Noise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda")


def agent(device: str, optimizer: str, **config: object) -> MTSAC:
    own = {"actor": ActorConfig(hidden=(32, 32)), "critic": CriticConfig(hidden=(32, 32)), **config}
    return MTSAC(3, 2, ("a", "b", "c"), AgentConfig(**own), optimizer=optimizer, device=device)  # type: ignore[arg-type]


def on(device: torch.device, values: Batch | Noise) -> Batch | Noise:
    def move(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(move, value))
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return type(values)(*map(move, values))  # type: ignore[arg-type]


@pytest.mark.parametrize("kernels", ["plain", "torch"])
@pytest.mark.parametrize("optimizer", ["unitary", "pcgrad", "graddrop", "famo"])
def test_an_update_on_the_gpu_is_the_processors(make_batch, optimizer, kernels):
    batch, steps = make_batch(), []
    noise = agent("cpu", optimizer).draw_noise(5)
    for device in ("cpu", "cuda"):
        one = agent(device, optimizer, precision="fp32", kernels=kernels)
        metrics = one.update(on(torch.device(device), batch), on(torch.device(device), noise))
        gradients = [p.grad.cpu() for _, p in (*one.critic.tensors(), *one.actor.tensors())]
        steps.append([metrics["critic_loss"].cpu(), metrics["actor_loss"].cpu(), *gradients])
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("reward_scale", ["none", "return", "sigma"])
def test_a_unitary_update_waits_for_nothing(reward_scale, precision):
    one = agent("cuda", "unitary", reward_scale=reward_scale, precision=precision)
    replay = TaskReplay(3, 50, 3, 2, device=CUDA)
    for _ in range(10):
        replay.add(torch.randn(3, 3), torch.rand(3, 2), torch.randn(3), torch.randn(3, 3), torch.zeros(3))
    one.update(replay.sample(8))
    torch.cuda.set_sync_debug_mode("error")
    try:
        one.update(replay.sample(8))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_on_the_gpu_goes_on_after_a_stop(tmp_path):
    run = tmp_path / "run"
    train_until(80, run, "--device=cuda")
    assert train(run, "--device=cuda") == 0


def test_a_run_on_the_gpu_ends_and_its_policy_loads_on_the_processor(tmp_path):
    assert train(tmp_path / "run", "--device=cuda") == 0
    assert status(tmp_path / "run").startswith("DONE")
