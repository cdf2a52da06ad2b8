"""The README's Python runs, and its figures are those of the committed results."""

import re

from benchmarks import readme


def test_python_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", readme.README.read_text(), flags=re.S)
    assert len(blocks) == 1
    namespace: dict = {}
    exec(blocks[0], namespace)
    mean, shape = capsys.readouterr().out.splitlines()
    assert float(mean) > 15  # a random policy's is about 22, and it learns
    assert shape == "(8, 4, 64)"
    assert namespace["by_rate"].return_sum.shape == (3, 20)


def test_figures_are_those_of_the_results():
    text = readme.README.read_text()
    assert readme.render(text) == text
