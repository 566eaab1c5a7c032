"""Networks as functions of θ, against the same networks as modules."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from continual.errors import BadOption
from continual.learning.models import MLP, LinearNet, Net
from continual.streams.rng import key

SIZES = [(6, 3), (6, 5, 3), (6, 5, 4, 3), (6, 1, 1)]


def theta_of(net: Net, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return net.initial(key(seed), dtype)


def module(sizes: tuple[int, ...], theta: torch.Tensor) -> torch.nn.Sequential:
    """The same network in PyTorch's modules, its weights cut out of θ by hand."""
    layers: list[torch.nn.Module] = [torch.nn.Flatten()]
    at = 0
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        if number:
            layers.append(torch.nn.ReLU())
        linear = torch.nn.Linear(inputs, outputs, dtype=theta.dtype)
        with torch.no_grad():
            linear.weight.copy_(theta[at : at + inputs * outputs].reshape(outputs, inputs))
            linear.bias.copy_(theta[at + inputs * outputs : at + inputs * outputs + outputs])
        at += inputs * outputs + outputs
        layers.append(linear)
    assert at == len(theta)
    return torch.nn.Sequential(*layers)


def images(count: int, seed: int = 1) -> torch.Tensor:
    return key(seed).normal("x", count, 1, 2, 3).double()


@pytest.mark.parametrize("sizes", SIZES)
def test_logits_and_features_are_the_modules(sizes: tuple[int, ...]) -> None:
    net = LinearNet(sizes)
    theta, x = theta_of(net), images(7)
    other = module(sizes, theta)
    torch.testing.assert_close(net.logits(theta, x), other(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net.features(theta, x), other[:-1](x), rtol=1e-12, atol=1e-12)
    out = net.forward(theta, x, torch.zeros(7, dtype=torch.int64))
    assert torch.equal(out.logits, net.logits(theta, x)) and torch.equal(out.features, net.features(theta, x))


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_the_modules(sizes: tuple[int, ...]) -> None:
    net = LinearNet(sizes)
    theta, x = theta_of(net).requires_grad_(), images(7)
    y = torch.arange(7) % sizes[-1]
    torch.nn.functional.cross_entropy(net.logits(theta, x), y).backward()
    other = module(sizes, theta.detach())
    torch.nn.functional.cross_entropy(other(x), y).backward()
    wanted = torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None])
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, wanted, rtol=1e-10, atol=1e-12)


def test_an_attached_vector_goes_through_its_parts() -> None:
    net = LinearNet((6, 5, 3))
    theta, x = theta_of(net), images(4)
    parts = [part.clone().requires_grad_() for part in net.parameters(theta).values()]
    carrier = net.attach(torch.zeros_like(theta), parts)
    torch.testing.assert_close(net.logits(carrier, x), net.logits(theta, x))
    net.logits(carrier, x).square().sum().backward()
    plain = theta.clone().requires_grad_()
    net.logits(plain, x).square().sum().backward()
    assert plain.grad is not None
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in parts if p.grad is not None]), plain.grad)
    assert not hasattr(carrier.clone(), "parameters_by_name"), "what is computed from it is a plain vector again"


@pytest.mark.parametrize("sizes", SIZES)
def test_parameters_are_views_that_cover_theta_in_order(sizes: tuple[int, ...]) -> None:
    net = LinearNet(sizes)
    theta = torch.arange(float(net.size))
    parts = net.parameters(theta)
    assert torch.cat([part.flatten() for part in parts.values()]).tolist() == list(range(net.size))
    assert {name: tuple(part.shape) for name, part in parts.items()} == net.shapes
    assert net.size == sum(a * b + b for a, b in itertools.pairwise(sizes))
    parts["head.bias"].fill_(-1)
    assert theta[-sizes[-1] :].tolist() == [-1.0] * sizes[-1], "writing into a parameter writes into θ"
    group = net.parameters(torch.stack([theta, theta + 1]))
    assert all(torch.equal(group[name][0], parts[name]) for name in parts)
    assert group["head.weight"].shape == (2, *net.shapes["head.weight"])


