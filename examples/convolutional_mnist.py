"""A convolutional autoencoder of MNIST, with new binary images at every epoch.

    python examples/convolutional_mnist.py                                (8×8 digits; needs no network)
    python examples/convolutional_mnist.py --set mnist --root folder/with/idx/files
    python examples/convolutional_mnist.py --set fashion-mnist            (downloads from OpenML)

Writes reconstructions, walks through the latent space and draws to --out. Of a larger set start with
--rows 5000 --epochs 5 on a laptop's CPU.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

import pyro_vae
from pyro_vae.data import DynamicBinarization, binarize
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, ConvDecoder, ConvEncoder, MixturePrior, reconstruct, traverse


def picture(rows: list[np.ndarray], path: Path) -> None:
    """A grid of images, (row, column, height, width)."""
    height, width = max(len(row) for row in rows), len(rows)
    figure, axes = plt.subplots(width, height, figsize=(height, width), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            axes[i, j].imshow(image, cmap="gray_r", vmin=0, vmax=1)
    figure.tight_layout(pad=0.2)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", default="digits", choices=["digits", "mnist", "fashion-mnist", "kmnist"])
    parser.add_argument("--root", type=Path, help="folder of IDX files (default: download from OpenML)")
    parser.add_argument("--rows", type=int, default=60_000, help="training images to use")
    parser.add_argument("--held-out", type=int, default=1000, help="test images to evaluate")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--draws", type=int, default=500, help="importance draws per test image")
    parser.add_argument("--out", type=Path, default=Path("runs/convolutional_mnist"))
    args = parser.parse_args()

    if args.set == "digits":
        grey = pyro_vae.data.load("digits", likelihood="continuous-bernoulli")
        parts = pyro_vae.data.split(grey, 0.2)
    else:
        parts = [
            pyro_vae.data.load(args.set, part=part, likelihood="continuous-bernoulli", root=args.root)
            for part in ("train", "test")
        ]
    train, test = parts[0].images[: args.rows], binarize(parts[1].images[: args.held_out])
    image_shape = train.shape[1:]

    torch.manual_seed(0)
    decoder = ConvDecoder(args.latent_dim, [64, 32], image_shape)
    model = VAE(decoder, args.latent_dim, "bernoulli", prior=MixturePrior(args.latent_dim, components=20))
    model.init_output(torch.from_numpy(train))
    guide = AmortizedNormal(model, ConvEncoder(image_shape, [32, 64], 256), scale="softplus")
    fitted = pyro_vae.fit(model, guide, DynamicBinarization(train), epochs=args.epochs, lr=1e-3)

    diagnostics = pyro_vae.diagnose(model, guide, test, draws=args.draws)
    believable = (diagnostics["khat"] < 0.7).mean()
    print(f"loss {float(fitted.history['loss'][-50:].mean()):.1f} nats per image at the end of training")
    print(f"log evidence {float(diagnostics['log_evidence'].mean()):.1f} nats per test image")
    print(
        f"ELBO {float(diagnostics['elbo'].mean()):.1f}; k̂ below 0.7 for {float(believable):.0%} of the images"
    )

    shown = torch.from_numpy(test[:10]).to(next(model.parameters()).device)
    walk = traverse(model, guide.median(shown)["z"][0], dims=range(3), steps=10)
    rows = [shown, reconstruct(model, guide, shown, draws=20), *walk, model.sample(10)]
    args.out.mkdir(parents=True, exist_ok=True)
    picture([row[:, 0].cpu().numpy() for row in rows], args.out / "images.png")
    print(
        f"rows of {args.out / 'images.png'}: test images, reconstructions, walks from the first image, draws"
    )


if __name__ == "__main__":
    main()
