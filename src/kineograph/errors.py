"""What Kineograph says when it cannot do, or doubts, what it was asked."""


class InputError(ValueError):
    """Something that was passed in cannot be used; the text says what was expected, what came and what to do."""


class InputWarning(UserWarning):
    """Something that was passed in can be used, but may not do what was meant."""
