"""The one exception that ends a command with exit status 2 and a single line."""


class UserError(Exception):
    """Wrong usage or unreadable input. The message says what is wrong, where, and what would be right."""


def as_option(message: str) -> str:
    """A message that begins with a field's name ("keep_ratio must be ...") as one about the option of that name."""
    field, space, rest = message.partition(" ")
    return f"--{field.replace('_', '-')}{space}{rest}"
