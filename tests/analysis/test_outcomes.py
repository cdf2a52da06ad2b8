"""What became of each seed: its score, when it solved the task, whether it lost it; by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from jaxpg.analysis.budget import STEPS, Budget, alike, budget, smallest, spent
from jaxpg.analysis.curves import curve_points
from jaxpg.analysis.measures import as_json, measure, remarks, spread, write_interval
from jaxpg.analysis.outcomes import (
    floor,
    learning,
    outcomes,
    ranking,
    scores,
    time_to_solve,
    trailing_return,
    typical,
    until,
    untrained_return,
)
from jaxpg.analysis.stats import estimate, iqm
from jaxpg.core.config import Config
from jaxpg.core.types import Metrics
from jaxpg.errors import RunError
from jaxpg.population.chunks import metric_names
from jaxpg.population.evaluations import Evaluations
from jaxpg.population.population import Population

CONFIG = Config(num_envs=2, num_steps=10, total_steps=20 * 4)
IN_EPISODES = Config(
    collect="episodes", num_envs=4, total_episodes=16, estimator="reward_to_go", baseline="none"
)


def population(returns, episodes=100, frozen_at=None, final=None, env_steps=20) -> Population:
    """Seeds in whose update u so many episodes end with a mean return of returns[seed][u]."""
    returns = np.array(returns, float)
    count = np.broadcast_to(episodes, returns.shape).astype(np.int32)
    fields = {name: np.zeros(returns.shape, np.float32) for name in metric_names(CONFIG)}
    fields.update(episodes=count, return_sum=np.nan_to_num(returns) * count)
    fields["env_steps"] = np.broadcast_to(env_steps, returns.shape).astype(np.int32)
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
    assert measure(some)["collapse"].value == 1 / 4
    curve = time_to_solve(some.solving)
    assert curve.time.tolist() == [0, 40, 80]
    np.testing.assert_allclose(curve.share, [1, 2 / 5, 1 / 5])


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


def test_a_seed_without_an_episode_counts_as_untrained_and_never_solves():
    some = outcomes(
        CONFIG,
        population([[20, 480, 480, 480], [0, 0, 0, 0]], [[100] * 4, [0] * 4], final=[480, np.nan]),
    )
    assert some.scores.tolist() == [480, 20]  # as untrained
    assert some.solving is not None
    assert some.solving.solved.tolist() == [True, False]
    assert some.solving.ever.tolist() == [True, False]
    assert untrained_return(population([[0.0]], 0)) == 0.0


def test_budget_in_episodes_counts_episodes():
    some = outcomes(IN_EPISODES, population([[20, 480, 480, 480]]))
    assert some.solving is not None
    assert some.solving.time.tolist() == [8]


def test_what_counts_as_solved_can_be_given_and_is_needed():
    returns = [[20, 30, 30, 30], [20, 20, 20, 20]]
    assert outcomes(CONFIG, population(returns), 25.0).solving.ever.tolist() == [True, False]
    for other in (
        dataclasses.replace(CONFIG, max_episode_steps=limit) for limit in (100, 499, 1000)
    ):
        assert outcomes(other, population(returns)).solving is None  # 475 is not what it was
    same = dataclasses.replace(CONFIG, max_episode_steps=500)
    assert outcomes(same, population(returns)).solving.target == 475.0
    pendulum = Config(env="Pendulum-v1")
    assert outcomes(pendulum, population(returns)).solving is None
    never = measure(outcomes(CONFIG, population(returns)))
    assert never["collapse"] is None
    assert never["time_to_solve"].value == np.inf


def test_the_line_for_lost_is_never_above_the_target():
    some = outcomes(CONFIG, population([[500.0, 500.0, 480.0, 490.0]]))
    assert some.solving.lost_below == 475.0
    assert not some.solving.collapsed.any()


@pytest.mark.parametrize("failure", ["diverged at its best", "silent"])
@pytest.mark.parametrize("healthy", range(1, 10))
def test_a_seed_that_failed_never_makes_a_run_look_better(healthy, failure):
    """Whatever is said of a run, with one more seed that failed it is worse, or as it was."""
    rng = np.random.default_rng(healthy)
    returns = [*rng.uniform(0, 500, (healthy, 4)), [500.0] * 4]
    frozen = [-1] * healthy
    ended = np.full((healthy + 1, 4), 100)
    if failure == "silent":
        ended[-1] = 0
        final = [row[-1] for row in returns[:-1]] + [np.nan]
        poorer = population(returns, ended, [*frozen, -1], final)
    else:
        poorer = population(returns, ended, [*frozen, 3])
    before = measure(outcomes(CONFIG, population(returns[:-1])))
    after = measure(outcomes(CONFIG, poorer))
    for name in ("iqm", "median", "mean", "solved"):
        assert after[name].value <= before[name].value, name
        assert not after[name].low > before[name].low + 1e-9, name  # of one seed it has no mean
    assert after["optimality_gap"].value >= before["optimality_gap"].value
    assert spread(scores(poorer))["max"] <= spread(scores(population(returns[:-1])))["max"]


def test_a_failed_seed_counts_as_untrained_or_as_the_worst():
    # The first updates end with 20 and 40 on average: untrained, 30. One seed ends below that.
    better = population([[20, 300], [40, 500]], frozen_at=[-1, 1])
    assert floor(better) == 30
    assert scores(better).tolist() == [300, 30]
    worse = population([[20, 8], [40, 500]], frozen_at=[-1, 1])
    assert floor(worse) == 8
    assert scores(worse).tolist() == [8, 8]
    # A seed that diverged with less than that counts with no more than it had.
    own = population([[20, 300], [40, 3]], frozen_at=[-1, 1])
    assert scores(own).tolist() == [300, 3]


def test_scores_are_those_of_each_setting():
    two = population([[20, 300], [40, 8], [20, 300], [30, 500]], frozen_at=[-1, -1, -1, 1])
    two = two._replace(setting=np.array([0, 0, 1, 1]))
    assert scores(two).tolist() == [300, 8, 300, 25]
    silent = two._replace(final_return=np.array([300, 8, np.nan, np.nan]))
    silent.metrics.episodes[2:] = 0
    assert scores(silent).tolist() == [300, 8, 8, 8]  # of a setting without any, that of all
    silent.metrics.episodes[:] = 0
    silent.final_return[:] = np.nan
    assert np.isnan(scores(silent)).all()


def test_where_no_episode_ended_there_is_no_score():
    silent = population([[0.0] * 4] * 2, 0, final=[np.nan] * 2)
    some = outcomes(CONFIG, silent)
    assert len(some.scores) == 0
    assert measure(some)["iqm"] is None
    assert measure(some)["solved"].value == 0
    assert remarks(some) == ["2 seeds finished no episode: counted as not solved"]
    some = some._replace(solving=None)  # nobody says what is
    assert remarks(some) == ["2 seeds finished no episode: there is no return of theirs"]


def test_remarks_say_what_failed_seeds_count_with():
    some = outcomes(CONFIG, population([[20.5, 480, 490, 500]] * 3, frozen_at=[-1, 2, 3]))
    said, of_three = remarks(some)
    assert said == (
        "2 seeds diverged: counted with a return of 20.5, no better than before training, and as "
        "not solved"
    )
    assert of_three == (
        "of 3 seeds an interval is too narrow: those of the IQM cover the truth in about three "
        "quarters of all cases, in fewer if seeds fail, and not in 95 %"
    )


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(1, ""), (2, "about half"), (3, "about three"), (5, "about nine tenths"), (16, "")],
)
def test_intervals_of_few_seeds_are_said_to_be_too_narrow(seeds, said):
    lines = remarks(outcomes(CONFIG, population([[20.0, 400, 490, 500]] * seeds)))
    assert [said in line for line in lines] == [True] * bool(said)


def test_where_there_is_no_interval_none_is_too_narrow():
    gone = outcomes(CONFIG, population([[20.0, 400, 490, 500]] * 4, frozen_at=[1, 1, 2, 2]))
    (said,) = remarks(gone)
    assert said.startswith("4 seeds diverged")


def test_who_solves_is_not_known_of_fewer_than_100_episodes():
    """A perfect seed that had no time for them is no failure; nor is it said to have solved."""
    few = population([[500.0] * 4] * 20, episodes=24)  # 96 of each
    ends = outcomes(CONFIG, few)
    found = measure(ends)
    assert not ends.solving.judged.any()
    assert (found["solved"], found["ever_solved"], found["time_to_solve"]) == (None, None, None)
    assert found["optimality_gap"].value == 0.0
    said, long = remarks(ends)
    assert long.startswith(
        "the last 100 episodes, of which a final return is the mean, are 100.0 %"
    )
    assert said == (
        "20 seeds ended fewer than the 100 episodes that solving is a mean of: so nobody can say "
        "who does"
    )
    one_gone = outcomes(CONFIG, few._replace(frozen_at=np.array([2, *[-1] * 19])))
    assert measure(one_gone)["solved"] is None  # its failure says nothing of the others
    few.metrics.episodes[0, 0] = 99
    found = measure(outcomes(CONFIG, few))
    assert found["solved"].value == 1 / 20
    assert "19 seeds ended fewer" in remarks(outcomes(CONFIG, few))[0]


def test_the_summarys_numbers_are_those_of_the_report():
    x = np.random.default_rng(0).normal(250, 100, 37).astype(np.float32)
    numbers = spread(x)
    whole = estimate(iqm, [x])
    assert (numbers["iqm"], numbers["ci95_low"], numbers["ci95_high"]) == whole


def test_the_ranking_puts_failed_seeds_last_and_keeps_the_order_of_equal_ones():
    final = np.array([400, 500, np.nan, 500, 450, 500.0])
    diverged = np.array([0, 0, 0, 0, 0, 1], bool)
    assert ranking(final, diverged).tolist() == [1, 3, 4, 0, 2, 5]
    # The middle of six: places 3 and 4, of which the lower one.
    assert typical(final, diverged) == {"best": 1, "median": 0, "worst": 5}


def test_of_equal_seeds_three_different_ones_are_typical():
    nobody = np.zeros(5, bool)
    assert typical(np.full(5, 500.0), nobody) == {"best": 0, "median": 2, "worst": 4}
    assert typical(np.full(2, 500.0), nobody[:2]) == {"best": 0, "median": 1, "worst": 1}
    assert typical(np.full(1, 500.0), nobody[:1]) == {"best": 0, "median": 0, "worst": 0}
    assert typical(np.full(3, 500.0), ~nobody[:3]) == {"median": 1, "worst": 2}


def test_what_a_smaller_budget_would_have_left():
    whole = population([[20, 480, 490, 500], [20, 30, 40, 500]], frozen_at=[3, -1])
    early = until(CONFIG, whole, Budget(79, STEPS))  # three updates of 20 steps
    assert early.final_return.tolist() == [490, 40]
    assert early.frozen_at.tolist() == [-1, -1]  # it diverged later
    assert early.metrics.episodes.tolist() == [[100, 100, 100, 0]] * 2
    some = outcomes(CONFIG, whole, within=Budget(60, STEPS))
    assert some.solving.time.tolist() == [40, 60]
    assert some.solving.solved.tolist() == [True, False]
    assert not some.diverged.any()
    # A row that is not cut has the same statistic as the others, not its last 100 episodes.
    same = until(CONFIG, whole._replace(final_return=np.array([1, 2.0])), Budget(80, STEPS))
    assert same.final_return.tolist() == [500, 500]
    assert same.frozen_at.tolist() == [3, -1]


def test_a_task_is_solved_by_a_hundred_episodes():
    """Not by fewer; and who solves it at the end has solved it, if no whole updates say so, too."""
    few = outcomes(CONFIG, population([[500.0] * 4] * 2, episodes=10))
    assert not few.solving.solved.any()
    assert not few.solving.ever.any()
    last = outcomes(CONFIG, population([[20, 20, 460, 480]], episodes=60, final=[476.0]))
    assert last.solving.solved.tolist() == last.solving.ever.tolist() == [True]
    assert last.solving.time.tolist() == [80]


def test_few_episodes_before_a_smaller_budget_are_all_that_count():
    few = population([[20, 40, 90, 90]], [[1, 3, 200, 200]])
    # Of 4 episodes, 20 and three times 40.
    assert until(CONFIG, few, Budget(40, STEPS)).final_return.tolist() == [35]
    assert np.isnan(until(CONFIG, few, Budget(19, STEPS)).final_return).all()


def test_budgets_in_different_units_meet_in_steps():
    in_steps = population([[20, 480, 490, 500]] * 2)
    used = [[10, 20, 30, 40], [5, 5, 5, 5], [1, 1, 0, 0]]
    in_episodes = population([[20, 480, 490, 500]] * 3, frozen_at=[-1, -1, 2], env_steps=used)
    assert (budget(CONFIG), budget(IN_EPISODES)) == (Budget(80, STEPS), Budget(16, "episodes"))
    assert smallest([(CONFIG, in_steps), (CONFIG, in_steps)]) is None
    assert smallest([(IN_EPISODES, in_episodes)] * 2) is None
    # The second seed took 20 steps; the third, which took fewer, diverged.
    within = smallest([(CONFIG, in_steps), (IN_EPISODES, in_episodes)])
    assert within == Budget(20, STEPS)
    longer = CONFIG.__class__(num_envs=2, num_steps=10, total_steps=160)
    assert smallest([(longer, None), (CONFIG, None)]) == Budget(80, STEPS)
    # The first seed: one update (10 steps; two take 30). The second: all four.
    some = outcomes(IN_EPISODES, in_episodes, within=within)
    assert some.final.tolist() == [20, 500, 500]
    assert some.diverged.tolist() == [False, False, True]
    assert some.solving.time.tolist() == [10, 10, 2]  # the first was not watched any longer
    with pytest.raises(ValueError, match="not measured in episodes"):
        spent(CONFIG, in_steps, "episodes")
    used[0] = [21, 1, 1, 1]  # more than that in its first update
    dear = population([[20, 480, 490, 500]] * 3, frozen_at=[-1, -1, 2], env_steps=used)
    with pytest.raises(RunError, match=r"nothing to compare after 20 .* takes 21"):
        smallest([(CONFIG, in_steps), (IN_EPISODES, dear)])


@pytest.mark.parametrize(
    ("episodes", "share", "of_cut"),
    [
        ([100] * 4, 1 / 4, 1 / 4),
        ([300] * 4, 1 / 12, 1 / 4),  # a third of the last update; cut, all of it counts
        ([80, 80, 80, 80], 1.25 / 4, 1 / 2),
        ([100, 0, 0, 40], (1 + 2 + 0.6) / 4, 1.0),
        ([10] * 4, 1.0, 1.0),
    ],
)
def test_how_much_of_the_training_a_final_return_is_of(episodes, share, of_cut):
    some = population([[20.0, 30, 40, 50]] * 2, episodes)
    assert outcomes(CONFIG, some).recent_share == pytest.approx(share)
    cut = outcomes(CONFIG, some, within=Budget(80, STEPS))
    assert cut.recent_share == pytest.approx(of_cut)


def test_the_curve_of_a_failed_seed_is_what_it_counts_with():
    returns = [[20, 480, 490, 500], [40, 480, 490, 500], [0, 0, 0, 0], [20, 0, 100, 0]]
    ended = [[100] * 4, [100] * 4, [0] * 4, [0, 0, 100, 0]]
    some = population(returns, ended, frozen_at=[-1, 2, -1, -1], final=[500, 480, np.nan, 100])
    # Untrained: 20, 40 and 100, each of 100 episodes. The second diverges in the third update.
    amount, seen = curve_points(CONFIG, some)
    assert amount.tolist() == [20, 40, 60, 80]
    least = 160 / 3
    wanted = [
        [20, 480, 490, 500],
        [40, 480, least, least],
        [least] * 4,
        [np.nan, np.nan, 100, 100],
    ]
    np.testing.assert_allclose(seen, wanted)


def test_a_run_in_episodes_has_a_curve_over_steps():
    used = [[10, 20, 30, 40], [5, 10, 15, 10]]
    some = population([[1, 2, 3, 4], [5, 6, 7, 8]], env_steps=used)
    amount, seen = curve_points(IN_EPISODES, some, STEPS)
    # It ends with the second seed, after 40 steps. The first has done 10 by then, then 30.
    assert amount.tolist() == [10, 20, 30, 40]
    np.testing.assert_array_equal(seen, [[1, 1, 2, 2], [5, 6, 7, 8]])
    own, _ = curve_points(IN_EPISODES, some)
    assert own.tolist() == [4, 8, 12, 16]


# Whether it has learnt


def share_shown(make, seeds, updates=50, times=100):
    """Of so many runs, how many are said to have learnt."""
    rng = np.random.default_rng(seeds)
    runs = (population(make(rng, (seeds, updates)), episodes=5) for _ in range(times))
    return np.mean([learning(CONFIG, run).shown for run in runs])


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
    assert learning(CONFIG, population(returns, episodes=5)).shown


def test_what_is_said_of_a_run_that_learns_nothing():
    same = learning(CONFIG, population(np.full((8, 50), -200.0)))
    assert (same.first, same.last, same.shown, same.constant) == (-200.0, -200.0, False, True)
    assert "-200 in the first tenth of training and -200 in the last, always the same" in (
        same.warning
    )
    rng = np.random.default_rng(0)
    worse = learning(CONFIG, population(np.linspace(0.3, 0, 50) + 0.1 * rng.normal(size=(8, 50))))
    assert not worse.shown
    assert worse.first > 0.2 > 0.05 > worse.last
    assert worse.warning.endswith(
        "try other learning rates (a factor of 10 either way), a larger budget, "
        "normalize_advantage, normalize_obs or normalize_reward."
    )
    scaled = dataclasses.replace(CONFIG, normalize_advantage=True, normalize_obs=True)
    again = population(np.linspace(0.3, 0, 50) + 0.1 * rng.normal(size=(8, 50)))
    assert learning(scaled, again).warning.endswith("a larger budget or normalize_reward.")
    told = learning(CONFIG, again._replace(manifest=SimpleNamespace(start="another run")))
    assert "Nothing shows that it is better than what it started from:" in told.warning
    better = learning(CONFIG, population(np.linspace(0, 0.3, 50) + 0.1 * rng.normal(size=(8, 50))))
    assert better.shown
    assert better.warning is None


def test_what_solves_it_from_first_to_last_has_nothing_left_to_learn():
    perfect = learning(CONFIG, population(np.full((4, 50), 500.0)))
    assert (perfect.shown, perfect.constant, perfect.warning) == (False, True, None)
    lost = learning(CONFIG, population(np.linspace(500, 300, 50) * np.ones((4, 1))))
    assert lost.warning is not None


def test_rounding_is_not_learning():
    returns = np.full((4, 50), 0.1)
    returns[:, 25:] *= 1 + 1e-7
    assert not learning(CONFIG, population(returns)).shown


def test_updates_without_an_episode_do_not_count():
    """Only the first and last of four in which one ended; with three nothing can be said."""
    episodes = np.array([[0, 3, 0, 3, 0, 3, 3, 0]])
    returns = np.array([[0, 1.0, 0, 1.0, 0, 5.0, 5.0, 0]])
    found = learning(IN_EPISODES, population(returns, episodes))
    assert (found.first, found.last, found.shown) == (1.0, 5.0, True)
    episodes[0, 1] = 0
    assert learning(IN_EPISODES, population(returns, episodes)) is None


def test_the_episodes_that_end_first_are_short_and_do_not_count():
    """Two environments: until four episodes have ended in one update or more."""
    returns = np.full((8, 50), 21.5)
    returns[:, 0] = 20.5
    early = population(returns, episodes=5)
    assert not learning(CONFIG, early).shown
    assert learning(CONFIG, early).first == 21.5
    assert learning(IN_EPISODES, early).shown  # whole episodes, all of them count


def test_untrained_is_who_was_evaluated_before_training():
    some = population([[-300.0] * 4, [-320.0] * 4], frozen_at=[-1, 2])
    before = np.array([[-480.0, -90.0], [-500.0, -90.0]], np.float32)
    seen = some._replace(evaluations=Evaluations(np.array([0, 4]), before + 99, before))
    assert (untrained_return(some), untrained_return(seen)) == (-310.0, -490.0)
    assert scores(seen).tolist() == [-300.0, -490.0]
    assert untrained_return(until(CONFIG, seen, Budget(40, STEPS))) == -490.0  # compared after less
    before[0, 0] = np.inf
    assert untrained_return(seen) == -500.0


def test_budgets_are_alike_if_they_are_spent_alike():
    """1,280 steps are 10 updates of 128, 1 of 800, or 9 of 140 and some that pay for none."""
    few, coarse, near = (
        dataclasses.replace(CONFIG, num_envs=n, num_steps=t, total_steps=1_280)
        for n, t in ((8, 16), (4, 200), (14, 9))
    )
    assert [c.num_updates * c.update_cost for c in (few, coarse, near)] == [1_280, 800, 1_260]
    assert alike(few, near)
    assert not alike(few, coarse)
    assert smallest([(few, None), (coarse, None)]) == Budget(800, STEPS)
    coarser = dataclasses.replace(coarse, num_steps=500, total_steps=8_000)
    with pytest.raises(RunError, match=r"nothing to compare after 1,280 .*takes 2,000"):
        smallest([(few, None), (coarser, None)])


def test_of_seeds_that_all_failed_there_is_no_interval():
    """What they count with is no score of theirs."""
    found = measure(outcomes(CONFIG, population([[20, 40, 60, 80]] * 4, frozen_at=[1, 2, 1, 2])))
    assert {write_interval(found[name], "return") for name in ("iqm", "median", "mean")} == {""}
    solved = found["time_to_solve"]
    assert (solved.value, solved.low) == (np.inf, 0.0)
    assert write_interval(solved, "budget") == ""  # it may be anything


def test_a_mean_of_equal_scores_knows_nothing_of_failures():
    found = measure(outcomes(CONFIG, population([[20, 480, 490, 500]] * 64)))
    assert found["iqm"] == (500, 500, 500)
    assert found["mean"].value == 500
    assert np.isnan([found["mean"].low, found["optimality_gap"].high]).all()
    assert write_interval(found["mean"], "return") == ""
    assert as_json(found["mean"]) == {"value": 500, "ci95_low": None, "ci95_high": None}
