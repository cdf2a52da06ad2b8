"""How far do TRPO's steps take the policy, where they were measured and where they were not?

    python -m benchmarks.trust_region [--smoke] [--seeds N]

Trains seeds 0 … N-1 of the preset `trpo`. Beside each, the policy that acts in an update acts in
other environments, too, with other noise: on the states that it meets there, which no step has
seen, KL(π_old ‖ π) is measured again. Writes benchmarks/results/trust_region-cpu.json.
"""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.record import markdown, write
from jaxpg import words
from jaxpg.analysis.stats import SOLVED
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS

SEEDS, LANES = 64, 16  # in all, and in a program
ALLOWED, WANTED = 2.0, 0.95  # in δ; and in how many updates it is kept to on fresh states
ASKED = {
    "full": "the whole step, on its batch",
    "taken": "the step that was accepted, on its batch",
    "fresh": "the same, on fresh states",
}


def main() -> None:
    """Train, write, print."""
    parser = measure.command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"a multiple of {LANES}")
    options = parser.parse_args()
    config, seeds, lanes = PRESETS["trpo"], options.seeds, LANES
    if options.smoke:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {measure.FAST_COMPILE}"
        config = dataclasses.replace(config, num_steps=16, total_steps=3 * 128, hidden_sizes=(8,))
        seeds, lanes = 4, 2
    measure.start_as_jaxpg()
    seen = train(config, seeds, lanes)
    content = {"config": dataclasses.asdict(config), "seeds": seeds, **summary(config, seen)}
    content["table"] = table(content)
    if not options.smoke:
        write("trust_region", content)
    print(content["table"])


def train(config: Config, seeds: int, lanes: int) -> dict[str, np.ndarray]:
    """What every update of every seed did, [seeds, updates] each."""
    import jax

    import jaxpg
    from jaxpg.core import noise, training
    from jaxpg.population import devices

    config = training.as_arrays(config)

    @jax.jit
    @jax.vmap
    def run(key: Any, other: Any) -> dict[str, Any]:
        return follow(config, jaxpg.build(config), noise.typed(key), noise.typed(other))

    def key_data(use: str) -> np.ndarray:
        keys = [jax.random.key_data(noise.key(seed, use)) for seed in range(seeds)]
        return np.stack(keys).reshape(-1, lanes, 2)

    groups = list(zip(key_data("training"), key_data("evaluation"), strict=True))
    programs = devices.compile_on_each(run, groups[0], devices.workers()[: len(groups)])

    def every(worker: int) -> list[dict[str, np.ndarray]]:
        mine = groups[worker :: len(programs)]
        return [jax.tree.map(np.asarray, programs[worker](*group)) for group in mine]

    with ThreadPoolExecutor(len(programs)) as pool:
        found = [one for part in pool.map(every, range(len(programs))) for one in part]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def follow(config: Config, algorithm: Any, key: Any, other: Any) -> dict[str, Any]:
    """One seed from its start to its end, [updates] each; `other` is the key of what is fresh."""
    import jax

    from jaxpg.core import learner, noise, ring
    from jaxpg.core.losses import masked_mean

    spec = algorithm.env.spec
    steps = learner.max_steps(config, spec)
    *_, key_fresh = noise.streams(other)
    draw = partial(noise.draw, key_fresh, config=config, spec=spec, num_steps=steps)

    def update(carry: tuple, _: None) -> tuple[tuple, dict[str, Any]]:
        before, elsewhere = carry
        elsewhere, fresh = learner.collect(
            algorithm, before.params, elsewhere, draw(update=before.update)
        )
        after, metrics = learner.update(config, before, algorithm)
        old, new = (algorithm.networks.policy(x.params, fresh.obs) for x in (before, after))
        return (after, elsewhere), {
            "full": metrics.full_kl,
            "taken": metrics.kl,
            "fresh": masked_mean(algorithm.distribution.kl(old, new), fresh.valid),
            "accepted": metrics.accepted,
            "return_sum": metrics.return_sum,
            "episodes": metrics.episodes,
            "final_return": ring.mean(after.recent_returns),
        }

    start = learner.init(config, key, algorithm)
    elsewhere = algorithm.env.reset(noise.first_reset(key_fresh, config, spec))
    return jax.lax.scan(update, (start, elsewhere), None, length=config.num_updates)[1]


def summary(config: Config, seen: dict[str, np.ndarray]) -> dict[str, Any]:
    """Quantiles over all updates of all seeds, in units of δ; of steps, over those accepted."""
    accepted = seen["accepted"] == 1.0
    delta = float(config.max_kl)

    def of(name: str) -> dict[str, float]:
        kl = seen[name][accepted if name != "full" else slice(None)] / delta
        at = {"median": 0.5, "q95": 0.95, "q99": 0.99}
        found = {key: float(np.quantile(kl, q)) for key, q in at.items()}
        within = {"within_1": float((kl <= 1).mean()), "within_2": float((kl <= ALLOWED).mean())}
        return {**found, "largest": float(kl.max()), **within}

    return {
        "updates": int(accepted.size),
        "accepted": float(accepted.mean()),
        "whole_step_accepted": float((accepted & (seen["full"] == seen["taken"])).mean()),
        "kl": {name: of(name) for name in ASKED},
        "fresh_over_taken": float(np.median(seen["fresh"][accepted] / seen["taken"][accepted])),
        "kept_on_fresh_states": float((seen["fresh"] <= ALLOWED * delta).mean()),
        "worst_seed_kept": float((seen["fresh"] <= ALLOWED * delta).mean(axis=1).min()),
        "solved": float((seen["final_return"][:, -1] >= SOLVED[config.env]).mean()),
    }


def table(content: dict[str, Any]) -> str:
    """A line for each divergence, in δ, and what is to be said of them."""
    columns = ["KL(π_old ‖ π), in δ", "median", "95 %", "99 %", "largest", "≤ δ", "≤ 2 δ"]
    rows = []
    for name, asked in ASKED.items():
        kl = content["kl"][name]
        sizes = [f"{kl[key]:.2f}" for key in ("median", "q95", "q99", "largest")]
        rows.append([asked, *sizes, words.share(kl["within_1"]), words.share(kl["within_2"])])
    said = (
        f"{words.seeds(content['seeds'])}, {content['updates']:,} updates, of which "
        f"{words.share(content['accepted'])} accept a step, "
        f"{words.share(content['whole_step_accepted'])} the whole one. On fresh states KL stays "
        f"within 2 δ in {words.share(content['kept_on_fresh_states'])} of all updates, and in "
        f"{words.share(content['worst_seed_kept'])} of those of the worst seed."
    )
    return f"{markdown(columns, rows)}\n\n{said}"


if __name__ == "__main__":
    main()
