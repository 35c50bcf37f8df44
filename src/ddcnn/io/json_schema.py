"""The JSON schema of a run's files: ``python -m ddcnn.io.json_schema > docs/results.schema.json`` writes it."""

import json
import sys
from typing import Any

from pydantic.json_schema import models_json_schema

from ddcnn.io.results_schema import EpochLine, RunResults


def json_schema() -> dict[str, Any]:
    """Of the results, with that of a line of metrics as ``EpochLine`` among its definitions."""
    references, definitions = models_json_schema([(RunResults, "validation"), (EpochLine, "validation")])
    return references[RunResults, "validation"] | definitions


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
