"""What became of each seed: solved, when, lost again; by hand."""

import numpy as np
import pytest

from jaxpg.analysis.measures import digest
from jaxpg.analysis.outcomes import (
    learning,
    outcomes,
    time_to_solve,
    trailing_return,
    untrained_return,
)
from jaxpg.core.config import Config
from jaxpg.core.types import Metrics
from jaxpg.population.population import Population

CONFIG = Config(num_envs=2, num_steps=10, total_steps=20 * 4)


def population(returns, episodes=100, frozen_at=None, final=None) -> Population:
    """Seeds in whose update u so many episodes end with a mean return of returns[seed][u]."""
    returns = np.array(returns, float)
    count = np.broadcast_to(episodes, returns.shape).astype(np.int32)
    fields = {name: np.zeros(returns.shape, np.float32) for name in Metrics._fields}
    fields.update(episodes=count, return_sum=np.nan_to_num(returns) * count)
    seeds = len(returns)
    return Population(
        seeds=np.arange(seeds, dtype=np.uint32),
        setting=np.zeros(seeds, np.int32),
        params={},
        metrics=Metrics(**fields),
        final_return=returns[:, -1] if final is None else np.array(final),
        frozen_at=np.full(seeds, -1) if frozen_at is None else np.array(frozen_at),
        cause=np.zeros(seeds, np.int32),
        lanes=2,
        compile_seconds=0.0,
        wall_seconds=1.0,
    )


def test_trailing_return_reaches_back_over_as_few_updates_as_hold_100_episodes():
    episodes = np.array([[60, 60, 0, 40, 200]])
    returns = np.array([[1.0, 2.0, 0.0, 4.0, 5.0]])
    # After update 1: both (120 episodes); the same after update 2, in which none ends; after 3 the
    # last 100 are updates 1 to 3, 60 and 40; update 4 alone has enough.
    wanted = [np.nan, (60 + 120) / 120, (60 + 120) / 120, (120 + 160) / 100, 5.0]
    np.testing.assert_allclose(trailing_return(episodes, episodes * returns)[0], wanted)


def test_trailing_return_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    episodes = rng.integers(0, 70, (5, 30))
    total = episodes * rng.normal(size=(5, 30))
    ours = trailing_return(episodes, total)
    for i in range(5):
        for u in range(30):
            for start in range(u, -1, -1):
                if episodes[i, start : u + 1].sum() >= 100:
                    wanted = total[i, start : u + 1].sum() / episodes[i, start : u + 1].sum()
                    assert ours[i, u] == pytest.approx(wanted)
                    break
            else:
                assert np.isnan(ours[i, u])


def test_solved_then_lost():
    some = outcomes(
        CONFIG,
        population(
            [
                [20, 480, 490, 500],  # solves at the end of update 1
                [20, 480, 100, 480],  # solves, loses it (100 < 247.5), solves again
                [20, 480, 300, 300],  # solves, gets worse, is not lost; not solved at the end
                [20, 100, 20, 20],  # never
                [20, 20, 20, 475],  # with the last update
            ]
        ),
    )
    assert some.solving is not None
    assert some.solving.lost_below == (20 + 475) / 2
    assert some.solving.ever.tolist() == [True, True, True, False, True]
    assert some.solving.time.tolist() == [40, 40, 40, 80, 80]
    assert some.solving.collapsed.tolist() == [False, True, False, False, False]
    assert some.solving.solved.tolist() == [True, True, False, False, True]
    assert digest([some])["collapse"].value == 1 / 4
    curve = time_to_solve(some.solving)
    assert curve.time.tolist() == [40, 80]
    np.testing.assert_allclose(curve.share, [2 / 5, 1 / 5])


def test_a_diverged_seed_solves_nothing_more_and_is_watched_to_the_end():
    some = outcomes(
        CONFIG,
        population([[20, 500, 500, 500], [20, 20, 500, 500]], frozen_at=[2, 2], final=[500, 20]),
    )
    assert some.solving is not None
    assert some.diverged.all()
    assert not some.solving.solved.any()
    assert some.solving.ever.tolist() == [True, False]  # one had solved it before
    assert some.solving.time.tolist() == [40, 80]
    assert not some.solving.collapsed.any()  # reported as diverged, not as lost


def test_a_seed_without_an_episode_has_no_score_and_never_solves():
    some = outcomes(
        CONFIG,
        population([[20, 480, 480, 480], [0, 0, 0, 0]], [[100] * 4, [0] * 4], final=[480, np.nan]),
    )
    assert some.scores.tolist() == [480]
    assert some.solving is not None
    assert some.solving.solved.tolist() == [True, False]
    assert some.solving.ever.tolist() == [True, False]
    assert untrained_return(population([[0.0]], 0)) == 0.0


