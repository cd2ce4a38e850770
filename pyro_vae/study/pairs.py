"""What all guides of a study have in common: the data, the networks and the start."""

import torch

from pyro_vae import data as data_sets
from pyro_vae.arguments import check_numbers
from pyro_vae.data.dataset import require_data_set
from pyro_vae.devices import forked_streams
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods
from pyro_vae.study.config import StudyConfig

__all__ = ["make_pair", "split_data"]


def split_data(everything: data_sets.DataSet, share: float) -> tuple[data_sets.DataSet, data_sets.DataSet]:
    """Training and held-out data; real-valued ones in units of the training data's standard deviations."""
    require_data_set("data", everything)
    train, held_out = data_sets.split(everything, share, seed=0)
    if everything.likelihood in ("normal", "student-t"):
        return data_sets.standardize(train), data_sets.standardize(held_out, like=train)
    return train, held_out


def make_pair(
    config: StudyConfig, data: data_sets.DataSet, scale: str, seed: int
) -> tuple[VAE, AmortizedNormal]:
    """A fresh model and guide; for one seed the initial weights are the same under every scale map."""
    require_data_set("data", data)
    check_numbers(seed=seed)
    features = data.x.shape[1]
    likelihood = likelihoods.get(data.likelihood, **data.likelihood_args)
    with forked_streams():
        torch.manual_seed(seed)
        encoder = MLPEncoder(features, config.hidden)
        decoder = MLPDecoder(config.latent_dim, config.hidden[::-1], features * likelihood.outputs)
        model = VAE(decoder, config.latent_dim, likelihood)
        model.init_output(torch.as_tensor(data.x))
        guide = AmortizedNormal(model, encoder, scale=scale, init_scale=config.init_scale)
    return model, guide
