"""How far is the guide from the posterior? NUTS on a few observations is the judge.

A VAE is fitted to handwritten digits. Then the decoder is held fixed and Pyro's NUTS samples the posterior
of a few held-out images; the guide's draws are compared with those, latent by latent, and so are the draws
that `repair` makes of them.

    python examples/compare_nuts.py
"""

import argparse

import torch
from sklearn.datasets import load_digits

import pyro_vae
from pyro_vae import plots
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--images", type=int, default=3, help="held-out images to sample by NUTS")
    parser.add_argument("--latent-dim", type=int, default=4)
    parser.add_argument("--draws", type=int, default=500, help="of NUTS, in each of four chains")
    parser.add_argument("--warmup", type=int, default=300, help="of each chain")
    args = parser.parse_args()

    images = torch.tensor(load_digits().data > 7, dtype=torch.float32)
    train, held_out = images[:1500], images[1500 : 1500 + args.images]

    torch.manual_seed(0)
    model = VAE(MLPDecoder(args.latent_dim, [64], 64), args.latent_dim, "bernoulli")
    guide = AmortizedNormal(model, MLPEncoder(64, [64, 64]))
    pyro_vae.fit(model, guide, train, epochs=args.epochs, lr=2e-3, progress=False)

    reference = pyro_vae.reference_posterior(
        model, held_out, method="nuts", draws=args.draws, warmup=args.warmup
    )
    convergence = reference["convergence"]
    print(
        f"NUTS: largest R-hat {float(convergence['rhat'].max()):.3f}, smallest effective sample size "
        f"{float(convergence['ess'].min()):.0f}, {convergence.attrs['divergences']} divergences"
    )
    trees = {
        "guide": pyro_vae.from_pyro_svi(model, guide, held_out),
        "repaired": pyro_vae.repair(model, guide, held_out),
    }
    khat = pyro_vae.diagnose(model, guide, held_out)["khat"].values
    steps = trees["repaired"]["repair"]["step"].values
    print("mean over the latents of each image, in standard deviations of NUTS")
    print("image   k̂ of guide   draws         |Δ mean|   sd ratio   Wasserstein-1")
    errors = {name: pyro_vae.posterior_error(tree, reference).mean("latent") for name, tree in trees.items()}
    for i in range(args.images):
        for name, error in errors.items():
            row = error.isel(observation=i)
            source = f"repair: {steps[i]}" if name == "repaired" else name
            print(
                f"{i:5}{khat[i]:13.2f}   {source:14}"
                f"{row['mean_error']:8.2f}{row['sd_ratio']:11.2f}{row['wasserstein']:16.2f}"
            )

    figure = plots.plot_forest({"NUTS": reference, **trees}, observations=[0])
    figure.savefig("compare_nuts.png")
    print("picture: compare_nuts.png")


if __name__ == "__main__":
    main()
