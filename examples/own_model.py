"""A guide imported into a Pyro program that knows nothing of this library: your model, Pyro's SVI loop.

The model is an item response model, as in educational testing: students have an ability z, questions a
difficulty and a discrimination, and the answer is right with probability sigmoid(discrimination · (z −
difficulty)). The guide reads a student's answers. Nothing changes but the line that makes the guide.

    python examples/own_model.py
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO

from pyro_vae.guides import AmortizedNormal


def model(answers: torch.Tensor) -> None:
    questions = answers.shape[-1]
    difficulty = pyro.param("difficulty", torch.zeros(questions))
    discrimination = pyro.param("discrimination", torch.ones(questions), constraint=constraints.positive)
    with pyro.plate("students", len(answers)):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        logits = discrimination * (ability.unsqueeze(-1) - difficulty)
        pyro.sample("answers", dist.Bernoulli(logits=logits).to_event(1), obs=answers)


def simulated(students: int, questions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Answers, and the abilities and difficulties that they come from."""
    ability = torch.randn(students)
    difficulty = torch.linspace(-2, 2, questions)
    discrimination = 0.7 + torch.rand(questions)
    logits = discrimination * (ability[:, None] - difficulty)
    return torch.bernoulli(logits.sigmoid()), ability, difficulty


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()

    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    answers, ability, difficulty = simulated(args.students, args.questions)

    encoder = torch.nn.Sequential(torch.nn.Linear(args.questions, 64), torch.nn.ELU())
    guide = AmortizedNormal(model, encoder, scale="softplus", init_scale=0.5)  # it finds "ability" itself

    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.01}), TraceMeanField_ELBO())
    for step in range(args.steps):
        loss = svi.step(answers)
        if step % 500 == 0:
            print(f"step {step}: ELBO {-loss / args.students:.3f} nats per student")
    print(f"step {args.steps}: ELBO {-loss / args.students:.3f} nats per student")

    q = guide.posterior(answers)  # a Normal for each student, outside of any Pyro program
    inside = ((ability - q.mean).abs() < 1.645 * q.stddev).float().mean()
    print(f"ability: correlation of posterior mean and truth {correlation(q.mean.detach(), ability):.3f}")
    print(f"ability: 90% intervals hold the truth for {inside:.0%} of the students")
    found = pyro.param("difficulty").detach()
    print(f"difficulty: correlation with the truth {correlation(found, difficulty):.3f}")

    draws = Predictive(guide, num_samples=500)(answers)["ability"]  # Pyro's own tools take the guide
    best = int(draws.mean(0).argmax())
    print(f"student {best} is the best with probability {(draws.argmax(1) == best).float().mean():.2f}")

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    loc, spread = q.mean.detach()[:100], 1.645 * q.stddev.detach()[:100]
    axes.errorbar(ability[:100], loc, spread, fmt=".", lw=0.8)
    axes.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
    axes.set(xlabel="true ability of a student", ylabel="posterior mean and 90% interval")
    figure.savefig("own_model.png")
    print("picture: own_model.png")


if __name__ == "__main__":
    main()
