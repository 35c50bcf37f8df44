"""The figures of a report, one function each: arrays in, a figure out. N subdomains, K classes, S samples, d = 2 or 3 dimensions."""

from ddcnn.report.figures.charts import accuracy_over_time, learning_curves, reliability, timeline
from ddcnn.report.figures.images import decomposition, disagreement
from ddcnn.report.figures.maps import confusion, local_accuracy, reliance
from ddcnn.report.figures.studies import predicted, scaling

__all__ = [
    "accuracy_over_time",
    "confusion",
    "decomposition",
    "disagreement",
    "learning_curves",
    "local_accuracy",
    "predicted",
    "reliability",
    "reliance",
    "scaling",
    "timeline",
]
