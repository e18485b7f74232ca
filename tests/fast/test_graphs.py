"""Compiled updates: what a graph computes is what was traced, for every kind of method and network."""

from __future__ import annotations

import copy
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch._inductor.codecache
from torch import Tensor
from torch._inductor.exc import CppCompileError, InductorError

from mtrl.compiled import CompiledPath
from mtrl.config import ActorConfig, AgentConfig, ArchitectureConfig, ConfigError, CriticConfig
from mtrl.fast import graphs
from mtrl.fast.graphs import Graphs
from mtrl.gradients import FACTORED, PLAIN
from mtrl.machine import why_not_compiled
from mtrl.optimizers import OPTIMIZERS
from mtrl.optimizers.unitary import Unitary
from mtrl.replay import Batch
from mtrl.sac import MTSAC

T, B, D, A = 3, 4, 5, 2


@pytest.fixture
def interpreted(monkeypatch):
    """Graphs are traced, but run as torch's operations one by one: no compiler's time."""
    monkeypatch.setattr(
        torch._inductor, "standalone_compile", lambda graph, examples, **_: lambda *args: graph(*args)
    )


def make(method: str, kernels: str, network: str = "mlp", **settings) -> MTSAC:
    part = {"hidden": (8,), "layer_norm": True}
    settings = {"actor": ActorConfig(**part), "critic": CriticConfig(**part), **settings}
    config = AgentConfig(
        network=ArchitectureConfig(network), task_input="embedding", embedding_dim=3, precision="fp32",
        kernels=kernels, **settings,
    )  # fmt: skip
    return MTSAC(D, A, tuple("abc"), config, optimizer=method, seed=1)


def batch(seed: int, weight: Tensor | None = None) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randn(T, B, n, generator=draw) for n in (D, A, D)]
    rewards, end = torch.randn(2, T, B, generator=draw)
    return Batch(rows[0], rows[1].tanh(), rewards, rows[2], (end > 1).float(), weight)


