"""The picture of the method is what its script draws, and can be read on any page."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

DOCS = Path(__file__).parent.parent / "docs"


def test_script_draws_the_picture_that_is_there():
    drawn = runpy.run_path(str(DOCS / "method_figure.py"))["drawing"]()
    assert (DOCS / "method.svg").read_text("utf-8") == drawn, "python docs/method_figure.py draws it anew"


def test_picture_has_a_background_and_letters_that_are_large_enough():
    root = ElementTree.parse(DOCS / "method.svg").getroot()
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    first = next(one for one in root if one.tag.endswith("rect"))  # behind all others
    assert (left, top, float(first.attrib["width"]) + 1, float(first.attrib["height"]) + 1) == (0, 0, width, height)
    assert re.fullmatch(r"#[0-9a-f]{6}", first.attrib["fill"])
    texts = [one for one in root.iter() if one.tag.endswith("}text")]
    assert len(texts) > 15
    assert min(float(one.attrib["font-size"]) for one in texts) * 800 / width >= 12
