"""The methods that a run compares: what each of them needs, and which one classifies new images by default."""

from collections.abc import Iterable
from enum import StrEnum


class Method(StrEnum):
    """A method, equal to its name; in the order of results."""

    VOTE = "vote"
    AVERAGE = "average"
    DNN = "dnn"
    COHERENT = "coherent"
    TRANSFER = "transfer"
    GLOBAL = "global"
    SPATIAL = "spatial"

    @property
    def combines_probabilities(self) -> bool:
        """Whether the local classifications p_i are combined as they are, without a DNN."""
        return self in (Method.VOTE, Method.AVERAGE)

    @property
    def has_dnn(self) -> bool:
        """Whether a DNN decides."""
        return self in (Method.DNN, Method.COHERENT, Method.TRANSFER)

    @property
    def joint(self) -> bool:
        """Whether local CNNs and DNN are trained together, with checkpoints of their own."""
        return self in (Method.COHERENT, Method.TRANSFER)

    @property
    def whole_image(self) -> bool:
        """Whether the method is a single CNN that sees the whole image."""
        return self in (Method.GLOBAL, Method.SPATIAL)


def divide_images(methods: Iterable[Method]) -> bool:
    """Whether any of them trains local CNNs, so that ranks have to fit the subdomains."""
    return not all(method.whole_image for method in methods)


PHASES_OF = {  # the phases whose seconds and bytes a method needs
    Method.VOTE: ("local", "gather"),
    Method.AVERAGE: ("local", "gather"),
    Method.DNN: ("local", "folds", "gather", "dnn"),
    Method.COHERENT: ("coherent",),
    Method.TRANSFER: ("local", "folds", "gather", "dnn", "transfer"),
    Method.GLOBAL: ("global",),
    Method.SPATIAL: ("spatial",),
}
BY_DEFAULT = tuple(method for method in Method if method != Method.SPATIAL)  # which has the global CNN, in other pieces
PREFERRED = (Method.TRANSFER, Method.COHERENT, Method.DNN, Method.AVERAGE, Method.VOTE, Method.GLOBAL, Method.SPATIAL)
# the same where subdomains are missing: coherent suffers most
PREFERRED_IN_PART = (Method.TRANSFER, Method.DNN, Method.AVERAGE, Method.VOTE, Method.COHERENT)
