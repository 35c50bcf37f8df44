"""The one error that is the user's to mend."""


class InputError(Exception):
    """Bad usage or input: shown as one line, exit code 2.

    ``agreed`` is true when every rank raises the same error, so that rank 0 speaks for all and nobody waits.
    """

    def __init__(self, message: str, *, agreed: bool = False):
        super().__init__(" ".join(message.split()))
        self.agreed = agreed
