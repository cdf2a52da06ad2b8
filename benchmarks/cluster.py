"""What does a Ray cluster cost beside this machine alone, and how large may it become?

    python -m benchmarks.cluster [--smoke] [--rounds 3]

*Overhead*: a run of `vpg` with 64 seeds, by turns on this machine's cores and on a cluster of one
node that has them; what is timed is training, compiling and Ray's start aside. *Load*: what the
process that writes does with the increments of many workers. They sleep while a chunk would be
trained and send what a real one sends, through Ray, from threads of a few actors. All of them share
this machine's cores with the process that writes; what it takes of them is counted by itself.
"""

import dataclasses
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.contenders import VPG
from benchmarks.measure import Case
from benchmarks.record import markdown
from jaxpg import words

SEEDS = 64
UPDATES = 48  # of a chunk that sleeps: as many segments as a real one has
HOSTS = 10  # actors in which workers that sleep are threads
LOADS = ((10, 2.0), (100, 2.0), (1000, 2.0), (1000, 20.0))  # workers, seconds that a chunk takes


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Overhead by turns, then loads."""
    steps = 2**14 if smoke else VPG.total_steps
    seeds = 4 if smoke else SEEDS
    kinds = [
        Case("overhead", {"on": on, "seeds": seeds, "steps": steps}) for on in ("cores", "ray")
    ]
    rows = measure.by_turns("cluster", kinds, rounds, cold=not smoke)
    loads = [
        Case("load", {"workers": workers, "seconds": seconds})
        for workers, seconds in (((4, 0.5),) if smoke else LOADS)
    ]
    rows += measure.by_turns("cluster", loads, 1, cold=False)
    content = {"config": dataclasses.asdict(VPG), "rows": rows}
    return {**content, "table": table(content)}


def table(content: dict[str, Any]) -> str:
    """Overhead in a sentence; a line for each load; and when one process that writes is full."""
    by_kind = {row["options"].get("on"): row for row in content["rows"]}
    seconds = {
        on: median(one["wall_seconds"] for one in by_kind[on]["repetitions"])
        for on in ("cores", "ray")
    }
    seeds, turns = by_kind["ray"]["options"]["seeds"], by_kind["ray"]["repetitions"]
    slower = f"{seconds['ray'] / seconds['cores'] - 1:+.1%}".replace("%", " %")
    sent = turns[-1]["bytes"] / seeds
    lines, costs = [], []
    for row in content["rows"]:
        if row["what"] == "load":
            (found,) = row["repetitions"]
            wall = found["wall_seconds"]
            costs.append(found["cpu_seconds"] / found["increments"])
            lines.append(
                [
                    f"{row['options']['workers']:,}",
                    f"{row['options']['seconds']:g} s",
                    words.share(found["ideal_seconds"] / wall),
                    f"{found['increments'] / wall:.0f}",
                    f"{found['bytes'] / wall / 1e6:.1f} MB",
                    f"{1e3 * costs[-1]:.1f} ms",
                ]
            )
    columns = ["workers", "a chunk takes", "they work", "increments a second",
               "received a second", "an increment takes of a core"]  # fmt: skip
    return "\n".join(
        [
            f"{seeds} seeds take {seconds['ray']:.2f} s on a cluster of one node and "
            f"{seconds['cores']:.2f} s on its cores alone, {slower} (medians of {len(turns)}, by "
            f"turns). They send {sent / 1e3:.0f} kB a seed; 10,000 send {sent / 1e5:.1f} GB.",
            "",
            markdown(columns, lines),
            "",
            "One writing process is saturated when chunks finish as fast as it can save them: at "
            f"{1 / max(costs):,.0f} chunks a second, or {2 / max(costs):,.0f} workers whose chunk "
            f"takes 2 s, {20 / max(costs):,.0f} where it takes 20 s. Below that nobody waits for "
            "it, because a worker sends nothing until it has trained 50 times as long as the last "
            "save took.",
        ]
    )  # fmt: skip


def overhead(on: str, seeds: int, steps: int) -> dict[str, Any]:
    """A run, on this machine's cores or on a node that has them."""
    measure.start_as_jaxpg()
    from jaxpg.population import cluster, devices

    config = dataclasses.replace(VPG, total_steps=steps)
    if on == "cores":
        return _run(config, seeds, None) | {"increments": 0, "bytes": 0}
    from ray.cluster_utils import Cluster

    received = _received()
    cores = Cluster(initialize_head=True, head_node_args={"num_cpus": devices.cpu_count()})
    with cluster.joined(cores.address) as nodes:
        found = _run(config, seeds, nodes)
    cores.shutdown()
    return found | {"increments": len(received), "bytes": sum(received)}