@pytest.mark.parametrize("sizes", [(6, 5, 3), (6, 3)])
@pytest.mark.parametrize("units", [[0], [1, 2], [], [0, 1, 2]])
def test_head_rows_are_what_the_units_alone_depend_on(sizes: tuple[int, ...], units: list[int]) -> None:
    net = LinearNet(sizes)
    theta = theta_of(net)
    chosen = torch.zeros(3, dtype=torch.bool)
    chosen[units] = True
    marked = net.head_rows(theta, chosen)
    assert marked.dtype == torch.bool and marked.shape == theta.shape
    assert int(marked.sum()) == len(units) * (sizes[-2] + 1)
    # brute force: an entry belongs to the units if, of all logits, it moves theirs alone
    jacobian = torch.autograd.functional.jacobian(lambda t: net.logits(t, images(20)), theta, vectorize=True)
    moves = (jacobian != 0).any(0)  # (K, P)
    is_head = moves.sum(0) == 1
    assert torch.equal(marked, is_head & moves[chosen].any(0))


@pytest.mark.parametrize("sizes", SIZES)
def test_linear_layers_give_what_goes_in_and_comes_out(sizes: tuple[int, ...]) -> None:
    net = LinearNet(sizes)
    theta, x = theta_of(net), images(5)
    p = net.parameters(theta)
    layers = net.linear_layers(theta, x)
    h = x.reshape(5, -1)
    assert [name for name, _, _ in layers] == [name.removesuffix(".weight") for name in net.shapes if "weight" in name]
    for name, given, got in layers:
        torch.testing.assert_close(given, h)
        torch.testing.assert_close(got, torch.einsum("oi,bi->bo", p[f"{name}.weight"], h) + p[f"{name}.bias"])
        h = got.clamp_min(0)
    assert torch.equal(layers[-1][2], net.logits(theta, x))
    assert Net({"w": (2,)}).linear_layers(x, x) is None


def test_initial_parameters_are_uniform_within_pytorchs_bounds() -> None:
    net = LinearNet((50, 200, 30, 10))
    parts = net.parameters(theta_of(net))
    for name, inputs in (("layer1", 50), ("layer2", 200), ("head", 30)):
        bound = 1 / math.sqrt(inputs)
        both = torch.cat([parts[f"{name}.{kind}"].flatten() for kind in ("weight", "bias")])
        assert both.abs().max() <= bound and both.abs().max() > 0.95 * bound
        assert abs(both.std() - bound / math.sqrt(3)) < 0.1 * bound
        assert stats.kstest(both.numpy(), "uniform", args=(-bound, 2 * bound)).pvalue > 1e-3
        reference = torch.nn.Linear(inputs, 500)
        assert reference.weight.abs().max() <= bound < 1.05 * reference.weight.abs().max()


def test_initial_parameters_are_the_keys() -> None:
    net = LinearNet((6, 5, 3))
    assert torch.equal(theta_of(net, 3), theta_of(net, 3)) and not torch.equal(theta_of(net, 3), theta_of(net, 4))
    single = theta_of(net, 3, torch.float32)
    assert single.dtype == torch.float32 and theta_of(net, 3).dtype == torch.float64
    torch.testing.assert_close(single.double(), theta_of(net, 3), rtol=1e-6, atol=1e-7)
    square = LinearNet((6, 6, 6))
    parts = square.parameters(theta_of(square))
    assert not torch.equal(parts["layer1.weight"], parts["head.weight"]), "each layer has numbers of its own"


@pytest.mark.parametrize(("layers", "size"), [((), 12 * 5 + 5), ((7,), 12 * 7 + 7 + 7 * 5 + 5), ((7, 3), 91 + 24 + 20)])
def test_an_mlp_is_built_for_a_shape_and_units(layers: tuple[int, ...], size: int) -> None:
    net = MLP(layers=layers).build((3, 2, 2), 5)
    assert net.size == size
    assert net.logits(theta_of(net), torch.zeros(2, 3, 2, 2, dtype=torch.float64)).shape == (2, 5)


@pytest.mark.parametrize("layers", ["0", "5-0", "a", (-1,)])
def test_layers_need_units(layers: object) -> None:
    with pytest.raises(BadOption, match="layers"):
        MLP.read({"layers": layers})


def test_networks_of_several_seeds_can_be_mapped() -> None:
    net = LinearNet((6, 5, 3))
    thetas, x = torch.stack([theta_of(net, seed) for seed in range(3)]), images(4)
    mapped = torch.vmap(lambda theta: net.logits(theta, x))(thetas)
    torch.testing.assert_close(mapped, torch.stack([net.logits(theta, x) for theta in thetas]))
