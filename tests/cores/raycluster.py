"""A Ray cluster of two nodes on this machine, for tests: `python -m tests.cores.raycluster PLACE`.

Says the cluster's address on a line of standard output when there is room on the second node, and
on that alone. A line on standard input has that node die, as a machine does whose power fails; then
there is room on the first, where the kernel is, and a line says so. The end of standard input ends
the cluster. PLACE is a directory with a short path for Ray's own files.
"""

from __future__ import annotations

import sys
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

MEMORY = 80 << 20
QUICK = {  # a death is known in seconds, not in half a minute; who is only slow has a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 6,
}


class Guest:
    """Takes up the room on a node."""

    def here(self) -> bool:
        return True


def die(raylet: psutil.Process) -> None:
    """End a node's daemon and all that it has started, at once."""
    gone = [*raylet.children(recursive=True), raylet]
    for process in gone:
        process.kill()
    psutil.wait_procs(gone)


def main(place: str) -> None:
    common: dict[str, Any] = {
        "object_store_memory": MEMORY,
        "include_dashboard": False,
        "num_cpus": 1,
        "num_gpus": 0,
    }
    first = {**common, "temp_dir": place, "_system_config": QUICK, "resources": {"core": 1, "a": 1}}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=first)
    try:
        second = cluster.add_node(**common, resources={"core": 1})
        ray.init(address=cluster.address, log_to_driver=False)
        guest: Any = ray.remote(Guest)
        actor: Any = guest.options(num_cpus=0, resources={"core": 1, "a": 1}).remote()
        ray.get(actor.here.remote())
        print(cluster.address, flush=True)
        for _ in sys.stdin:
            (raylet,) = second.all_processes["raylet"]
            die(psutil.Process(raylet.process.pid))
            ray.kill(actor)
            print("dead", flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(sys.argv[1])
