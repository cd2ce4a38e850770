"""Functions run by several processes at once, as torchrun starts them."""

import faulthandler
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pyro
import torch

from tests.processes import forkserver
from tests.seeds import every_seed_shifted

SECONDS = 60.0


def run_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns on each rank; an exception as its text, None where a rank has died.

    The processes are forked from one that has imported torch, so that they start at once.
    """
    context = forkserver()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        context.Process(target=_be_rank, args=(rank, size, port, sender, function, args), daemon=True)
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process in ranks:
        process.start()
    try:
        for _, sender in pipes:
            sender.close()
        return [_answer(receiver) for receiver, _ in pipes]
    finally:
        for process in ranks:
            process.join(1.0)
            process.kill()


def _answer(receiver: Any) -> Any:
    if not receiver.poll(SECONDS):
        raise TimeoutError(f"a rank has not answered for {SECONDS} seconds")
    try:
        return receiver.recv()
    except EOFError:
        return None


def _be_rank(
    rank: int, size: int, port: int, sender: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    faulthandler.dump_traceback_later(SECONDS / 2)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    pyro.enable_validation(True)
    try:
        with every_seed_shifted():  # as in the process that compares
            torch.manual_seed(0)
            result = function(*args)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
        if not isinstance(error, RuntimeError | ValueError | ArithmeticError):
            traceback.print_exc()
    sender.send(result)