def test_budget_in_episodes_counts_episodes():
    config = Config(
        collect="episodes", num_envs=4, total_episodes=16, estimator="reward_to_go", baseline="none"
    )
    some = outcomes(config, population([[20, 480, 480, 480]]))
    assert some.solving is not None
    assert some.solving.time.tolist() == [8]


def test_what_counts_as_solved_can_be_given_and_is_needed():
    returns = [[20, 30, 30, 30], [20, 20, 20, 20]]
    assert outcomes(CONFIG, population(returns), 25.0).solving.ever.tolist() == [True, False]
    pendulum = Config(env="Pendulum-v1")
    assert outcomes(pendulum, population(returns)).solving is None
    never = digest([outcomes(CONFIG, population(returns))])
    assert never["collapse"] is None
    assert never["time_to_solve"].value == np.inf


def test_the_line_for_lost_is_never_above_the_target():
    some = outcomes(CONFIG, population([[500.0, 500.0, 480.0, 490.0]]))
    assert some.solving.lost_below == 475.0
    assert not some.solving.collapsed.any()


# Whether it has learnt


def share_shown(make, seeds, updates=50, times=100):
    """Of so many runs, how many are said to have learnt."""
    rng = np.random.default_rng(seeds)
    runs = (population(make(rng, (seeds, updates)), episodes=5) for _ in range(times))
    return np.mean([learning(run).shown for run in runs])


def drift(rng, shape):
    """Policies that drift: what a seed gains or loses lasts."""
    steps = rng.normal(size=shape)
    for update in range(1, shape[1]):
        steps[:, update] += 0.9 * steps[:, update - 1]
    return steps


NOTHING = {
    "noise": lambda rng, shape: 20 + rng.normal(size=shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape),
    "good and bad seeds": lambda rng, shape: (
        10 * rng.normal(size=(shape[0], 1)) + rng.normal(size=shape)
    ),
    "rare success": lambda rng, shape: 100.0 * (rng.random(shape) < 0.02),
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("seeds", [1, 3, 8, 64])
def test_chance_is_seldom_taken_for_learning(name, seeds):
    """A tenth of runs at most, as it says; 0.2 is three standard errors above that."""
    assert share_shown(NOTHING[name], seeds) <= 0.2


@pytest.mark.parametrize("seeds", [8, 64])
def test_nor_is_drift(seeds):
    assert share_shown(drift, seeds) <= 0.3


@pytest.mark.parametrize("seeds", [1, 3, 64])
def test_learning_is_seen(seeds):
    def rising(rng, shape):
        return 20 + np.linspace(0, 40, shape[1]) + 10 * rng.normal(size=shape)

    assert share_shown(rising, seeds) == 1.0


@pytest.mark.parametrize("seeds", [1, 2, 8, 64])
def test_one_seed_that_learns_is_enough(seeds):
    """MountainCar, where all others end every episode with -200."""
    returns = np.full((seeds, 50), -200.0)
    returns[0, 25:] = -150 + np.random.default_rng(0).normal(size=25)
    assert learning(population(returns, episodes=5)).shown


def test_what_is_said_of_a_run_that_learns_nothing():
    same = learning(population(np.full((8, 50), -200.0)))
    assert (same.first, same.last, same.shown, same.constant) == (-200.0, -200.0, False, True)
    assert "-200 in the first tenth of training and -200 in the last, always the same" in (
        same.warning
    )
    rng = np.random.default_rng(0)
    worse = learning(population(np.linspace(0.3, 0, 50) + 0.1 * rng.normal(size=(8, 50))))
    assert not worse.shown
    assert worse.first > 0.2 > 0.05 > worse.last
    assert "other learning rates" in worse.warning
    better = learning(population(np.linspace(0, 0.3, 50) + 0.1 * rng.normal(size=(8, 50))))
    assert better.shown
    assert better.warning is None


def test_rounding_is_not_learning():
    returns = np.full((4, 50), 0.1)
    returns[:, 25:] *= 1 + 1e-7
    assert not learning(population(returns)).shown


def test_updates_without_an_episode_do_not_count():
    """Only the first and last of four in which one ended; with three nothing can be said."""
    episodes = np.array([[0, 3, 0, 3, 0, 3, 3, 0]])
    returns = np.array([[0, 1.0, 0, 1.0, 0, 5.0, 5.0, 0]])
    found = learning(population(returns, episodes))
    assert (found.first, found.last, found.shown) == (1.0, 5.0, True)
    episodes[0, 1] = 0
    assert learning(population(returns, episodes)) is None
