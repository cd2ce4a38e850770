"""A variational autoencoder as a step of scikit-learn's pipelines: scale, encode, classify.

    python examples/sklearn_transformer.py

To copy: ``clone``, ``Pipeline`` and ``GridSearchCV`` ask for no more than the constructor's arguments under
their names, and ``fit_``.
"""

import argparse
from typing import Any, Self

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

import pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder


class VAETransformer(TransformerMixin, BaseEstimator):
    """Posterior means of a VAE's latents as features."""

    def __init__(self, latent_dim: int = 8, hidden: int = 64, epochs: int = 30, seed: int = 0) -> None:
        self.latent_dim, self.hidden, self.epochs, self.seed = latent_dim, hidden, epochs, seed

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002 - what scikit-learn calls them
        """Fit model and guide to the rows of X."""
        x = torch.from_numpy(validate_data(self, X, dtype=np.float32))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = VAE(MLPDecoder(self.latent_dim, [self.hidden], x.shape[1]), self.latent_dim, "normal")
            guide = AmortizedNormal(model, MLPEncoder(x.shape[1], [self.hidden]))
        options = {"epochs": self.epochs, "lr": 5e-3, "seed": self.seed, "progress": False}
        self.fit_ = pyro_vae.fit(model, guide, x, **options)
        return self

    @torch.no_grad()
    def transform(self, X: Any) -> Any:
        """The mean of q(z|x) of each row."""
        check_is_fitted(self)
        x = torch.from_numpy(validate_data(self, X, dtype=np.float32, reset=False))
        return self.fit_.guide.posterior(x).mean.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--latents", type=int, nargs="+", default=[2, 4, 8])
    given = parser.parse_args()
    digits, classify = load_digits(), LogisticRegression(max_iter=500)
    steps = make_pipeline(StandardScaler(), VAETransformer(epochs=given.epochs), classify)
    search = GridSearchCV(steps, {"vaetransformer__latent_dim": given.latents}, cv=3)
    found = search.fit(digits.data, digits.target).cv_results_
    for latents, score in zip(given.latents, found["mean_test_score"], strict=True):
        print(f"{latents} latents: {score:.1%} of the held-out digits are told right")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(given.latents, found["mean_test_score"], found["std_test_score"], marker="o", capsize=3)
    axes.set(xlabel="latent dimensions", ylabel="digits told right", xticks=given.latents, ylim=(0, 1))
    axes.set_title("posterior means as features, mean and spread of 3 folds", fontsize=10)
    figure.savefig("sklearn_transformer.png", dpi=110)
    print("picture: sklearn_transformer.png")


if __name__ == "__main__":
    main()
