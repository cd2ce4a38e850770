"""A model whose posterior and evidence are known exactly."""

import math
from numbers import Real
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.arguments import brief, positive_integer, require_finite, require_rows, require_tensor


class PPCA(PyroModule):
    r"""Probabilistic principal component analysis, the ground truth for every guide and diagnostic.

    .. math::

        z &\sim \mathrm{Normal}(0, I_q), \qquad x \mid z \sim \mathrm{Normal}(W z + \mu,\; s^2 I_D) \\
        z \mid x &\sim \mathrm{Normal}(M^{-1} W^\top (x - \mu),\; s^2 M^{-1}) \\
        x &\sim \mathrm{Normal}(\mu,\; W W^\top + s^2 I_D), \qquad M = W^\top W + s^2 I_q

    A Pyro model, called ``model(x)``, with sites "z" and "x" in the plate "data" (dim −1). Its parameters are
    constants (buffers). The posterior has the same covariance for every x; that covariance is diagonal if the
    columns of W are orthogonal, as `fit_exact` makes them, and dense after `rotated`.

    Parameters
    ----------
    weight
        W, (D, q).
    loc
        μ, (D,).
    noise_scale
        s, a positive number.

    References
    ----------
    Tipping and Bishop (1999), Probabilistic Principal Component Analysis.

    Examples
    --------
    >>> model = PPCA(torch.tensor([[2.0], [0.0]]), torch.zeros(2), 1.0)
    >>> x = torch.tensor([[5.0, 0.0]])
    >>> model.posterior(x).mean, model.posterior(x).variance
    (tensor([[2.]]), tensor([[0.2000]]))
    >>> model.log_evidence(x)
    tensor([-5.1426])
    """

    weight: Tensor
    loc: Tensor
    noise_scale: Tensor

    def __init__(self, weight: Tensor, loc: Tensor, noise_scale: Tensor | float) -> None:
        super().__init__()
        require_tensor("weight", weight, floating=True)
        require_tensor("loc", loc)
        if isinstance(noise_scale, bool) or not isinstance(noise_scale, Real | Tensor):
            raise TypeError(f"noise_scale is {brief(noise_scale)}; give one positive number")
        noise_scale = torch.as_tensor(noise_scale, dtype=weight.dtype, device=weight.device)
        if weight.dim() != 2 or loc.shape != weight.shape[:1]:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)} and loc {tuple(loc.shape)}; give (D, q) and (D,)"
            )
        require_finite("weight", weight)
        require_finite("loc", loc)
        if noise_scale.dim() != 0 or not 0 < noise_scale < math.inf:
            raise ValueError(f"noise_scale is {noise_scale.tolist()}; give one positive number")
        self.register_buffer("weight", weight)
        self.register_buffer("loc", loc)
        self.register_buffer("noise_scale", noise_scale)

    @property
    def latent_dim(self) -> int:
        """Size of z."""
        return self.weight.shape[1]

    def extra_repr(self) -> str:
        """Part of ``repr``."""
        observed = len(self.loc)
        return f"{observed} observed, {self.latent_dim} latent, noise_scale={float(self.noise_scale):.4g}"

    @classmethod
    def fit_exact(cls, x: Tensor, latent_dim: int, *, ddof: int = 1) -> Self:
        """The maximum-likelihood model of data, in closed form.

        With eigenvalues λ and eigenvectors U of the data's covariance, s² is the mean of the discarded
        eigenvalues and W = U (Λ − s² I)^½. Computed in float64, returned in the dtype of ``x``.

        Parameters
        ----------
        x
            Data, (n, D).
        latent_dim
            q, less than D.
        ddof
            The covariance divides by n − ddof. The default 1 is scikit-learn's, so that the evidence is that
            of its ``PCA.score``; 0 is the exact maximum of the likelihood.

        Raises
        ------
        ValueError
            If q is not in 1…D−1, there are no two rows, or no noise is left beside q components.
        """
        require_tensor("x", x, floating=True)
        if x.dim() != 2 or len(x) < 2 or not 1 <= latent_dim < x.shape[1]:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and latent_dim is {latent_dim}; give x of shape (n, D) with "
                "n ≥ 2 and latent_dim in 1…D−1"
            )
        require_finite("x", x)
        loc = x.double().mean(0)
        _, singular, rows = torch.linalg.svd(x.double() - loc, full_matrices=False)
        eigenvalues = singular.square() / (len(x) - ddof)
        noise_variance = eigenvalues[latent_dim:].sum() / (x.shape[1] - latent_dim)
        rank = int((singular > singular[0] * max(x.shape) * torch.finfo(x.dtype).eps).sum())
        if rank <= latent_dim:
            raise ValueError(
                f"latent_dim is {latent_dim}, and the data have rank {rank}: no variance is left for the "
                "noise; give a smaller latent_dim"
            )
        # the sign of an eigenvector is arbitrary: its largest entry is made positive
        directions = rows[:latent_dim]
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        weight = (directions * largest.sign()).mT * (eigenvalues[:latent_dim] - noise_variance).sqrt()
        return cls(weight.to(x.dtype), loc.to(x.dtype), noise_variance.sqrt().to(x.dtype))

    def rotated(self, rotation: Tensor) -> Self:
        """The same p(x) with latents rotated: W becomes W R, and the posterior dense.

        Parameters
        ----------
        rotation
            R, orthogonal (q, q).
        """
        require_tensor("rotation", rotation)
        identity = torch.eye(self.latent_dim, dtype=rotation.dtype, device=rotation.device)
        if rotation.shape != identity.shape or not torch.allclose(
            rotation @ rotation.mT, identity, atol=1e-5
        ):
            raise ValueError(
                f"rotation is not orthogonal; give an orthogonal matrix of shape {tuple(identity.shape)}"
            )
        return type(self)(self.weight @ rotation, self.loc, self.noise_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Sample z for every row of ``x`` (n, D), and observe ``x``."""
        self._require_event_shape(x)
        with pyro.plate("data", len(x), dim=-1):
            origin = self.weight.new_zeros(self.latent_dim)
            z = pyro.sample("z", dist.Normal(origin, torch.ones_like(origin)).to_event(1))
            observed: Tensor = pyro.sample("x", self.decode(z), obs=x)
        return observed

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x|z) for latents (..., q)."""
        observation: dist.TorchDistribution = dist.Normal(
            z @ self.weight.mT + self.loc, self.noise_scale
        ).to_event(1)
        return observation

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` draws of x from the model, (n, D)."""
        positive_integer("n", n)
        x: Tensor = self.decode(torch.randn(n, self.latent_dim).to(self.weight)).sample()
        return x

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z|x), exactly: batch shape (n,), event shape (q,)."""
        self._require_event_shape(x)
        precision = self._posterior_precision()
        projected = (x - self.loc) @ self.weight / self.noise_scale.square()
        loc = torch.linalg.solve(precision, projected.mT).mT
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of every row, exactly, in nats: (n,)."""
        self._require_event_shape(x)
        covariance_diagonal = self.noise_scale.square().expand_as(self.loc)
        evidence: Tensor = dist.LowRankMultivariateNormal(
            self.loc, self.weight, covariance_diagonal
        ).log_prob(x)
        return evidence

    def mean_field_gap(self) -> Tensor:
        r"""What the best guide with independent latents loses, in nats per observation, the same for every x.

        .. math:: \tfrac12 \big(\textstyle\sum_i \log P_{ii} - \log|P|\big), \qquad P = M / s^2
        """
        precision = self._posterior_precision()
        return (precision.diagonal().log().sum() - torch.logdet(precision)) / 2

    def _require_event_shape(self, x: Tensor) -> None:
        require_rows("x", x, self.loc.shape, "the model gives observations")

    def _posterior_precision(self) -> Tensor:
        identity = torch.eye(self.latent_dim, dtype=self.weight.dtype, device=self.weight.device)
        return self.weight.mT @ self.weight / self.noise_scale.square() + identity
