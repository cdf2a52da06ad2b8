"""The family against the truth: PPO, natural gradients, group baselines, and a view that is cut.

`oracle.py` holds the estimators of one step along the gradient. Here are the questions that the
other members raise, on problems of a few trajectories; each kind of question is a page.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax

from jaxpg.core import noise
from jaxpg.proof.cuts import bias_before_cut, weights_before_cut
from jaxpg.proof.epochs import epochs, first_minibatch, first_steps
from jaxpg.proof.finding import Finding
from jaxpg.proof.fisher import direction
from jaxpg.proof.groups import groups
from jaxpg.proof.problems import cartpole, tabular

SMALL = (partial(cartpole, 5), partial(tabular, 2))  # few enough for all groups of 3
QUESTIONS: dict[str, tuple[Callable[..., Iterator[Finding]], tuple[Callable, ...]]] = {
    "first minibatch": (first_minibatch, SMALL),
    "first steps": (first_steps, SMALL[:1]),
    "epochs": (epochs, SMALL),
    "natural direction": (direction, (SMALL[0], tabular)),
    "groups": (groups, SMALL),
    "weights before a cut": (weights_before_cut, (partial(cartpole, 12),)),
    "bias before a cut": (bias_before_cut, (partial(cartpole, 12), partial(tabular, 5))),
}  # who asks, and of which problems


def findings(*, seed: int = 0, report: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """What comes out of every question, at the networks' initial weights.

    Args:
      seed: of the weights.
      report: told which question is begun, from any thread.
    """

    def asked(question: str) -> list[Finding]:
        report(question)
        with jax.enable_x64(True):  # it holds for one thread
            ask, problems = QUESTIONS[question]
            found = []
            for problem in (make() for make in problems):
                params = problem.networks.init(*noise.split(noise.key(seed), 2))
                found += [held._replace(question=question) for held in ask(problem, params)]
            return found

    with ThreadPoolExecutor() as pool:  # as in `oracle.rows`
        return [finding for found in pool.map(asked, QUESTIONS) for finding in found]