def assert_three_steps_agree(first: MTSAC, second: MTSAC, weight: Tensor | None = None) -> None:
    for step in range(3):
        noise = first.draw_noise(B)
        told = [agent.update(batch(step, weight), noise, diagnose=step == 2) for agent in (first, second)]
        for key in ("critic_loss", "actor_loss", "critic_weights", "actor_weights", "q"):
            torch.testing.assert_close(told[0][key], told[1][key], rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(
        told[0]["conflict_actor"].gramian, told[1]["conflict_actor"].gramian, rtol=1e-3, atol=1e-6
    )
    for name in ("actor", "critic", "target", "averaged", "temperature"):
        for (key, mine), (_, theirs) in zip(
            getattr(first, name).tensors(), getattr(second, name).tensors(), strict=True
        ):
            torch.testing.assert_close(
                mine, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, k=key: f"{k}: {text}"
            )


def test_what_inductor_compiles_is_the_gradient_of_plain_torch():
    """One graph: an agent's four take a minute."""
    if why_not_compiled():
        pytest.skip(why_not_compiled())
    plain, compiled = make("pcgrad", "plain"), make("pcgrad", "compiled")
    target, found = torch.randn(T, B, generator=torch.Generator().manual_seed(9)), []
    for agent in (plain, compiled):
        inputs = (agent.one_hot, batch(0), target, ())
        tasks, gramian = agent.path.with_gramian(agent.functions.critic, agent.critic, *inputs)
        found.append({**tasks.rows(), **tasks.private, "gramian": gramian, "losses": tasks.losses})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(
            found[1][name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("method", ["unitary", "uncertainty", "famo", "rlw", "graddrop", "cagrad"])
def test_three_steps_by_graph_are_three_steps_without_for_each_kind_of_method(method):
    agent = make(method, "compiled")
    assert agent.path == CompiledPath(FACTORED, agent.path.graphs)
    assert_three_steps_agree(make(method, "torch"), agent)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("network", ["film", "small_towers", "moore"])
def test_three_steps_by_graph_are_three_steps_without_for_each_network(network):
    assert_three_steps_agree(make("pcgrad", "torch", network), make("pcgrad", "compiled", network))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize("loss", ["two_hot", "hl_gauss", "distributional"])
def test_three_steps_by_graph_are_three_steps_without_for_each_loss_of_the_critic(loss, reduction):
    critic = CriticConfig(hidden=(8,), loss=loss, reduction=reduction, support=9.0, atoms=7, dropout=0.1)
    assert_three_steps_agree(*(make("pcgrad", kernels, critic=critic) for kernels in ("torch", "compiled")))


@pytest.mark.usefixtures("interpreted")
def test_a_scalarization_of_ones_own_reads_losses_whatever_it_extends(monkeypatch):
    class Worst(Unitary):
        def weights(self, losses: Tensor, tasks: Tensor | None = None) -> Tensor:
            return losses.argmax() == torch.arange(len(losses))

    class Named(Worst):
        name = "named"

    assert not Unitary.reads_losses
    assert Worst.reads_losses
    assert Named.reads_losses
    monkeypatch.setitem(OPTIMIZERS, "worst", Worst)
    assert_three_steps_agree(make("worst", "torch"), make("worst", "compiled"))


@pytest.mark.usefixtures("interpreted")
def test_a_graph_takes_tasks_without_rows_bounded_targets_and_shared_temperatures():
    from mtrl.config import TemperatureConfig

    weight = torch.tensor([[1.0] * B, [1.0, 0.0, 1.0, 0.0], [0.0] * B])
    settings = {"target_clip": True, "temperature": TemperatureConfig(shared=True, combine=True)}
    for method in ("unitary", "pcgrad"):
        pair = (make(method, kernels, policy_tau=0.1, **settings) for kernels in ("torch", "compiled"))
        assert_three_steps_agree(*pair, weight)


@pytest.mark.usefixtures("interpreted")
def test_a_network_for_one_task_alone_is_traced_under_vmap(monkeypatch):
    from mtrl.networks.mlp import MLP

    plain = make("pcgrad", "plain")
    monkeypatch.setattr(MLP, "all_at_once", False)
    agent = make("pcgrad", "compiled")
    assert agent.path.eager is PLAIN
    assert_three_steps_agree(plain, agent)


@pytest.mark.usefixtures("interpreted")
def test_an_agent_goes_on_from_its_state_bit_for_bit():
    first = make("pcgrad", "compiled")
    first.update(batch(0))
    state = copy.deepcopy(first.state_dict())
    second = make("pcgrad", "compiled")
    second.load_state_dict(state)
    for agent in (first, second):
        agent.update(batch(1))
    for (_, mine), (_, theirs) in zip(first.actor.tensors(), second.actor.tensors(), strict=True):
        assert torch.equal(mine, theirs)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


def shifted(pair: Pair, named: dict[str, Tensor], by: float, sign: int = 1) -> tuple[Pair, dict[str, Tensor]]:
    return Pair(pair.first + sign * by, pair.second), {k: 2 * v for k, v in named.items()}


@pytest.mark.usefixtures("interpreted")
def test_what_a_graph_is_given_and_gives_is_a_nest(monkeypatch):
    traced = []
    make_fx = graphs.make_fx
    monkeypatch.setattr(
        graphs, "make_fx", lambda function, **how: traced.append(1) or make_fx(function, **how)
    )
    call, x = Graphs(), torch.arange(3.0)
    for number in (1.0, 1.0, 2.0):  # a number is part of the graph
        result = call(shifted, Pair(x + number, None), {"a": x, "b": x[:1]}, number)
        assert isinstance(result[0], Pair)
        assert result[0].second is None
        assert torch.equal(result[0].first, x + 2 * number)
        assert [*result[1]] == ["a", "b"]
        assert torch.equal(result[1]["b"], 2 * x[:1])
    assert len(traced) == 2
    for pair in (Pair(x[:2], None), Pair(x[::2], None), Pair(x.double(), None), Pair(x, x)):
        result = call(shifted, pair, {}, 1.0)
        assert torch.equal(result[0].first, pair.first + 1)
        assert (result[0].second is None) == (pair.second is None)
    assert len(traced) == 6


@pytest.mark.usefixtures("interpreted")
def test_functions_of_one_body_that_are_made_of_different_things_have_different_graphs():
    call, x = Graphs(), torch.ones(2)
    down, up = partial(shifted, sign=-1), partial(shifted, sign=1)
    assert torch.equal(call(down, Pair(x, None), {}, 1.0)[0].first, torch.zeros(2))
    assert torch.equal(call(up, Pair(x, None), {}, 1.0)[0].first, 2 * x)


@pytest.mark.usefixtures("interpreted")
def test_numbers_that_are_equal_but_not_the_same_have_different_graphs():
    call, x = Graphs(), torch.tensor([2, 4])
    assert call(torch.mul, x, 2).dtype == torch.int64
    assert call(torch.mul, x, 2.0).dtype == torch.float32
    assert torch.equal(call(torch.div, x, 0.0), torch.full((2,), torch.inf))
    assert torch.equal(call(torch.div, x, -0.0), torch.full((2,), -torch.inf))
    assert type(call(lambda pair: pair, Pair(x, None))) is Pair

    def same(pair):
        return pair

    assert type(call(same, (x, None))) is tuple
    assert type(call(same, Pair(x, None))) is Pair


@pytest.mark.usefixtures("interpreted")
def test_a_graph_is_of_the_callers_grad_mode():
    def double_when_learning(x):
        return 2 * x if torch.is_grad_enabled() else x

    call, x = Graphs(), torch.ones(2)
    with torch.no_grad():
        assert torch.equal(call(double_when_learning, x), x)
    assert torch.equal(call(double_when_learning, x), 2 * x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sum().item(),
        lambda x: x / max(x.tolist()),
        lambda x: x / float(x.numpy().max()),
        lambda x: x * torch.tensor(x.numpy()),
        lambda x: x * torch.from_numpy(x.numpy() + 1),
        lambda x: x / len(x[x > 0]),
    ],
    ids=["item", "tolist", "numpy", "tensor", "from_numpy", "size"],
)
def test_what_depends_on_a_number_in_a_tensor_is_bad_input_in_one_line(function):
    with pytest.raises(ConfigError, match=r"agent\.kernels: 'compiled' failed, use torch: .") as error:
        Graphs()(function, torch.ones(3))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("interpreted")
def test_tracing_changes_nothing_that_a_network_has_or_is_given():
    class Lazy:
        def __call__(self, x):
            if not hasattr(self, "place"):
                self.place = torch.linspace(0, 1, len(x))
            x = x + self.place
            x *= 2
            return x

    network, call, x = Lazy(), Graphs(), torch.ones(2)
    for _ in range(2):
        assert torch.equal(call(network, x), torch.tensor([2.0, 4.0]))
    assert type(network.place) is Tensor
    in_place = Graphs()
    assert torch.equal(in_place(Tensor.mul_, x, 3.0), torch.full((2,), 3.0))
    assert torch.equal(x, torch.full((2,), 3.0))  # once


@pytest.mark.parametrize(
    ("kind", "words", "lost"),
    [
        (CppCompileError, "g++ was ended", set()),
        (InductorError, "ImportError: {}/ab/first.main.so: file too short", {"first.main.so"}),
        (OSError, "{}/ab/second.so: invalid ELF header", {"second.so"}),
        (OSError, "/nowhere{}/ab/second.so: invalid ELF header", set()),
    ],
)
def test_a_compiler_that_a_signal_ended_is_called_again_without_what_it_left(
    monkeypatch, tmp_path, kind, words, lost
):
    class Ended(kind):
        def __init__(self) -> None:
            Exception.__init__(self, words.format(tmp_path))

        def __str__(self) -> str:
            return words.format(tmp_path)

    left = {"first.main.so", "second.so", "graph.py"}
    (tmp_path / "ab").mkdir()
    for name in left:
        (tmp_path / "ab" / name).touch()
    calls, failures = [], 1

    def compile_or_end(graph, examples, **_):
        calls.append(1)
        if len(calls) <= failures:
            raise Ended
        return lambda *args: graph(*args)

    monkeypatch.setattr(torch._inductor.codecache, "cache_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch._inductor, "standalone_compile", compile_or_end)
    assert torch.equal(Graphs()(torch.neg, torch.ones(2)), -torch.ones(2))
    assert len(calls) == 2
    assert {path.name for path in (tmp_path / "ab").iterdir()} == left - lost
    calls, failures = [], 3
    with pytest.raises(ConfigError, match=r"agent\.kernels: 'compiled' failed, use torch: ."):
        Graphs()(torch.neg, torch.ones(2))
    assert len(calls) == 3


@pytest.mark.usefixtures("interpreted")
def test_a_tensor_of_its_own_that_a_network_changes_is_bad_input():
    class Counting:
        def __init__(self, step):
            self.place, self.step = torch.zeros(2), step

        def __call__(self, x):
            self.place += self.step
            return x + self.place

    changed = r"agent\.kernels: 'compiled' failed, use torch: the network or the loss changes a tensor"
    with pytest.raises(ConfigError, match=changed):
        Graphs()(Counting(1), torch.ones(2))
    place, call = torch.ones(2), Graphs()
    function = partial(torch.add, other=place)
    assert torch.equal(call(function, torch.ones(2)), torch.full((2,), 2.0))
    place += 1
    with pytest.raises(ConfigError, match=changed):
        call(function, torch.ones(2))


@pytest.mark.usefixtures("interpreted")
def test_a_disk_that_is_full_is_no_fault_of_the_settings(monkeypatch):
    def full(graph, examples, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch._inductor, "standalone_compile", full)
    with pytest.raises(OSError, match="No space left"):
        Graphs()(torch.neg, torch.ones(2))


@pytest.mark.usefixtures("interpreted")
def test_shapes_that_never_repeat_are_bad_input(monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 3)
    call = Graphs()
    for n in range(3):
        call(torch.neg, torch.ones(n + 1))
    with pytest.raises(ConfigError, match="other shapes than the 3 that have been compiled"):
        call(torch.neg, torch.ones(9))
    assert torch.equal(call(torch.neg, torch.ones(2)), -torch.ones(2))
