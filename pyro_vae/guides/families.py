"""Two families of Normals over the free coordinates of an observation: independent, and with full covariance.

Their parameters are ``loc`` and ``log_scale``, (…, D), and for the full one ``tril``, the entries below the
diagonal of A in the Cholesky factor diag(exp(log_scale)) · A, row by row.
"""

from collections.abc import Iterator
from typing import ClassVar, Protocol

from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor

from pyro_vae.guides.latents.sites import LocalSite
from pyro_vae.guides.multivariate import LogScaleMultivariateNormal, unit_lower_triangular
from pyro_vae.guides.normal import LogScaleNormal

Sites = tuple[LocalSite, ...]
Parameters = dict[str, Tensor]


class Family(Protocol):
    """What a guide needs to know of a family."""

    factorizes: ClassVar[bool]
    """Whether different latents of an observation are independent."""

    def joint(self, parameters: Parameters) -> TorchDistribution:
        """q over the free coordinates of all latents, event shape (D,)."""

    def marginals(
        self, sites: Sites, parameters: Parameters, *, in_plates: bool = False
    ) -> dict[str, TorchDistribution]:
        """q of each latent by itself, on its support. Plates within an observation are event dimensions,
        unless ``in_plates``, which factorizing families know."""

    def scale(self, parameters: Parameters) -> Tensor:
        """Standard deviation of each free coordinate."""


class _Diagonal:
    factorizes: ClassVar[bool] = True

    def joint(self, parameters: Parameters) -> TorchDistribution:
        q: TorchDistribution = LogScaleNormal(parameters["loc"], parameters["log_scale"])
        return q.to_event(1)  # type: ignore[no-any-return]

    def marginals(
        self, sites: Sites, parameters: Parameters, *, in_plates: bool = False
    ) -> dict[str, TorchDistribution]:
        locs, log_scales = split(sites, parameters["loc"]), split(sites, parameters["log_scale"])
        return {
            site.name: site.normal(loc, log_scale, in_plates=in_plates)
            for (site, loc), (_, log_scale) in zip(locs, log_scales, strict=True)
        }

    def scale(self, parameters: Parameters) -> Tensor:
        return parameters["log_scale"].exp()


class _Full:
    factorizes: ClassVar[bool] = False

    def joint(self, parameters: Parameters) -> LogScaleMultivariateNormal:
        loc = parameters["loc"]
        below = parameters.get("tril", loc[..., :0])
        return LogScaleMultivariateNormal(
            loc, parameters["log_scale"], unit_lower_triangular(below, loc.shape[-1])
        )

    def marginals(
        self, sites: Sites, parameters: Parameters, *, in_plates: bool = False
    ) -> dict[str, TorchDistribution]:
        if parameters["loc"].shape[-1] == 1:
            return DIAGONAL.marginals(sites, parameters, in_plates=in_plates)
        joint = self.joint(parameters)
        if len(sites) == 1:
            return {sites[0].name: sites[0].transformed(joint)}
        locs, columns = split(sites, joint.loc), split(sites, joint.scale_tril.mT)
        return {
            site.name: _marginal(site, loc, columns.mT)
            for (site, loc), (_, columns) in zip(locs, columns, strict=True)
        }

    def scale(self, parameters: Parameters) -> Tensor:
        deviations: Tensor = self.joint(parameters).stddev
        return deviations


DIAGONAL: Family = _Diagonal()
FULL: Family = _Full()


def split(sites: Sites, joint: Tensor) -> Iterator[tuple[LocalSite, Tensor]]:
    """The free coordinates of each latent, (…, D) to (…, size)."""
    return zip(sites, joint.split([site.size for site in sites], dim=-1), strict=True)


def _marginal(site: LocalSite, loc: Tensor, rows: Tensor) -> TorchDistribution:
    """The Normal of one latent, given its rows of the Cholesky factor of all."""
    if site.size == 1:
        return site.normal(loc, rows.square().sum(-1).log() / 2)
    return site.transformed(MultivariateNormal(loc, covariance_matrix=rows @ rows.mT))
