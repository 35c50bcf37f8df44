"""The picture of the data flow is what its script draws."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_script_draws_the_picture_that_is_there(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))  # it imports the script beside it
    drawn = runpy.run_path(str(DOCS / "data_flow_figure.py"))["drawing"]()
    assert (DOCS / "data_flow.svg").read_text("utf-8") == drawn, "python docs/data_flow_figure.py draws it anew"
