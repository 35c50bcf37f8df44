"""Tags of point-to-point messages, all of which go through the communicator of the job."""

from enum import IntEnum


class Tag(IntEnum):
    """What a message is about: which work another rank should stop."""

    LOCAL = 1
    FOLDS = 2
    DNN = 3
    PARTITION = 4
