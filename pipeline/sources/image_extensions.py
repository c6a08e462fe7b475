"""File name extensions of images, to tell a damaged image from a file that was never meant to be one."""

from pathlib import PurePosixPath

FORMAT_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "PNG": {".png", ".apng"},
    "WEBP": {".webp"},
    "GIF": {".gif"},
    "BMP": {".bmp", ".dib"},
}
"""Extensions by Pillow's name of the format."""
UNREAD_EXTENSIONS = {
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".psd", ".svg", ".ico", ".tga", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".eps", ".fits", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
}
"""Extensions of unsupported image formats. Such a file is rejected, not ignored."""
IMAGE_EXTENSIONS = UNREAD_EXTENSIONS.union(*FORMAT_EXTENSIONS.values())


def extension(name: str) -> str:
    """The extension of a file name in lower case, with its dot; empty if it has none."""
    return PurePosixPath(name).suffix.lower()


def is_named_like_an_image(name: str) -> bool:
    """Whether a file name has the extension of an image."""
    return extension(name) in IMAGE_EXTENSIONS
