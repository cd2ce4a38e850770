"""The test of uniformity has the level that it tells, and sees ends and middle."""

import numpy as np
import pytest

from pyro_vae.posterior.simulated.uniformity import uniform_p

pytestmark = pytest.mark.arviz


@pytest.mark.parametrize("n", [50, 400])
def test_level(n):
    rng = np.random.default_rng(1)
    p = np.array([uniform_p(rng.random(n)) for _ in range(500)])
    for level in (0.05, 0.2, 0.5):
        assert (p < level).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 500) + 0.02)


def test_power():
    normal = np.random.default_rng(2).normal(size=1000)
    from scipy.stats import norm

    for number in (norm.cdf(1.25 * normal), norm.cdf(normal / 1.25), norm.cdf(normal + 0.2)):
        assert uniform_p(number) < 1e-3


def test_what_lies_at_an_end_has_no_chance():
    assert uniform_p(np.zeros(100)) == 0
    assert uniform_p(np.ones(100)) == 0
    assert uniform_p(np.full(100, 0.5)) < 1e-6
