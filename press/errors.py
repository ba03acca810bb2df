"""What the tools say when something is wrong that their user can mend."""


class BookError(Exception):
    """A failure that the reader of the terminal can act on: no traceback is shown."""
