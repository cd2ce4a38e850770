"""A MultivariateNormal whose Cholesky factor is told by log σ and a unit triangle."""

import math
from typing import Any, Self

import pyro.distributions
import torch
from torch import Size, Tensor
from torch.distributions import Independent, Normal, constraints, kl_divergence, register_kl

from pyro_vae.guides.noise import NoiseMemory
from pyro_vae.guides.normal import LogScaleNormal


class LogScaleMultivariateNormal(pyro.distributions.MultivariateNormal):
    r"""A Normal with covariance :math:`L L^\top`, :math:`L = \operatorname{diag}(\sigma) A`, A unit lower
    triangular.

    .. math::
        \log q(z) = -\tfrac12 \lVert A^{-1} \operatorname{diag}(\sigma)^{-1} (z - \mu) \rVert^2
                    - \sum_i \log \sigma_i - \tfrac{D}{2} \log 2\pi

    The log determinant is the sum of the given :math:`\log\sigma`: no diagonal is exponentiated and logged
    again. The noise of a draw is remembered while the draw lives, so that the density of a reparameterized
    draw is exact (see :class:`~pyro_vae.guides.normal.LogScaleNormal`). Its KL to independent Normals is
    registered with ``torch.distributions.kl_divergence``, that to a MultivariateNormal is torch's.

    Parameters
    ----------
    loc
        (…, D).
    log_scale
        :math:`\log\sigma`, the log of the diagonal of L, (…, D).
    unit_tril
        A, (…, D, D): 1 on the diagonal, 0 above it (:func:`unit_lower_triangular`).
    validate_args
        As in torch.

    Examples
    --------
    >>> A = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    >>> q = LogScaleMultivariateNormal(torch.zeros(2), torch.zeros(2), A)
    >>> q.covariance_matrix
    tensor([[1.0000, 0.5000],
            [0.5000, 1.2500]])
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "log_scale": constraints.real_vector,
        "unit_tril": pyro.distributions.constraints.unit_lower_cholesky,
    }

    def __init__(
        self, loc: Tensor, log_scale: Tensor, unit_tril: Tensor, validate_args: bool | None = None
    ) -> None:
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], log_scale.shape[:-1], unit_tril.shape[:-2])
        self.loc = loc.expand(*batch_shape, -1)
        # Not broadcast, so that many draws share one matrix.
        self.log_scale, self.unit_tril = log_scale, unit_tril
        self._unbroadcasted_scale_tril = log_scale.exp().unsqueeze(-1) * unit_tril
        self._noise = NoiseMemory()
        # MultivariateNormal's own constructor would want one matrix.
        super(torch.distributions.MultivariateNormal, self).__init__(
            batch_shape, loc.shape[-1:], validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        new: Self = self._get_checked_instance(LogScaleMultivariateNormal, _instance)  # type: ignore[no-untyped-call]
        new.log_scale, new.unit_tril, new._noise = self.log_scale, self.unit_tril, NoiseMemory()
        return super().expand(batch_shape, new)  # type: ignore[no-any-return, no-untyped-call]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        draw = self.loc + self.log_scale.exp() * (self.unit_tril @ eps.unsqueeze(-1)).squeeze(-1)
        self._noise.remember(draw, eps, (self.loc, self.log_scale, self.unit_tril))
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        noise = self._noise.recall(value, (self.loc, self.log_scale, self.unit_tril))
        # The noise is exact, but has the gradient of a reparameterized draw only.
        if noise is not None and ((noise.pathwise and not value.is_leaf) or not torch.is_grad_enabled()):
            eps = noise.eps
        else:
            eps = self._standardized(value)
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * eps.square().sum(-1) - self.log_scale.sum(-1) - constant

    def _standardized(self, value: Tensor) -> Tensor:
        # Half of log σ at a time: 1/σ alone overflows where (z - μ)/σ does not.
        most = math.log(torch.finfo(self.log_scale.dtype).max) - 1
        root = (-0.5 * self.log_scale).clamp_max(most).exp()
        return _solve(self.unit_tril, (value - self.loc) * root * root)

    def entropy(self) -> Tensor:
        constant = 0.5 * self.event_shape[0] * (1 + math.log(2 * math.pi))
        return (self.log_scale.sum(-1) + constant).expand(self.batch_shape)


def unit_lower_triangular(below: Tensor, dim: int) -> Tensor:
    """The unit lower triangular matrices (…, dim, dim) with given entries below the diagonal, row by row.

    Parameters
    ----------
    below
        (…, dim·(dim−1)/2).
    dim
        Rows.

    Examples
    --------
    >>> unit_lower_triangular(torch.tensor([1.0, 2.0, 3.0]), 3)
    tensor([[1., 0., 0.],
            [1., 1., 0.],
            [2., 3., 1.]])
    """
    rows, columns = torch.tril_indices(dim, dim, -1, device=below.device)
    entries = (rows * dim + columns).expand(below.shape)
    # Out of place, for torch.vmap.
    strict = below.new_zeros(*below.shape[:-1], dim * dim).scatter(-1, entries, below)
    return strict.reshape(*below.shape[:-1], dim, dim) + torch.eye(
        dim, dtype=below.dtype, device=below.device
    )


def _solve(unit_tril: Tensor, x: Tensor) -> Tensor:
    """A⁻¹x for vectors x (…, D), with the leading dimensions that A lacks as columns of one solution."""
    leading = x.dim() - unit_tril.dim() + 1
    if leading <= 0:
        return _columns(unit_tril, x.unsqueeze(-1)).squeeze(-1)
    solution = _columns(unit_tril, x.flatten(0, leading - 1).movedim(0, -1))
    return solution.movedim(-1, 0).reshape(*x.shape[:leading], *solution.shape[:-1])


def _columns(unit_tril: Tensor, columns: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(unit_tril, columns, upper=False, unitriangular=True)
    return solution


@register_kl(LogScaleMultivariateNormal, Independent)  # type: ignore[untyped-decorator]
def _kl_to_independent(q: LogScaleMultivariateNormal, p: Independent[Any]) -> Tensor:
    prior = p.base_dist
    if not isinstance(prior, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    # What the correlations add to the KL of the diagonal.
    below = (q.unit_tril.square().sum(-1) - 1) * (q.log_scale.exp() / prior.scale).square()
    diagonal = kl_divergence(LogScaleNormal(q.loc, q.log_scale), prior)
    return (diagonal + 0.5 * below).sum(-1)
