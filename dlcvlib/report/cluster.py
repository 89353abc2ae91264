"""Training runs side by side, on this machine or on a cluster, by Dask distributed.

A task is a notebook's cells and the name of a run. A worker finds out itself what that run is
(`planning.requested`), so that all that travels is text. Processes meet in `runs_dir` alone,
on a shared folder if there are several machines: `train_or_load` locks and resumes there.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Future, Nanny, Scheduler, Security, SpecCluster, get_worker

from dlcvlib.report.uptodate import Cells, Needed
from dlcvlib.utils import stopwatch
from dlcvlib.utils.errors import UserError

STARTED = "dlcv-report"
"""Topic under which workers say which run they have begun."""
CONNECT_SECONDS = 30
DASK = {
    # A run begins where a worker is free; a second one would wait behind it.
    "distributed.scheduler.worker-saturation": 1.0,
    # A run may be killed this often, with its worker, before it counts as failed.
    "distributed.scheduler.allowed-failures": 3,
    "distributed.comm.timeouts.connect": CONNECT_SECONDS,
}


def train(cells: Cells, name: str) -> dict[str, float]:
    """Train one of the runs that a notebook requests; the seconds spent by kind of work.

    Raises:
        UserError: if the notebook, as this machine has it, does not request that run.
    """
    from dlcvlib.training.runs import train_or_load  # with torch, which only workers need

    jobs = _requested(cells)
    if name not in jobs:
        raise UserError(
            f"{name} is not what this machine would train: the code of dlcvlib, the versions of "
            "torch and accelerate and the data must be the same everywhere"
        )
    train_or_load(*jobs[name])
    return stopwatch.take()


@lru_cache(maxsize=1)  # its data stay in memory
def _requested(cells: Cells) -> dict[str, tuple[Any, ...]]:
    from dlcvlib.report.planning import requested

    return requested(cells)


def _train(cells: Cells, name: str, status: str) -> dict[str, float]:
    os.environ["DLCV_STATUS"] = status  # where there is no such folder, on another machine, none
    get_worker().log_event(STARTED, name)
    return train(cells, name)


@contextmanager
def training(
    needed: Sequence[Needed],
    notebooks: Mapping[str, Cells],
    started: Callable[[str], object],
    status: Callable[[Needed], Path],
    **where: Any,
) -> Iterator[dict[str, Future]]:
    """Train runs, those first that come first, for as long as the context lasts.

    Args:
        needed: the runs; nothing is started if there are none.
        notebooks: problem -> its cells.
        started: called, in another thread, with the name of a run that begins.
        status: a run -> the folder in which its worker, if it is on this machine, reports.
        where: see `connected`.

    Yields:
        Name of a run -> what becomes of it.
    """
    if not needed:
        yield {}
        return
    with dask.config.set(DASK), connected(**where) as client:
        client.subscribe_topic(STARTED, lambda event: started(event[1]))
        yield {
            run.name: client.submit(
                *(_train, notebooks[run.problem], run.name, str(status(run))),
                key=run.name,
                priority=-place,
            )
            for place, run in enumerate(needed)
        }


@contextmanager
def connected(
    workers: int, gpus: int, environment: Mapping[str, str], scheduler: str = ""
) -> Iterator[Client]:
    """A client of a cluster: one of this machine's own, or an existing one.

    Args:
        workers: processes of an own cluster, each for one run at a time.
        gpus: they have one each, in turn.
        environment: variables of these processes.
        scheduler: the address of an existing cluster's scheduler, or its scheduler file.

    Raises:
        UserError: if no scheduler answers.
    """
    with ExitStack() as stack:
        if scheduler:
            found = {"scheduler_file" if Path(scheduler).is_file() else "address": scheduler}
            try:
                client = stack.enter_context(Client(**found, timeout=CONNECT_SECONDS))
            except (OSError, ValueError) as error:
                message = f"--scheduler {scheduler}: no scheduler answers ({error})"
                raise UserError(message) from error
        else:
            cluster = stack.enter_context(_own_cluster(workers, gpus, environment))
            client = stack.enter_context(Client(cluster))
        if importlib.util.find_spec("bokeh"):
            print(f"dashboard: {client.dashboard_link}", flush=True)
        yield client


def _own_cluster(workers: int, gpus: int, environment: Mapping[str, str]) -> SpecCluster:
    # Encrypted, or every user of this machine could run code in the name of this one.
    common = {"security": Security.temporary(), "host": "127.0.0.1", "protocol": "tls://"}
    scheduler = {"cls": Scheduler, "options": {**common, "dashboard_address": "127.0.0.1:0"}}
    quiet = {"silence_logs": logging.CRITICAL}
    # A run's data are not Dask's to move or to limit.
    common |= quiet | {"nthreads": 1, "memory_limit": 0}
    common["local_directory"] = environment["DLCV_STATUS"]
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    specs = {}
    for number in range(workers):
        own = {"CUDA_VISIBLE_DEVICES": devices[number % gpus]} if gpus else {}
        specs[number] = {"cls": Nanny, "options": common | {"env": {**environment, **own}}}
    # What the allocator reads when a process begins; Dask sets it here, too.
    allocator = {name: value for name, value in environment.items() if name.startswith("MALLOC_")}
    with dask.config.set({"distributed.nanny.pre-spawn-environ": allocator}):
        return SpecCluster(specs, scheduler, security=common["security"], **quiet)
