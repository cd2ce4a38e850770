"""``repr`` says what a thing is: guides, models, maps, objectives."""

import pytest
import torch
from torch import nn

from pyro_vae import guides, models, scales, svi


def vae() -> models.VAE:
    return models.VAE(nn.Linear(2, 5), 2, "normal")


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (scales.get("softplus"), ["Softplus(beta=1.0)"]),
        (scales.Floor(scales.get("logvar"), 1e-3), ["Floor(map=LogVar(), min_scale=0.001)"]),
        (guides.LogScaleNormal(torch.zeros(3), torch.zeros(3)), ["LogScaleNormal(", "[3]"]),
        (guides.AutoNormal(vae(), scale="logvar"), ["AutoNormal(scale=LogVar(), init_scale=0.1)"]),
        (
            guides.AutoLowRankMultivariateNormal(vae(), init_scale=0.5),
            ["AutoLowRankMultivariateNormal(scale=Softplus(beta=1.0), init_scale=0.5)"],
        ),
        (vae(), ["VAE(", "latent_dim=2", "likelihood=Normal("]),
        (models.PPCA(torch.eye(3, 2), torch.zeros(3), 0.5), ["PPCA(3 observed, 2 latent, noise_scale=0.5)"]),
        (svi.ELBO(), ["ELBO(num_particles=1, analytic_kl=True, kl_weight=1.0)"]),
        (svi.IWAE(8), ["IWAE(num_particles=8)"]),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_repr_says_what_it_is(thing: object, said: list[str]) -> None:
    for part in said:
        assert part in repr(thing)


def test_an_encoder_guide_says_which_latents_it_found() -> None:
    guide = guides.AmortizedNormal(vae(), nn.Linear(5, 4), scale="logstd", init_scale=0.5)
    assert "scale=LogStd(), init_scale=0.5\n" in repr(guide)
    guide(torch.zeros(2, 5))
    assert "scale=LogStd(), init_scale=0.5, latents={'z': 2}\n" in repr(guide)
