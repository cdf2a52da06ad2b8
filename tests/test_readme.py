"""The README's Python runs, and the pages' figures are those of the committed results."""

import re

import numpy as np
import pytest

from benchmarks import readme


@pytest.mark.as_users_run(1)
def test_python_blocks_run(capsys):
    text = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 2
    namespace: dict = {}
    exec(blocks[0], namespace)
    mean, worst = (float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines())
    assert mean > 40  # a random policy's is about 22, and it learns
    assert worst > 100
    plain = namespace["state"].params["policy"]["output"]["kernel"][0]
    exec(blocks[1], namespace)
    assert namespace["metrics"].return_sum.shape == (40,)
    assert (
        namespace["metrics"].return_sum[-5:].sum() > 100 * namespace["metrics"].episodes[-5:].sum()
    )
    assert not np.array_equal(plain, namespace["state"].params["policy"]["output"]["kernel"])


@pytest.mark.parametrize("page", readme.PAGES)
def test_figures_are_those_of_the_results(page):
    text = (readme.ROOT / page).read_text(encoding="utf-8")
    assert readme.render(page, text) == text
