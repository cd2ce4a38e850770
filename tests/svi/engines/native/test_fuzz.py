"""Random networks, shapes, maps, likelihoods and objectives: the native steps are those of Pyro."""

import pytest

from tests.svi.engines.native.cases import assert_follows_eager, needs_compiler, random_case

pytestmark = needs_compiler


@pytest.mark.parametrize("seed", range(6))
def test_a_few_random_pairs_follow_pyro(seed: int) -> None:
    assert_follows_eager(random_case(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 226))
def test_random_pairs_follow_pyro(seed: int) -> None:
    assert_follows_eager(random_case(seed))
