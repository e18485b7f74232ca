"""Per-task gradients: the order of mean and gradient, private parameters, absent tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from doubles import double
from torch import Tensor

from mtrl.fast.chain import Factors
from mtrl.fast.factored import FactoredRows, all_at_once, factored_gradients
from mtrl.gradients import (
    BY_LOOP,
    FACTORED,
    PLAIN,
    Loss,
    WholeRows,
    as_parameters,
    jacobian,
    multitask_gradient,
    per_task_gradients,
    per_task_gradients_by_loop,
    task_share,
)
from mtrl.networks import Parameters
from mtrl.optimizers import make_optimizer
from mtrl.sac import actor_loss, critic_loss

T, B = 3, 5
TASK_INPUTS = ["one_hot", "embedding", "heads", "none"]
close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-12)


class Case(NamedTuple):
    """A one-task loss of the agent, with its arguments, in float64."""

    loss: Loss
    params: Parameters
    inputs: tuple[Any, ...]


@pytest.fixture
def case(make_agent, make_batch) -> Callable[..., Case]:
    def make(
        network: str, task_input: str, stabilised: bool = True, weight: Tensor | None = None,
        kernels: str = "plain", **more: Any,
    ) -> Case:  # fmt: skip
        own = {"layer_norm": stabilised, "dropout": 0.3 if stabilised else 0.0, "init": "torch", **more}
        agent = make_agent(T, task_input=task_input, actor=own, critic=own, embedding_dim=4, kernels=kernels)
        batch, noise = make_batch(T, B)._replace(weight=weight), agent.draw_noise(B)
        if network == "critic":
            loss = partial(critic_loss, nets=agent.nets)
            inputs = (agent.one_hot, batch, torch.randn(T, B), noise.critic_masks)
        else:
            loss = partial(actor_loss, nets=agent.nets)
            masks = (noise.actor_masks, noise.actor_critic_masks)
            inputs = (agent.critic, torch.rand(T), agent.one_hot, batch, noise.action, *masks)
        return Case(loss, double(getattr(agent, network)), double(inputs))

    return make


def assert_parameters_close(first: Parameters, second: Parameters) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            close(one[name], other[name], msg=lambda text, name=name: f"{name}: {text}")


def assert_tasks_close(first: Any, second: Any) -> None:
    for one, other in ((first.rows(), second.rows()), (first.private, second.private)):
        assert one.keys() == other.keys()
        for name in one:
            close(one[name], other[name], msg=lambda text, name=name: f"{name}: {text}")
    close(first.losses, second.losses)
    close(first.aux, second.aux)


@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "layer_norm+dropout"])
@pytest.mark.parametrize("task_input", TASK_INPUTS)
@pytest.mark.parametrize("network", ["critic", "actor"])
def test_vmap_of_grad_equals_t_backward_passes_equals_each_task_alone(case, network, task_input, stabilised):
    loss, params, inputs = case(network, task_input, stabilised)
    rows = per_task_gradients(loss, params, *inputs)
    losses = rows.losses
    assert_tasks_close(rows, per_task_gradients_by_loop(loss, params, *inputs))
    assert losses.dtype == torch.float64
    assert bool(rows.private) == (task_input in ("embedding", "heads"))

    def one(x: Any, t: int) -> Any:
        if isinstance(x, Parameters):
            return Parameters(x.shared, {k: v[t] for k, v in x.private.items()})
        if isinstance(x, Tensor):
            return x[t]
        if x is None:
            return None
        parts = [one(part, t) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)

    for t in range(T):  # no vmap at all
        value, _ = loss(one(params, t), *(one(x, t) for x in inputs))
        close(value, losses[t])
        tensors = dict(params.tensors())
        grads = dict(
            zip(
                tensors,
                torch.autograd.grad(value, list(tensors.values()), materialize_grads=True),
                strict=True,
            )
        )
        for name, row in rows.shared.items():
            close(row[t], grads[name])
        for name, row in rows.private.items():
            close(row[t], grads[name][t])


@pytest.mark.parametrize("task_input", TASK_INPUTS)
@pytest.mark.parametrize("network", ["critic", "actor"])
def test_the_scalarized_gradient_is_the_mean_of_the_tasks_gradients(case, network, task_input):
    loss, params, inputs = case(network, task_input)
    rows = per_task_gradients(loss, params, *inputs)
    losses, aux = rows.losses, rows.aux
    gradient = multitask_gradient(make_optimizer("unitary", T), loss, params, *inputs)
    mean_of_rows = Parameters(
        {k: row.mean(0) for k, row in rows.shared.items()}, {k: row / T for k, row in rows.private.items()}
    )
    assert_parameters_close(gradient.params, mean_of_rows)
    close(gradient.losses, losses)
    close(gradient.aux, aux)
    assert gradient.finite.tolist() == [True] * T
    assert not gradient.losses.requires_grad


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "mgda", "graddrop"])
@pytest.mark.parametrize("network", ["critic", "actor"])
def test_a_gradient_method_combines_the_shared_rows_and_leaves_private_ones_their_own(case, network, name):
    loss, params, inputs = case(network, "heads")
    rows = per_task_gradients(loss, params, *inputs)
    gradient = multitask_gradient(make_optimizer(name, T, seed=3), loss, params, *inputs)
    expected = make_optimizer(name, T, seed=3).combine(jacobian(rows.shared))
    torch.testing.assert_close(
        torch.cat([g.flatten() for g in gradient.params.shared.values()]), expected, rtol=1e-5, atol=1e-10
    )
    if name != "pcgrad":  # which is the mean where no two tasks conflict
        assert not torch.allclose(expected, jacobian(rows.shared).mean(0), rtol=1e-3)
    for key, row in rows.private.items():
        close(gradient.params.private[key], row / T)
    assert gradient.weights.isnan().all() == (name == "graddrop")


@pytest.mark.parametrize("name", ["unitary", "pcgrad", "graddrop"])
def test_a_batch_that_no_task_is_in_gives_no_gradient(case, name):
    loss, params, inputs = case("critic", "heads", weight=torch.zeros(T, B))
    nobody = torch.zeros(T, dtype=torch.bool)
    gradient = multitask_gradient(make_optimizer(name, T), loss, params, *inputs, present=nobody)
    assert all((tensor == 0).all() for _, tensor in gradient.params.tensors())


def test_static_weights_scale_shared_and_private_gradients_alike(case):
    loss, params, inputs = case("critic", "heads")
    rows = per_task_gradients(loss, params, *inputs)
    method = make_optimizer("static", T, weights=[1.0, 2.0, 3.0])
    gradient = multitask_gradient(method, loss, params, *inputs)
    w = gradient.weights
    assert_parameters_close(
        gradient.params,
        Parameters(
            rows.combine(w),
            {k: row * w.view(-1, *(1,) * (row.dim() - 1)) for k, row in rows.private.items()},
        ),
    )


@pytest.mark.parametrize("name", ["unitary", "mgda", "graddrop"])
@pytest.mark.parametrize("network", ["critic", "actor"])
def test_an_absent_task_is_left_out(case, network, name):
    weight = torch.ones(T, B)
    weight[1] = 0  # no row of task 1
    weight[2, 2:] = 0
    loss, params, inputs = case(network, "heads", weight=weight)
    present = weight.any(dim=1)
    gradient = multitask_gradient(make_optimizer(name, T, seed=3), loss, params, *inputs, present=present)
    rows = per_task_gradients(loss, params, *inputs)
    losses = rows.losses
    two = {k: row[[0, 2]] for k, row in rows.shared.items()}
    if name == "unitary":
        expected = {k: row.mean(0) for k, row in two.items()}  # the mean over the present
        assert gradient.weights.tolist() == [0.5, 0, 0.5]
    else:
        expected = as_parameters(make_optimizer(name, 2, seed=3).combine(jacobian(two)), two)
    for key, value in gradient.params.shared.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-10)
    for key, value in gradient.params.private.items():
        close(value[[0, 2]], rows.private[key][[0, 2]] / 2)
        assert (value[1] == 0).all()
    assert losses[1] == 0
    assert gradient.losses[1] == 0


def test_a_task_whose_loss_is_not_finite_is_flagged_and_no_other(case):
    loss, params, inputs = case("critic", "one_hot")
    inputs[2][1, 0] = torch.nan  # a target of task 1
    for name in ("unitary", "pcgrad", "graddrop"):
        gradient = multitask_gradient(make_optimizer(name, T), loss, params, *inputs)
        assert gradient.finite.tolist() == [True, False, True], name


@pytest.mark.parametrize("kernels", ["torch", "onednn"])
@pytest.mark.parametrize("variant", [{}, {"activation": "silu"}, {"blocks": 1}, {"dropout": 0.0}], ids=str)
@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "layer_norm+dropout"])
@pytest.mark.parametrize("task_input", TASK_INPUTS)
@pytest.mark.parametrize("network", ["critic", "actor"])
def test_the_factored_path_gives_the_same_gradients_gramian_and_combination(
    case, network, task_input, stabilised, variant, kernels
):
    loss, params, inputs = case(network, task_input, stabilised, **variant)
    fused, *_ = case(network, task_input, stabilised, **variant, kernels=kernels)
    whole, factored = per_task_gradients(loss, params, *inputs), factored_gradients(fused, params, *inputs)
    assert_tasks_close(factored, whole)
    weights = torch.rand(T, dtype=torch.float64)
    from_factors = factored.combine(weights)
    close(factored.gramian(), whole.gramian())
    from_rows = factored.combine(weights)
    assert factored.kept
    for name, value in whole.combine(weights).items():
        close(from_factors[name], value)
        close(from_rows[name], value)


def test_rows_beyond_the_limit_are_not_kept(case, monkeypatch):
    monkeypatch.setattr("mtrl.fast.factored.MOST_KEPT", 0)
    _, params, inputs = case("critic", "one_hot")
    fused, *_ = case("critic", "one_hot", kernels="torch")
    tasks = factored_gradients(fused, params, *inputs)
    tasks.gramian()
    assert not tasks.kept


def test_where_pairs_of_rows_are_few_no_gradient_is_made_or_kept_and_the_step_is_the_same():
    torch.manual_seed(0)
    factors = Factors(torch.randn(T, 2, 64).bfloat16(), torch.randn(T, 2, 64).bfloat16())
    assert factors.few
    exact = Factors(factors.x.double(), factors.d.double()).rows()
    losses, shapes, weights = torch.zeros(T), {"a": torch.Size([64, 64])}, torch.rand(T)
    tasks = FactoredRows(shapes, {"a": factors}, {}, {}, losses, None)
    gram = tasks.gramian()
    assert not tasks.kept
    norms = exact.flatten(1).norm(dim=1)
    error = (gram - exact.flatten(1) @ exact.flatten(1).T).abs() / (norms.unsqueeze(1) * norms)
    assert error.max() < 0.005  # bfloat16 has eight bits
    combined = (weights.view(-1, 1, 1) * exact).sum(0)
    assert (tasks.combine(weights)["a"] - combined).norm() < 0.005 * combined.norm()


@pytest.mark.parametrize("name", ["unitary", "uncertainty", "pcgrad", "mgda", "graddrop"])
@pytest.mark.parametrize("network", ["critic", "actor"])
def test_every_path_leads_to_the_same_step(case, network, name):
    weight = torch.ones(T, B)
    weight[2, 2:] = 0
    loss, params, inputs = case(network, "heads", weight=weight)
    fused, *_ = case(network, "heads", weight=weight, kernels="torch")
    steps = [
        multitask_gradient(make_optimizer(name, T, seed=3), function, params, *inputs, path=path)
        for function, path in ((loss, PLAIN), (loss, BY_LOOP), (fused, FACTORED))
    ]
    for step in steps[1:]:
        assert_parameters_close(step.params, steps[0].params)
        close(step.losses, steps[0].losses)
        close(step.weights, steps[0].weights, equal_nan=True)
        close(step.aux, steps[0].aux)
        assert step.finite.tolist() == steps[0].finite.tolist()


def test_a_parameter_that_no_loss_depends_on_has_a_gradient_of_zero_on_every_path():
    def loss(p: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.square().mean(-1) + 0 * p.private["used"].sum(-1), x

    params = Parameters(
        {"idle": torch.ones(2, 3, requires_grad=True)},
        {"used": torch.ones(T, 2, requires_grad=True), "spare": torch.ones(T, 2, requires_grad=True)},
    )
    for path in (PLAIN, BY_LOOP, FACTORED):
        tasks = path.per_task(loss, params, torch.ones(T, B))
        assert torch.equal(tasks.rows()["idle"], torch.zeros(T, 2, 3))
        assert torch.equal(tasks.private["spare"], torch.zeros(T, 2))


def test_a_loss_that_reduces_over_tasks_is_refused_by_the_factored_path():
    with pytest.raises(ValueError, match="kernels = plain"):
        all_at_once(lambda x: x.mean(), torch.ones(T, B))


def test_a_shared_parameter_outside_of_the_fused_layers_is_refused_by_name():
    params = Parameters({"scale": torch.ones(1, requires_grad=True)}, {})
    with pytest.raises(ValueError, match="scale is used outside of its network"):
        factored_gradients(lambda p, x: ((x * p.shared["scale"]).mean(-1), x), params, torch.ones(T, B))


def test_the_gramian_recombination_and_jacobian_agree_by_hand():
    # J = [[1, 0 | 2], [−1, 1 | 0]]: JJᵀ = [[5, −1], [−1, 2]]; with weights (2, 1): (1, 1 | 4)
    # the first as factors of one row each: d = (1), (−1) by x = (1, 0), (1, −1)
    rows = {"a": torch.tensor([[[1.0, 0.0]], [[-1.0, 1.0]]]), "b": torch.tensor([[2.0], [0.0]])}
    factors = Factors(torch.tensor([[[1.0, 0.0]], [[1.0, -1.0]]]), torch.tensor([[[1.0]], [[-1.0]]]))
    shapes = {name: row.shape[1:] for name, row in rows.items()}
    for tasks in (
        WholeRows(rows, {}, torch.zeros(2), None),
        FactoredRows(shapes, {"a": factors}, {"b": rows["b"]}, {}, torch.zeros(2), None),
    ):
        assert tasks.gramian().tolist() == [[5, -1], [-1, 2]]
        assert jacobian(tasks.rows()).tolist() == [[1, 0, 2], [-1, 1, 0]]
        combined = tasks.combine(torch.tensor([2.0, 1.0]))
        assert combined["a"].tolist() == [[1, 1]]
        assert combined["b"].tolist() == [4]
        cut = as_parameters(torch.tensor([1.0, 1.0, 4.0]), rows)
        assert all(torch.equal(cut[name], combined[name]) for name in rows)


def test_a_tasks_share_is_one_over_the_number_of_present_tasks():
    losses = torch.zeros(4)
    assert task_share(losses, None).tolist() == [0.25] * 4
    assert task_share(losses, torch.tensor([True, False, True, False])).tolist() == [0.5, 0, 0.5, 0]