def load(workers: int, seconds: float) -> dict[str, Any]:
    """A run of workers that sleep; each ends two chunks, and begins when it likes."""
    measure.start_as_jaxpg()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else ray.init leaves a token in the home
    import ray

    from jaxpg.population import chunks, cluster, crew, population, provenance

    config = dataclasses.replace(VPG, total_steps=UPDATES * VPG.num_envs * VPG.num_steps)
    (chunk,) = population.make_chunks(config, range(16), ({},), 16)
    program = chunks.compile_programs(chunk, UPDATES, 1)[0]
    (end,) = chunks.advance(program, chunk, UPDATES, None)
    whole = crew.Increment(*_numpy((end.lanes, end.history[0], end.recent_return, None)))
    ray.init(num_cpus=HOSTS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    host = ray.remote(num_cpus=1, max_concurrency=2 * workers // HOSTS + 2)(Host)
    hosts = [host.remote(whole, seconds / UPDATES) for _ in range(min(HOSTS, workers))]
    ray.get([one.ready.remote() for one in hosts])  # ten processes that start take 20 s here
    made = iter(range(2**31))
    theirs = crew.describe(config, _build(), provenance.device())

    def employ() -> Any:
        i = next(made)
        on, calls = hosts[i % len(hosts)], iter(range(2**31))
        return SimpleNamespace(
            describe=SimpleNamespace(remote=lambda *_: ray.put(("a host", theirs))),
            compile=SimpleNamespace(remote=lambda _: ray.put(0.0)),
            train=SimpleNamespace(
                remote=lambda paced, begin=None: on.train.remote(
                    i, next(calls), paced, begin is not None
                )
            ),
            hurry=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: None)),
        )

    asleep = SimpleNamespace(
        remote=lambda **_: lambda _: SimpleNamespace(remote=employ),
        cluster_resources=lambda: {"CPU": workers},
        exceptions=ray.exceptions,
        kill=lambda _: None,
        wait=ray.wait,
        get=ray.get,
    )
    received = _received()
    nodes = cluster.Cluster(asleep, "CPU", provenance.device(), False, print)
    found = _run(config, 2 * workers * 16, nodes)
    for one in hosts:
        ray.kill(one)  # its threads would outlive a polite end
    ray.shutdown()
    return found | {
        "chunks": 2 * workers,
        "ideal_seconds": 2 * seconds,
        "increments": len(received),
        "bytes": sum(received),
    }


class Host:
    """An actor whose threads are workers that sleep."""

    def __init__(self, whole: Any, seconds: float):
        """Have what a chunk sends, and how long an update takes."""
        self._whole, self._seconds = whole, seconds
        self._turns = threading.Condition()
        self._done: dict[int, int] = {}  # calls of each worker
        self._left: dict[int, int] = {}  # updates of its chunk

    def ready(self) -> None:
        """Answer once it is there."""

    def train(self, i: int, call: int, paced: float, begins: bool) -> Any:
        """As of `crew.Worker`, of the i-th worker, whose calls are answered in their order."""
        with self._turns:
            self._turns.wait_for(lambda: self._done.get(i, 0) == call)
        if begins:
            self._left[i] = UPDATES
        count = min(self._left[i], max(1, -int(-paced // self._seconds)))
        time.sleep(count * self._seconds)
        self._left[i] -= count
        with self._turns:
            self._done[i] = call + 1
            self._turns.notify_all()
        metrics = _map(lambda x: x[:, :count], self._whole.metrics)
        return self._whole._replace(metrics=metrics) if count else None


def _run(config: Any, seeds: int, nodes: Any) -> dict[str, Any]:
    """Seconds of training, and those of a core that this process took meanwhile."""
    from jaxpg.runs import directories, planning, run

    seen = []
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        directories.begin(out, planning.plan("vpg", config, range(seeds), 16))
        began = time.process_time()
        run.train(
            out,
            report=lambda at: seen.append((at.seconds, time.process_time() - began)),
            stall_seconds=3600.0,
            nodes=nodes,
        )
    wall, cpu = seen[-1]
    return {"wall_seconds": wall, "cpu_seconds": cpu, "saves": len(seen)}


def _received() -> list[int]:
    """The bytes of every increment that this process will receive."""
    from jaxpg.population import crew

    sizes, answer = [], crew._Crew._answer

    def count(self: Any, *arguments: Any, **options: Any) -> Any:
        found = answer(self, *arguments, **options)
        if isinstance(found, crew.Increment):
            sizes.append(_bytes(found))
        return found

    crew._Crew._answer = count
    return sizes


def _bytes(tree: Any) -> int:
    import jax

    return sum(np.asarray(x).nbytes for x in jax.tree.leaves(tree))


def _numpy(tree: Any) -> Any:
    return _map(np.array, tree)


def _map(function: Any, tree: Any) -> Any:
    import jax

    return jax.tree.map(function, tree)


def _build() -> Any:
    from jaxpg import fast

    return fast.build


SCRIPT = measure.Script(
    name="cluster",
    doc=__doc__ or "",
    rounds=3,
    measures={"overhead": overhead, "load": load},
    compare=compare,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
