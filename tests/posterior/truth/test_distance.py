"""Coverage at real data, by exact draws of the posterior."""

import numpy as np
import pytest
from scipy import stats

from pyro_vae.models import PPCA
from pyro_vae.posterior import from_pyro_svi, local_coverage, reference_posterior
from tests.posterior.gaussians import GaussianGuide, dense, observations

pytestmark = pytest.mark.arviz


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_coverage_of_each_observation(factor):
    model = dense()
    x = observations(model, 6)
    exact = PPCA(model.weight, 0 * x[0], 1.0)
    tree = from_pyro_svi(model, GaussianGuide.exact(model, factor), x, draws=4000)
    judge = reference_posterior(exact, x, draws=4000, observations=[1, 4])
    found = local_coverage(tree, judge)
    assert found["observation"].values.tolist() == [1, 4]
    expected = 2 * stats.norm.cdf(stats.norm.ppf(0.95) * factor) - 1
    np.testing.assert_allclose(found["coverage"].sel(level=0.9), expected, atol=0.04)
    np.testing.assert_allclose(found["below"], 0.5, atol=0.05)


def test_what_is_beside_shows_below_the_median():
    model = dense()
    x = observations(model, 2)
    shifted = GaussianGuide.exact(model)
    shifted.gain.data = shifted.gain.data * 0
    judge = from_pyro_svi(model, GaussianGuide.exact(model), x, draws=4000)
    found = local_coverage(from_pyro_svi(model, shifted, x, draws=4000), judge)
    scale = model.covariance.diagonal().sqrt()
    expected = stats.norm.cdf(-(model.mean(x) / scale).numpy())
    np.testing.assert_allclose(found["below"], expected, atol=0.05)
