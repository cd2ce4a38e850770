"""A LightningModule whose training step is our SVI's: Lightning's loaders, loggers and callbacks around it.

Optimization is manual, because the step has an optimizer of its own; parameters are those of Pyro's store, as
for any program of Pyro. Needs the package lightning.

    python examples/lightning_module.py
"""

import argparse

import lightning
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from sklearn.datasets import load_digits

import pyro_vae
from pyro_vae.guides import AmortizedNormal

PIXELS, Z_DIM = 64, 4


class DigitsVAE(lightning.LightningModule):
    """A model, a guide, and one step of SVI for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        decoder = torch.nn.Sequential(
            torch.nn.Linear(Z_DIM, 64), torch.nn.ReLU(), torch.nn.Linear(64, PIXELS)
        )
        encoder = torch.nn.Sequential(torch.nn.Linear(PIXELS, 64), torch.nn.ReLU())

        def model(x: torch.Tensor) -> None:
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(Z_DIM), 1.0).to_event(1))
                pyro.sample("x", dist.Binomial(16, logits=decoder(z)).to_event(1), obs=x)

        self.model, self.decoder = model, decoder
        self.guide = AmortizedNormal(model, encoder, scale="softplus")
        self.svi = pyro_vae.SVI(model, self.guide, pyro.optim.Adam({"lr": 3e-3}), TraceMeanField_ELBO())
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], _index: int) -> None:
        loss = self.svi.step(batch[0]) / len(batch[0])
        self.losses.append(loss)
        self.log("train_loss", loss, prog_bar=True)

    def validation_step(self, batch: list[torch.Tensor], _index: int) -> None:
        self.log("val_loss", self.svi.evaluate_loss(batch[0]) / len(batch[0]), prog_bar=True)

    def configure_optimizers(self) -> None:
        """None: the step has its own."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()

    pyro.clear_param_store()
    lightning.seed_everything(0, verbose=False)
    x = torch.tensor(load_digits().data, dtype=torch.float32)
    train, held_out = (torch.utils.data.TensorDataset(part) for part in (x[:1500], x[1500:]))
    vae = DigitsVAE()
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(train, batch_size=128, shuffle=True)
    trainer.fit(vae, loader, torch.utils.data.DataLoader(held_out, batch_size=297))
    print(f"held-out loss {float(trainer.callback_metrics['val_loss']):.1f} nats per image")
    report = pyro_vae.diagnose(vae.model, vae.guide, x[1500:1600])
    print(f"log evidence {float(report['log_evidence'].mean()):.1f} nats per image")

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(vae.losses, lw=0.6)
    axes.set(xlabel="step", ylabel="loss (nats per image)", yscale="log")
    figure.savefig("lightning_module.png")
    print("picture: lightning_module.png")


if __name__ == "__main__":
    main()
