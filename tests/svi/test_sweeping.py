"""Seeds in processes of joblib."""

import joblib
import numpy as np
import pytest

from pyro_vae.svi import sweep
from tests.svi.pairs import PAIRS, observations
from tests.svi.test_vectorized import OPTIONS, maker, one_by_one


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["dropout", "functions"])
def test_seeds_in_processes_are_the_fits_of_each(name: str) -> None:
    seeds, options = [1, 2], {"engine": "eager"}
    with joblib.parallel_config(n_jobs=2):
        fits = sweep(maker(PAIRS[name]), seeds, observations(40), **OPTIONS, **options)
    for a, b in zip(fits, one_by_one(PAIRS[name], seeds, **options), strict=True):
        assert (a.engine, a.seed) == ("eager", b.seed)
        np.testing.assert_allclose(a.history["loss"], b.history["loss"], rtol=1e-10)
