"""What Kineograph raises when it cannot do what it was asked."""


class InputError(ValueError):
    """Something that was passed in cannot be used; the text says what was expected, what came and what to do."""
