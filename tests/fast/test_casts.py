"""What a product takes is what the parameters are now, however it is kept."""

from __future__ import annotations

import copy

import torch

from mtrl.fast.casts import Casts, neighbours

BF16 = torch.bfloat16


def two_of(buffer: torch.Tensor) -> list[torch.Tensor]:
    return [buffer[:4].view(2, 2), buffer[4:8].view(2, 2)]


def test_neighbours_are_one_view_of_their_buffer_and_others_are_copied():
    buffer = torch.arange(12.0)
    one, two = two_of(buffer)
    casts = Casts([buffer])
    for _ in range(2):  # the second time it is known
        together = casts.stacked([one, two], torch.float32)
        assert together.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
        assert together.data_ptr() == buffer.data_ptr()
    assert casts.stacked([two, one], torch.float32).tolist() == [[[4, 5], [6, 7]], [[0, 1], [2, 3]]]
    assert Casts().stacked([one, two], torch.float32).tolist() == together.tolist()


def test_what_is_rounded_follows_every_change_in_place():
    buffer = torch.ones(8)
    parameters, casts = two_of(buffer), Casts([buffer])
    parameters[0].requires_grad_()
    before = casts.stacked(parameters, BF16)
    assert before.dtype == BF16
    with torch.no_grad():
        parameters[0].mul_(3.0)
    assert casts.stacked(parameters, BF16)[0].eq(3).all()
    buffer.lerp_(torch.zeros(8), 1.0)
    assert casts.stacked(parameters, BF16).eq(0).all()
    assert before.eq(1).all()  # a backward pass may still need it


def test_a_transposed_weight_is_not_taken_for_the_weight():
    buffer = torch.arange(4.0)
    weight, casts = buffer.view(2, 2), Casts([buffer])
    for dtype in (torch.float32, BF16):
        assert casts.stacked([weight], dtype)[0].tolist() == [[0, 1], [2, 3]]
        assert casts.stacked([weight.t()], dtype)[0].tolist() == [[0, 2], [1, 3]]


def test_neighbours_are_contiguous_of_one_shape_and_without_a_gap():
    buffer = torch.arange(12.0)
    one, two = two_of(buffer)
    assert neighbours([one, two])
    assert not neighbours([one, buffer[8:].view(2, 2)])
    assert not neighbours([one, two.t()])
    assert not neighbours([one, buffer[4:6]])


def test_a_copied_agent_takes_its_own_parameters(make_agent, make_batch):
    agent = make_agent(precision="bf16", kernels="onednn")
    agent.update(make_batch())
    other = copy.deepcopy(agent)
    noise = agent.draw_noise(make_batch().rewards.shape[1])
    before = agent.critic.map(lambda p: p.detach().clone())
    other.update(make_batch(seed=5), noise)
    for (_, p), (_, old) in zip(agent.critic.tensors(), before.tensors(), strict=True):
        assert torch.equal(p, old)
    agent.update(make_batch(seed=5), noise)
    for (name, ours), (_, theirs) in zip(agent.critic.tensors(), other.critic.tensors(), strict=True):
        assert torch.equal(ours, theirs), name


def test_after_updates_in_bfloat16_the_networks_give_what_their_parameters_say(make_agent, make_batch):
    from mtrl.fast.chain import Chains
    from mtrl.networks import call

    agent = make_agent(precision="bf16", kernels="onednn", policy_tau=0.5)
    for seed in range(3):
        agent.update(make_batch(seed=seed))
    batch, critic = make_batch(), agent.nets.critic
    args = (batch.obs, batch.actions, agent.one_hot)
    for parameters in (agent.critic, agent.target):
        kept = call(critic, parameters, *args)
        runs = {net.stack: net.stack.run for net in critic.nets}
        for stack in runs:
            stack.run = Chains(BF16, onednn=True)  # keeps nothing
        anew = call(critic, parameters, *args)
        for stack, run in runs.items():
            stack.run = run
        assert torch.equal(kept, anew)
