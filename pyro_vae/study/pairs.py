"""Make what all guides of a study have in common: the data, the networks and the start."""

import math

import torch
from torch import nn

from pyro_vae import data as data_sets
from pyro_vae.arguments import brief, check_numbers
from pyro_vae.data.dataset import STANDARDIZED, require_data_set
from pyro_vae.devices import forked_streams
from pyro_vae.guides import AmortizedFlow, AmortizedMultivariateNormal, AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, Standardize, likelihoods
from pyro_vae.pairs.isolation import Program
from pyro_vae.study.config import StudyConfig
from pyro_vae.study.program import made_pair

FEWEST_HELD_OUT = 2
"""A mean over one observation has no standard error."""
FEWEST_TO_TRAIN = 2

FAMILIES = {"normal": AmortizedNormal, "multivariate": AmortizedMultivariateNormal, "flow": AmortizedFlow}


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


def make_pair(config: StudyConfig, data: data_sets.DataSet, guide: str, seed: int) -> tuple[Program, Program]:
    """A fresh model and the guide of this name (of :attr:`StudyConfig.arms`); for one seed the initial
    weights are the same under every scale map."""
    require_data_set("data", data)
    check_numbers(seed=seed)
    if guide not in config.arms:
        raise ValueError(f"guide is {brief(guide)}; give one of {', '.join(map(repr, config.arms))}")
    family, scale = config.arms[guide]
    if config.program is not None:
        return made_pair(config.program, scale, data.x, seed)
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
        return model, FAMILIES[family](model, encoder, scale=scale, init_scale=config.init_scale)
