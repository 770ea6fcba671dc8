"""Two Ray nodes on this machine, in a process of its own: ``python -m faults.cluster``.

Its standard input says what to do: ``lose`` kills the second node's raylet, ``heal`` starts another
node in its place. The end of the input is the cluster's end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from faults.child import Child, running

MARK = "FAULTS_CLUSTER"


class Cluster:
    """The process that holds the nodes. ``address`` is what drivers connect to, ``mark`` stands in
    the environment of every process, ``temporary`` is where workers keep what is for a while."""

    def __init__(self, child: Child, mark: str, temporary: Path) -> None:
        self.tell, self.mark, self.temporary = child.tell, mark, temporary
        self.address = child.said


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """A cluster that keeps its files in ``folder``."""
    temporary, ray = folder / "tmp", folder / "r"
    for each in (temporary, ray):
        each.mkdir(parents=True)
    own = {"TMPDIR": str(temporary), "RAY_TMPDIR": str(ray), MARK: str(folder)}
    with running("cluster", own, "Ray cannot be started here") as child:
        yield Cluster(child, f"{MARK}={folder}", temporary)


def main() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Of a machine that does much else.
    os.environ["RAY_raylet_start_wait_time_s"] = "180"  # noqa: SIM112
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    print(f"cluster: {nodes.address}", flush=True)
    for line in sys.stdin:
        if line == "lose\n":
            os.kill(second.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(Exception):  # what is left of it
                nodes.remove_node(second, allow_graceful=False)
            second = nodes.add_node(num_cpus=1)
        print("cluster: done", flush=True)
    nodes.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
