"""Runs trained side by side, on this machine or on a cluster, by Dask distributed.

Nothing but text travels: the name of a run, and the cells of a notebook that requests it.
"""

import importlib.util
import logging
import os
import pkgutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
from distributed import Client, Future, Nanny, Scheduler, Security, SpecCluster, get_worker
from tqdm import tqdm

from dlcvlib.training import tracking
from dlcvlib.utils.errors import UserError

STARTED = "dlcv-report"
"""Topic under which workers say which task they have begun."""


def _train(cells: tuple[str, ...], name: str, environment: Mapping[str, str]) -> dict[str, float]:
    os.environ.update(environment)
    get_worker().log_event(STARTED, name)
    # By its name: this module need not load torch.
    return pkgutil.resolve_name("dlcvlib.report.planning:train")(cells, name)


def dask_setup(_: object) -> None:
    """A worker of this machine begins: Ctrl-C is for the process that ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # tqdm's own, between processes, would outlive a worker that is killed.
    tqdm.set_lock(threading.RLock())


@contextmanager
def working(
    tasks: Mapping[str, tuple[Path, tuple[str, ...]]],
    started: Callable[[str], object],
    workers: int,
    gpus: int,
    environment: Mapping[str, str],
    scheduler: str = "",
) -> Iterator[dict[str, Future]]:
    """Have a cluster, this machine's own or an existing one, train runs while the context lasts.

    Args:
        tasks: name of a run -> the folder in which a worker that is on this machine reports, and
            the cells of a notebook that requests it; those first that come first.
        started: called, in another thread, with the name of a run that begins.
        workers: processes of an own cluster, each for one run at a time.
        gpus: they have one each, in turn.
        environment: variables of these processes.
        scheduler: the address of an existing cluster's scheduler, or its scheduler file.

    Yields:
        Name -> what becomes of the run.

    Raises:
        UserError: if no scheduler answers.
    """
    # A run begins where a worker is free; a second one would wait behind it.
    with dask.config.set({"distributed.scheduler.worker-saturation": 1.0}), ExitStack() as stack:
        if not scheduler:
            cluster = stack.enter_context(_own_cluster(workers, gpus, environment))
            client = stack.enter_context(Client(cluster))
        else:
            found = {"scheduler_file" if Path(scheduler).is_file() else "address": scheduler}
            try:
                client = stack.enter_context(Client(**found))
            except (OSError, ValueError) as error:
                why = f"no scheduler answers ({error})"
                raise UserError(f"--scheduler {scheduler}: {why}") from error
        if importlib.util.find_spec("bokeh"):
            print(f"dashboard: {client.dashboard_link}", flush=True)
        client.subscribe_topic(STARTED, lambda event: started(event[1]))
        futures, tracker = {}, os.environ.get(tracking.VARIABLE, "")
        for place, (name, (status, cells)) in enumerate(tasks.items()):
            # On another machine there is no such folder, and nothing is reported.
            own = {"DLCV_STATUS": str(status), tracking.VARIABLE: tracker}
            futures[name] = client.submit(_train, cells, name, own, key=name, priority=-place)
        yield futures


def _own_cluster(workers: int, gpus: int, environment: Mapping[str, str]) -> SpecCluster:
    # Encrypted, or every user of this machine could run code in the name of this one.
    common = {"security": Security.temporary(), "host": "127.0.0.1", "protocol": "tls://"}
    scheduler = {"cls": Scheduler, "options": {**common, "dashboard_address": "127.0.0.1:0"}}
    quiet = {"silence_logs": logging.CRITICAL}
    # The memory of what a task loads is not Dask's to limit.
    common |= quiet | {"nthreads": 1, "memory_limit": 0, "preload": [__name__]}
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
