"""The end of processes whose parent has ended."""

import os
import threading
import time
from multiprocessing import parent_process

import psutil


def end_with_parent() -> None:
    """End this process soon after the one that has started it has ended, in whatever way.

    A pool's worker would wait for ever; other work would continue without its parent's locks.
    """
    parent = parent_process().pid

    def wait() -> None:
        while os.getppid() == parent and psutil.pid_exists(parent):  # Windows keeps a dead one
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
