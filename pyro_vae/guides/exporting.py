"""An encoder guide as a plain module of tensors, for ``torch.export``, ONNX and whatever serves models."""

from typing import Any

from torch import Tensor, nn

from pyro_vae.arguments import kind
from pyro_vae.guides.encoder_guide import EncoderGuide


class PosteriorParameters(nn.Module):
    r"""The parameters of q(z|x) as a function of x, with nothing of Pyro in it.

    A distribution is no tensor and cannot be exported; what it is made of can. For
    :class:`~pyro_vae.guides.AmortizedNormal` these are ``loc`` and ``log_scale`` (batch, D), and for real
    latents :math:`q(z|x) = \mathcal{N}(\mathrm{loc}, \operatorname{diag} \exp(2\,\mathrm{log\_scale}))`;
    the multivariate guide adds ``tril``, the flow ``context``. ``guide.posterior_from(parameters)`` makes the
    distribution of them again.

    Parameters
    ----------
    guide
        An encoder guide that was called or fitted. It is held, not copied, and put into evaluation mode.

    Raises
    ------
    TypeError
        If ``guide`` is no encoder guide.
    ValueError
        If it has not seen its model's latents yet.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> from pyro_vae.guides import AmortizedNormal
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])
    >>> guide = AmortizedNormal(model, torch.nn.Linear(3, 16))
    >>> x = torch.randn(5, 3)
    >>> q = guide.posterior(x)
    >>> rows = {0: torch.export.Dim("rows", min=1)}
    >>> exported = torch.export.export(PosteriorParameters(guide), (x,), dynamic_shapes=((rows,),))
    >>> parameters = exported.module()(x[:2])
    >>> bool(torch.allclose(parameters["loc"], q.mean[:2]))
    True
    >>> bool(torch.allclose(parameters["log_scale"].exp(), q.stddev[:2]))
    True
    """

    def __init__(self, guide: EncoderGuide) -> None:
        if not isinstance(guide, EncoderGuide):
            raise TypeError(
                f"guide is {kind(guide)}; give an encoder guide, such as AmortizedNormal: others "
                "have no parameters that are a function of x"
            )
        if not guide.sites:
            raise ValueError(
                "guide was never called, and so knows no latents; fit it, or call guide.posterior(x) once"
            )
        super().__init__()
        self.guide = guide
        self.eval()

    def forward(self, *args: Tensor) -> dict[str, Tensor]:
        """The parameters for each observation, by name, of what the encoder takes."""
        guide: Any = self.guide
        parameters: dict[str, Tensor] = guide.local_parameters(*args)
        return parameters
