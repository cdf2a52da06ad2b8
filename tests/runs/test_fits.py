"""PPO, TRPO and what is normalised are runs like any other: all that is done with one is done with
theirs."""

import dataclasses
import json

import numpy as np
import pytest

import jaxpg
from jaxpg.cli.main import main
from jaxpg.errors import Stopped
from tests.compare import assert_same
from tests.runs.test_runs import TINY

pytestmark = pytest.mark.usefixtures("programs_kept")

SEEDS = [2, 9, 4]
RECKLESS = 1e30
CONFIGS = {
    "ppo": dataclasses.replace(
        TINY, fit="ppo", value_steps=1, epochs=2, minibatches=3, joint_loss=True, target_kl=0.05
    ),
    "trpo": dataclasses.replace(TINY, fit="trpo", init="orthogonal"),
    "penalty, scaled": dataclasses.replace(
        TINY,
        fit="ppo_penalty",
        value_steps=1,
        epochs=2,
        minibatches=3,
        desired_kl=1e-4,
        normalize_obs=True,
        normalize_reward=True,
    ),
}
SETTINGS = {
    "ppo": [{}, {"clip_coef": 0.05}, {"target_kl": 1e-4}, {"learning_rate": RECKLESS}],
    "trpo": [
        {},
        {"max_kl": 1e-3},
        {"damping": 1.0, "cg_steps": 2},
        {"value_learning_rate": RECKLESS},
    ],
    "penalty, scaled": [
        {},
        {"kl_coef": 50.0},
        {"desired_kl": 1.0, "gamma": 0.5},
        {"learning_rate": RECKLESS},
    ],
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def finished(request, tmp_path_factory):
    """The run's directory, its config, its settings and what was trained."""
    config, settings = CONFIGS[request.param], SETTINGS[request.param]
    out = tmp_path_factory.mktemp("fits") / request.param
    trained = jaxpg.train_population(config, SEEDS, settings=settings, lanes=2, out=out)
    return out, config, settings, trained


def test_settings_of_their_fields_are_rows_of_one_program(finished):
    _, config, settings, trained = finished
    for i, setting in enumerate(settings):
        alone = jaxpg.train_population(dataclasses.replace(config, **setting), SEEDS, lanes=2)
        mine = trained.setting == i
        np.testing.assert_array_equal(trained.final_return[mine], alone.final_return)
        np.testing.assert_array_equal(trained.metrics.policy_loss[mine], alone.metrics.policy_loss)
    losses = trained.metrics.policy_loss[trained.seeds == 2]
    assert len(np.unique(losses[:3], axis=0)) == 3


def test_a_seed_that_is_not_finite_is_frozen_alone(finished):
    *_, trained = finished
    assert (trained.frozen_at[trained.setting == 3] >= 0).all()
    assert (trained.frozen_at[trained.setting < 3] == -1).all()


def test_stopped_they_go_on_to_the_same_bits(finished, tmp_path, stop_after):
    _, config, settings, trained = finished

    def again(**options):
        out = tmp_path / "run"
        return jaxpg.train_population(config, SEEDS, settings=settings, lanes=2, out=out, **options)

    with pytest.raises(Stopped):
        again(report=stop_after(2))
    assert_same(trained, again())


def test_a_seed_again_is_the_run(finished, tmp_path):
    """All that an update gave its optimizers is there: for PPO, a gradient a minibatch."""
    directory, *_ = finished
    out = tmp_path / "again"
    which = ["--seed", "9", "--setting", "0", "--update", "1"]
    main(["retrace", str(directory), *which, "--out", str(out)])
    told = json.loads((out / "retrace.json").read_text())
    (path,) = out.glob("*.npz")
    with np.load(path) as arrays:
        assert sum(name.endswith("policy.output.weight") for name in arrays) > 1
    assert told["seed"] == 9


def test_what_they_report_is_finite_and_they_have_a_page(finished, capsys):
    directory, config, *_ = finished
    main(["report", str(directory)])  # of settings that are no grid
    assert "report.html" in capsys.readouterr().out
    trained = jaxpg.load(directory).population
    for name in config.reports:
        assert np.isfinite(trained.metrics.named()[name][trained.setting < 3]).all(), name


def test_compared_and_exported(finished, tmp_path, capsys):
    directory, *_ = finished
    main(["compare", str(directory), "--json", str(tmp_path / "compared.json")])
    assert json.loads((tmp_path / "compared.json").read_text())
    loaded = jaxpg.load(directory)
    obs = np.zeros((3, 4), np.float32)
    assert loaded.policy(4, setting=1).act(obs).shape == (3,)
