"""Posterior collapse, and what KL warm-up does about it.

At the start of training the decoder does not use z yet, so the KL pulls q(z|x) to the prior before there is
anything to lose; latents that arrive there may never come back. Warm-up gives the KL a weight that grows from
0 to 1. The same VAE with more latents than it needs is fitted with and without, and one with a weight that is
too large, which shows what collapse looks like in the diagnostics. Evidence is that of the unweighted model.

    python examples/kl_warmup.py
"""

import argparse

import torch
from sklearn.datasets import load_digits

import pyro_vae
from pyro_vae import plots
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder
from pyro_vae.svi import ELBO


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--latent-dim", type=int, default=24)
    parser.add_argument("--draws", type=int, default=500, help="importance draws per held-out image")
    args = parser.parse_args()

    images = torch.tensor(load_digits().data > 7, dtype=torch.float32)
    train, held_out = images[:1500], images[1500:]
    batch_size = 64
    warm = max(1, args.epochs // 3 * (len(train) // batch_size))
    weights = {
        "no warm-up": 1.0,
        "warm-up": lambda step: min(1.0, step / warm),
        "weight 4": 4.0,
    }

    found = {}
    print(f"{'active':>20}   {'KL of the latents, largest first':54}{'ELBO':>7}{'log evidence':>14}")
    for name, weight in weights.items():
        torch.manual_seed(0)
        model = VAE(MLPDecoder(args.latent_dim, [128, 128], 64), args.latent_dim, "bernoulli")
        guide = AmortizedNormal(model, MLPEncoder(64, [128, 128]), scale="softplus")
        pyro_vae.fit(
            model,
            guide,
            train,
            epochs=args.epochs,
            batch_size=batch_size,
            lr=2e-3,
            objective=ELBO(kl_weight=weight),
            progress=False,
        )
        units = found[name] = pyro_vae.active_units(model, guide, held_out)
        mean = pyro_vae.diagnose(model, guide, held_out, draws=args.draws).mean()
        kl = sorted(units["kl"].values.tolist(), reverse=True)
        shown = " ".join(f"{value:.2f}" for value in kl[:10]) + (" …" if len(kl) > 10 else "")
        print(
            f"{name:12}{units.active_units:4} of {len(kl):2}   {shown:54}"
            f"{mean['elbo']:7.2f}{mean['log_evidence']:14.2f}"
        )

    figure = plots.plot_units(found)
    figure.savefig("kl_warmup.png")
    print("picture: kl_warmup.png")


if __name__ == "__main__":
    main()
