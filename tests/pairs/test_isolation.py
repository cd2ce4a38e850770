"""What ``isolated`` keeps apart."""

import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder
from pyro_vae.pairs import isolation
from pyro_vae.pairs.isolation import (
    empty_store,
    isolated,
    modules_of,
    one_at_a_time,
    owner,
    untouched_buffers,
)
from pyro_vae.svi import fit
from tests.processes import Forked
from tests.svi.pairs import PAIRS, TutorialVAE, observations


def test_functions_see_the_users_parameters_and_cannot_change_the_store() -> None:
    pyro.param("a", torch.tensor(3.0))

    def program() -> float:
        pyro.param("b", torch.tensor(1.0))
        return float(pyro.param("a").detach())

    with isolated(program, program):
        assert program() == 3.0
    assert list(pyro.get_param_store()) == ["a"]
    module = torch.nn.Linear(1, 1)
    with isolated(module, module):
        assert list(pyro.get_param_store()) == []


def test_a_state_is_filled_and_can_be_used_again() -> None:
    def program() -> torch.Tensor:
        return pyro.param("a", torch.rand(()), constraint=dist.constraints.positive)

    state = empty_store()
    with isolated(program, program, state=state, seed=1):
        first = program().detach()
    with isolated(program, program, state=state, seed=2):
        assert torch.equal(program().detach(), first)


def test_streams_and_flags_come_back_after_an_error() -> None:
    pyro.enable_validation(True)
    before = torch.get_rng_state()
    try:
        with isolated(print, print, seed=1):
            torch.randn(3)
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(torch.get_rng_state(), before)
    assert dist.is_validation_enabled()


def test_modules_behind_programs() -> None:
    vae = TutorialVAE()
    assert owner(vae.model) is vae
    assert modules_of(vae.model, vae.guide, print) == [vae]


def test_a_guide_can_be_fitted_to_a_frozen_model_without_a_warning() -> None:
    model = VAE(MLPDecoder(2, [8], 5), 2, "bernoulli")
    model.requires_grad_(False)
    frozen = [p.clone() for p in model.parameters()]
    guide = AmortizedNormal(model, MLPEncoder(5, [8]))
    fitted = fit(model, guide, torch.ones(20, 5), steps=3, progress=False)
    assert fitted.history.sizes["step"] == 3
    assert all(torch.equal(a, b) for a, b in zip(frozen, model.parameters(), strict=True))


def test_fits_in_threads_take_turns() -> None:
    """Each ends with the numbers that it has alone: neither streams nor stores meet."""

    def fitted(name: str, seed: int) -> list[float]:
        with one_at_a_time():
            torch.manual_seed(seed)
            pair = PAIRS[name]()
        history = fit(pair.model, pair.guide, observations(32), epochs=3, batch_size=8, seed=seed).history
        return [float(loss) for loss in history["loss"]]

    jobs = [("functions", 1), ("dropout", 2), ("functions", 3), ("normal", 4)]
    alone = [fitted(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: fitted(*job), jobs))
    assert together == alone


def test_a_thread_that_waits_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "SECONDS_OF_SILENCE", 0.01)
    entered = threading.Event()

    def wait() -> None:
        with one_at_a_time():
            entered.set()

    with caplog.at_level(logging.INFO), one_at_a_time():
        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(0.3)
    thread.join(10)
    assert entered.is_set()
    assert "this thread waits for another that runs a model" in caplog.text


def fork_while_another_thread_fits() -> None:
    """Exits with 0 if fits of the child are those that were made before the other thread began."""

    def fitted(engine: str) -> list[float]:
        torch.manual_seed(1)
        pair = PAIRS["normal"]()
        options: dict[str, Any] = {"device": "cpu", "epochs": 2, "batch_size": 8, "progress": False}
        done = fit(pair.model, pair.guide, observations(32), engine=engine, **options)
        losses: list[float] = done.history["loss"].values.tolist()
        return losses

    pyro.param("mine", torch.ones(3))
    engines = ("eager", "captured")
    alone = [fitted(engine) for engine in engines]
    begun, enough = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        begun.set()
        enough.wait()

    def other() -> None:
        torch.manual_seed(2)
        pair = PAIRS["functions"]()
        fit(
            pair.model, pair.guide, observations(16), epochs=1, progress=False, callbacks=[wait], device="cpu"
        )

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        same = list(pyro.get_param_store()) == ["mine"]
        same &= [fitted(engine) for engine in engines] == alone
        os._exit(0 if same and list(pyro.get_param_store()) == ["mine"] else 3)
    _, status = os.waitpid(child, 0)
    enough.set()
    thread.join()
    sys.exit(os.waitstatus_to_exitcode(status))


def test_a_child_that_is_forked_while_another_thread_fits_does_not_wait_for_it() -> None:
    """And its fit is the one that it is alone, with the user's own store around it."""
    code, _, errors = Forked(fork_while_another_thread_fits).end()
    assert code == 0, errors


def test_expanded_buffers_are_left_alone_and_others_given_back() -> None:
    module = torch.nn.BatchNorm1d(3)
    module.register_buffer("wide", torch.zeros(()).expand(4))
    with untouched_buffers(module):
        module(torch.randn(5, 3))
    assert torch.equal(module.running_mean, torch.zeros(3))
