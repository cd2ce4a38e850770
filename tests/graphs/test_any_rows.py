"""A graph traced with one number of rows says for any number what the function says."""

import pytest
import torch
from torch.distributions import Normal

from pyro_vae.graphs.any_rows import FixedRowsError
from pyro_vae.graphs.replay import make_replay
from pyro_vae.graphs.tracing import capture

WEIGHT = torch.randn(3, 4, dtype=torch.float64)


def plates(x):
    inner = x.unsqueeze(1).expand(len(x), 5, 3).reshape(len(x) * 5, 3) @ WEIGHT
    return inner.reshape(len(x), 5, 4).sum((1, 2))


FUNCTIONS = {
    "network": lambda x: torch.relu(x @ WEIGHT).sum(-1),
    "density": lambda x: Normal(x.new_zeros(len(x), 3), torch.ones(3)).log_prob(x).sum(-1),
    "constants": lambda x: torch.ones_like(x).cumsum(-1).sum(-1) + x[:, 0] * torch.full((len(x),), 2.0),
    "rows in a product": plates,
    "slices": lambda x: torch.cat([x[: len(x) // 1], x.flip(1)], 1).split(3, 1)[1].sum(-1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rows", [1, 12, 13, 100])
def test_any_number_of_rows(name, rows):
    function = FUNCTIONS[name]
    replay = make_replay(capture(lambda x: (function(x),), [torch.randn(13, 3)]), rows=13)
    x = torch.randn(rows, 3)
    torch.testing.assert_close(replay(x)[0], function(x))


def test_what_has_rows_of_its_own_is_refused():
    with pytest.raises(FixedRowsError):
        make_replay(capture(lambda x: (x + torch.arange(13.0).cumsum(0),), [torch.randn(13)]), rows=13)
    held = torch.randn(13)
    with pytest.raises(FixedRowsError):
        make_replay(capture(lambda x: (x + held,), [torch.randn(13)]), rows=13)
