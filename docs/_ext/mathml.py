"""Formulas as MathML, which every browser draws by itself: no script, no font, no network."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging


def setup(app: Sphinx) -> dict[str, Any]:
    """Make it the renderer of inline and of displayed formulas."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node, block=False))
    raise nodes.SkipNode


def _display(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{_mathml(node, block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, block: bool) -> str:
    try:
        return _spaced(tex2mathml(node.astext(), as_block=block))
    except MathError as error:
        message = f"formula {node.astext()!r}: {error}"
        logging.getLogger(__name__).warning(message, location=node)
        return ""


def _spaced(mathml: str) -> str:
    """TeX's thin space around the name of a function, which browsers leave out; an upright ∇."""
    space = '<mspace width="0.17em"/>'
    mathml = mathml.replace("<mo>&ApplyFunction;</mo>", space)
    mathml = re.sub(r"(</m(?:i|n|sub|sup)>|>\)</mo>)(\s*<mi>log</mi>)", rf"\1{space}\2", mathml)
    return mathml.replace("<mi>∇</mi>", '<mi mathvariant="normal">∇</mi>')
