"""Text for a terminal."""


def printable(path: str) -> str:
    """Replace characters that a terminal would interpret: file names may hold line breaks and escape sequences."""
    return "".join(character if character.isprintable() else "?" for character in path)
