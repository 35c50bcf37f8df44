"""details.h5: decisions, confidences, a few images and the timeline of a run, from which its figures are drawn.

labels (S,)                  true classes of the test samples
local_classes (S, N)         arg max p_i, if local CNNs were trained
classes/METHOD (S,)          decisions
confidence/METHOD (S,)       float32, probability of the decision, if the method has probabilities
examples (n, *spatial, C)    test images of different classes; attribute ``rows`` (n,): which samples they are
disagreement (n, h, w, C)    test images that vote and DNN classify differently; attribute ``rows`` (n,)
timeline (spans, 5)          rank, phase, kind, start, stop; attributes ``phases`` and ``kinds``: the names of their numbers
attribute ``class_names``    JSON list of K names
"""

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ddcnn.io.hdf5 import Damaged, attribute, checked_array, checked_dataset, parsing, writing
from ddcnn.io.results_schema import RunResults


@dataclass(frozen=True)
class Details:
    """Contents of the file, as above.

    Attributes:
        local_classes: written for other programs; not read.
        pictures: (n, h, w, C) of the samples that vote and DNN classify differently, none if there are none.
    """

    labels: np.ndarray
    classes: dict[str, np.ndarray]
    confidence: dict[str, np.ndarray]
    class_names: list[str]
    examples: np.ndarray
    example_rows: np.ndarray
    pictures: np.ndarray
    picture_rows: np.ndarray
    timeline: np.ndarray
    phases: tuple[str, ...]
    kinds: tuple[str, ...]
    local_classes: np.ndarray | None = None

    def write(self, path: Path) -> None:
        with writing(path, libver=None) as file:
            file["labels"] = self.labels
            if self.local_classes is not None:
                file["local_classes"] = self.local_classes
            for group, arrays in (("classes", self.classes), ("confidence", self.confidence)):
                for name, array in arrays.items():
                    file[f"{group}/{name}"] = array
            disagreement, examples = (self.pictures, self.picture_rows), (self.examples, self.example_rows)
            for name, (images, rows) in (("disagreement", disagreement), ("examples", examples)):
                if len(rows):
                    file[name] = images
                    file[name].attrs["rows"] = rows
            file["timeline"] = self.timeline
            file["timeline"].attrs["columns"] = "rank, phase, kind, start, stop"
            file["timeline"].attrs["phases"], file["timeline"].attrs["kinds"] = " ".join(self.phases), " ".join(self.kinds)
            file.attrs["class_names"] = json.dumps(self.class_names)

    @classmethod
    def read(cls, file: h5py.File, results: RunResults) -> "Details":
        """Reads the file, of volumes one example; Damaged if it is damaged, or belongs to other results."""
        samples, analysis = results.data.test_samples, results.analysis
        with parsing():
            examples, timeline = checked_dataset(file, "examples"), checked_dataset(file, "timeline")
            chosen = slice(1 if examples.ndim == 5 else None)  # one volume is enough, and may be large
            pictures, picture_rows = np.empty((0, 1, 1, 1)), np.empty(0, dtype=int)
            if analysis and any(analysis.disagreement.values()):
                dataset = checked_dataset(file, "disagreement")
                pictures, picture_rows = dataset[...], np.array(attribute(dataset, "rows"), dtype=int)
            details = cls(
                labels=checked_array(file, "labels", (samples,)),
                classes={name: checked_array(file, f"classes/{name}", (samples,)) for name in results.methods},
                confidence={
                    name: checked_array(file, f"confidence/{name}", (samples,)) for name in (analysis.calibration_error if analysis else ())
                },
                class_names=json.loads(attribute(file, "class_names")),
                examples=examples[chosen],
                example_rows=np.array(attribute(examples, "rows"), dtype=int)[chosen],
                pictures=pictures,
                picture_rows=picture_rows,
                timeline=timeline[...],
                phases=tuple(attribute(timeline, "phases").split()),
                kinds=tuple(attribute(timeline, "kinds").split()),
            )
        for images, rows in ((details.pictures, details.picture_rows), (details.examples, details.example_rows)):
            if len(images) != len(rows) or not set(rows.tolist()) <= set(range(samples)):
                raise Damaged("images that do not fit their rows")
        shapes = details.pictures.ndim, details.examples.shape[1:], len(details.class_names), details.timeline.shape[1:]
        if shapes != (4, results.data.shape, results.data.classes, (5,)) or not len(details.timeline):
            raise Damaged("its arrays do not fit the results")
        return details
