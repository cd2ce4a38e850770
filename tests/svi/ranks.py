"""Functions run by several processes at once, as torchrun starts them."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pyro
import torch

SECONDS = 60
PRELOADED = ["tests.svi.test_distributed", "torch._dynamo", "torch._inductor", "torch.onnx", "xarray"]
"""What a fit imports when it needs it."""


def run_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns on each rank; an exception as its text, None where a rank has died.

    The processes are forked from one that has imported torch, so that they start at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        context.Process(target=_be_rank, args=(rank, size, port, sender, function, args))
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process in ranks:
        process.start()
    results = []
    for process, (receiver, sender) in zip(ranks, pipes, strict=True):
        sender.close()
        try:
            if not receiver.poll(SECONDS):
                raise TimeoutError(f"a rank has not answered for {SECONDS} seconds")
            results.append(receiver.recv())
        except EOFError:
            results.append(None)
        finally:
            process.join(1.0)
            process.kill()
    return results


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
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    pyro.enable_validation(True)
    try:
        result = function(*args)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
        if not isinstance(error, RuntimeError | ValueError | ArithmeticError):
            traceback.print_exc()
    sender.send(result)
