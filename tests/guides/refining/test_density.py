"""The density that refinement climbs is the model's own, whichever way it is computed."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

from pyro_vae.guides.refining import density as density_module
from pyro_vae.guides.refining.captured import Graphs
from pyro_vae.guides.refining.density import LocalDensity

SIZES = {"rate": 1, "shares": 2, "below": 1}


def supports(x, y):
    """Positive, a simplex, and an interval that ends at another latent; conditions y."""
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.5))
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        below = pyro.sample("below", dist.Uniform(0.0, rate))
        pyro.sample("x", dist.Normal(rate * shares[..., 0] + below * y, 1.0), obs=x)


def by_hand(u, x, y):
    """log p(x, z(u)) + log |dz/du|, with the Jacobian by autograd."""

    def constrained(u):
        rate = u[0].exp()
        shares = torch.distributions.biject_to(torch.distributions.constraints.simplex)(u[1:3])
        return torch.stack([rate, shares[0], shares[1], rate * u[3].sigmoid()])

    rate, first, second, below = constrained(u)
    shares = torch.stack([first, second, 1 - first - second])
    jacobian = torch.autograd.functional.jacobian(constrained, u, create_graph=True)
    return (
        dist.Gamma(2.0, 1.5).log_prob(rate)
        + dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])).log_prob(shares)
        + dist.Uniform(0.0, rate).log_prob(below)
        + dist.Normal(rate * shares[0] + below * y, 1.0).log_prob(x)
        + torch.linalg.slogdet(jacobian).logabsdet
    )


def some(points=3, n=4):
    x, y = torch.randn(n), torch.randn(n)
    return x, y, torch.randn(points, n, 4)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("chunk", [4096, 5])
def test_several_constrained_latents_and_a_condition(monkeypatch, captured, chunk):
    if captured:
        monkeypatch.setattr(density_module, "PATIENCE", 0)
    x, y, u = some()
    rows = torch.tensor([2, 0, 2])
    density = LocalDensity(supports, SIZES, (x,), {"y": y}, rows=len(x), chunk=chunk)
    wanted = torch.stack([torch.stack([by_hand(u[s, n], x[n], y[n]) for n in range(4)]) for s in range(3)])
    torch.testing.assert_close(density(u), wanted)
    torch.testing.assert_close(density(u[:, rows], rows), wanted[:, rows])
    height, slope = density.with_gradient(u[:, rows], rows)
    torch.testing.assert_close(height, wanted[:, rows])
    at = u[0, 2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(by_hand(at, x[2], y[2]), at)
    torch.testing.assert_close(slope[0, 0], gradient)
    assert bool(density.graphs.made) is captured


class Decoder(PyroModule):
    """One real latent of size 3 through a network, with a number that a user may change."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Dropout(0.5))
        self.noise = 1.0

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), self.noise).to_event(1), obs=x)


def test_a_graph_follows_parameters_and_is_made_anew_where_it_cannot(monkeypatch):
    monkeypatch.setattr(density_module, "PATIENCE", 0)
    model, x, u, graphs = Decoder(), torch.randn(6, 8), torch.randn(2, 6, 3), Graphs()

    def density():
        return LocalDensity(model, {"z": 3}, (x,), {}, rows=6, graphs=graphs)

    def wanted():
        mean = model.net[1](model.net[0](u))
        return dist.Normal(mean, model.noise).log_prob(x).sum(-1) + dist.Normal(0.0, 1.0).log_prob(u).sum(-1)

    torch.testing.assert_close(density()(u), wanted().detach())  # dropout is off
    first = dict(graphs.made)
    assert sorted(gradient for gradient, *_ in first) == [False, True]  # of one trace
    with torch.no_grad():
        model.net[0].weight.mul_(2.0)
    torch.testing.assert_close(density()(u), wanted().detach())
    assert graphs.made == first
    model.noise = 0.5
    torch.testing.assert_close(density()(u), wanted().detach())
    assert graphs.made != first
    assert model.net[2].training


def test_what_depends_on_the_data_alone_is_computed_once(monkeypatch):
    monkeypatch.setattr(density_module, "PATIENCE", 0)

    def counts(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)

    x, free, rows = torch.poisson(3 * torch.ones(200, 2)), torch.randn(3, 150, 2), torch.randint(200, (150,))
    density = LocalDensity(counts, {"z": 2}, (x,), {}, rows=200, chunk=128)
    wanted = dist.Poisson(free.exp()).log_prob(x[rows]) + dist.Normal(0.0, 1.0).log_prob(free)
    torch.testing.assert_close(density(free, rows), wanted.sum(-1))
    torch.testing.assert_close(density.with_gradient(free, rows)[1], x[rows] - free.exp() - free)
    assert all(captured.once is not None for captured in density.graphs.made.values())
    assert density.graphs.made


