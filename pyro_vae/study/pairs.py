"""What all guides of a study have in common: the data, the networks and the start."""

import math

import torch
from torch import nn

from pyro_vae import data as data_sets
from pyro_vae.arguments import check_numbers
from pyro_vae.data.dataset import STANDARDIZED, require_data_set
from pyro_vae.devices import forked_streams
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, Standardize, likelihoods
from pyro_vae.study.config import StudyConfig

FEWEST_HELD_OUT = 2
"""A mean over one observation has no standard error."""
FEWEST_TO_TRAIN = 2


def split_data(everything: data_sets.DataSet, share: float) -> tuple[data_sets.DataSet, data_sets.DataSet]:
    """Training and held-out data; real-valued ones in units of the training data's standard deviations."""
    require_data_set("data", everything)
    count = round(share * len(everything))
    if count < FEWEST_HELD_OUT or len(everything) - count < FEWEST_TO_TRAIN:
        enough = len(everything) >= FEWEST_HELD_OUT + FEWEST_TO_TRAIN
        least = math.ceil(100 * FEWEST_HELD_OUT / max(1, len(everything))) / 100
        remedy = f"give held_out={least:g} (--held-out {least:g})" if enough else "give more rows"
        raise ValueError(
            f"held_out is {share:g} and {everything.name} has {len(everything)} rows, so {count} would be "
            f"held out and {len(everything) - count} trained on; at least {FEWEST_HELD_OUT} "
            f"and {FEWEST_TO_TRAIN} are needed; {remedy}"
        )
    train, held_out = data_sets.split(everything, share, seed=0)
    if everything.likelihood in STANDARDIZED:
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
        encoder: nn.Module = MLPEncoder(features, config.hidden, activation=config.activation)
        decoder = MLPDecoder(
            config.latent_dim,
            config.hidden[::-1],
            features * likelihood.outputs,
            activation=config.activation,
        )
        model = VAE(decoder, config.latent_dim, likelihood)
        model.init_output(torch.as_tensor(data.x))
        if config.standardize:
            encoder = nn.Sequential(Standardize(torch.as_tensor(data.x)), encoder)
        guide = AmortizedNormal(model, encoder, scale=scale, init_scale=config.init_scale)
    return model, guide
