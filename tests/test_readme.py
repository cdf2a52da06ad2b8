"""The README's Python runs, and the pages' figures are those of the committed results."""

import re

import pytest

from benchmarks import readme


def test_python_blocks_run(capsys):
    text = (readme.ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 1
    namespace: dict = {}
    exec(blocks[0], namespace)
    mean, shape = capsys.readouterr().out.splitlines()
    assert float(mean) > 15  # a random policy's is about 22, and it learns
    assert shape == "(8, 4, 64)"
    assert namespace["by_rate"].return_sum.shape == (3, 20)


@pytest.mark.parametrize("page", readme.PAGES)
def test_figures_are_those_of_the_results(page):
    text = (readme.ROOT / page).read_text()
    assert readme.render(page, text) == text