def test_what_cannot_be_traced_stays_with_pyro(monkeypatch):
    monkeypatch.setattr(density_module, "PATIENCE", 0)

    def branching(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = 1.0 if z.abs().max() < 100 else 2.0
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    density = LocalDensity(branching, {"z": 1}, (torch.zeros(3),), {}, rows=3)
    free = torch.randn(2, 3, 1)
    wanted = 2 * dist.Normal(0.0, 1.0).log_prob(free[..., 0])
    torch.testing.assert_close(density(free), wanted)
    assert density.graphs.refused


def test_a_plate_of_fixed_size_goes_through_whole():
    offset = torch.arange(4.0)

    def model(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(offset, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, free = torch.randn(4), torch.randn(2, 4, 1)
    density = LocalDensity(model, {"z": 1}, (x,), {}, rows=4)
    density.settle(free[0])
    assert density.whole
    z = free[..., 0]
    wanted = dist.Normal(offset, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    torch.testing.assert_close(density(free), wanted)
    rows = torch.tensor([3, 1])
    height, slope = density.with_gradient(free[:, rows], rows)
    torch.testing.assert_close(height, wanted[:, rows])
    torch.testing.assert_close(slope[..., 0], (offset + x - 2 * z)[:, rows])
    rows, free = torch.tensor([2, 0, 2, 2]), torch.randn(2, 4, 1)  # an observation at several points
    z = free[..., 0]
    wanted = dist.Normal(offset, 1.0).log_prob(z - offset[rows] + offset)
    torch.testing.assert_close(density(free, rows), wanted + dist.Normal(z, 1.0).log_prob(x[rows]))


def test_observations_that_look_at_each_other_go_through_whole():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x - x.mean())

    density = LocalDensity(model, {"z": 1}, (torch.randn(5),), {}, rows=5)
    density.settle(torch.zeros(5, 1))
    assert density.whole


def test_streams_and_validation_stay_as_they_are():
    x, y, u = some()
    before = torch.get_rng_state()
    LocalDensity(supports, SIZES, (x, y), {}, rows=4).with_gradient(u)
    assert torch.equal(torch.get_rng_state(), before)
    assert pyro.settings.get("validate_distributions_pyro")


def test_surrounding_handlers_see_nothing():
    x, y, u = some()
    with pyro.poutine.trace() as around, pyro.plate("draws", 7, dim=-2):
        LocalDensity(supports, SIZES, (x, y), {}, rows=4)(u)
    assert not [name for name, site in around.trace.nodes.items() if name in SIZES]


@pytest.mark.parametrize("given", [False, True])
def test_a_latent_without_values_is_named(given):
    def model(x):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)

    x, free = torch.randn(3), torch.randn(1, 3, 1)
    if given:
        model = pyro.poutine.condition(model, data={"weight": torch.tensor(2.0)})
        z = free[..., 0]
        wanted = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(2 * z, 1.0).log_prob(x)
        torch.testing.assert_close(LocalDensity(model, {"z": 1}, (x,), {}, rows=3)(free), wanted)
    else:
        with pytest.raises(ValueError, match="draws 'weight', for which there are no values; fix it by"):
            LocalDensity(model, {"z": 1}, (x,), {}, rows=3)(free)


def test_scales_of_subsampling_do_not_count():
    def model(x):
        with pyro.plate("data", 100, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    free = torch.zeros(1, 2, 1)
    density = LocalDensity(model, {"z": 1}, (torch.zeros(2),), {}, rows=2)
    torch.testing.assert_close(density(free), 2 * dist.Normal(0.0, 1.0).log_prob(free[..., 0]))


def test_a_density_that_changes_from_call_to_call_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            hidden = pyro.sample("hidden", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + hidden, 1.0), obs=x)

    blocked = pyro.poutine.block(model, hide=["hidden"])
    density = LocalDensity(blocked, {"z": 1}, (torch.randn(5),), {}, rows=5)
    with pytest.raises(ValueError, match="changes from call to call at the same latents; fix what it draws"):
        density.settle(torch.zeros(5, 1))


@pytest.mark.parametrize("width", [13, 31, 509])
def test_sizes_of_the_model_that_could_be_rows(monkeypatch, width):
    """Graphs for any number of rows are traced with one of these."""
    monkeypatch.setattr(density_module, "PATIENCE", 0)
    weight = torch.randn(2, width) / width**0.5

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            hidden = (z @ weight).reshape(-1, width).expand(len(x), width).relu()
            pyro.sample("x", dist.Normal(hidden.sum(-1), 1.0), obs=x)

    x, free = torch.randn(7), torch.randn(5, 7, 2)
    density = LocalDensity(model, {"z": 2}, (x,), {}, rows=7, chunk=20)
    wanted = dist.Normal((free @ weight).relu().sum(-1), 1.0).log_prob(x)
    wanted = wanted + dist.Normal(0.0, 1.0).log_prob(free).sum(-1)
    torch.testing.assert_close(density(free), wanted)
    torch.testing.assert_close(density(free[:1]), wanted[:1])
    assert density.graphs.made
    assert not density.graphs.refused
