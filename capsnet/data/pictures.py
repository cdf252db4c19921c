"""One picture: read from a file, and brought to a size and to channels.

Files are not trusted: a broken one, whatever is wrong with it, is a
`UserError`, and none makes the program allocate more than its size allows.
"""

import math
import os
import stat
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from capsnet.devices import require_memory
from capsnet.messages import UserError

PICTURE_FORMATS = "PNG JPEG BMP GIF TIFF WEBP AVIF PPM DIB".split()
FORMATS = "PNG, JPEG, BMP, GIF, TIFF, WebP, AVIF, PPM and PGM"
PICTURE_SUFFIXES = frozenset(
    suffix
    for suffix, kind in Image.registered_extensions().items()
    if kind in PICTURE_FORMATS
)
PICTURE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Deflate turns one byte into 1032 at most, so a file that claims more lies.
MAX_DEFLATE_RATIO = 1032
# A blank picture of this size is believed, whatever the size of its file.
MAX_UNPROVEN_PIXELS = 2**22
BROKEN = "broken"


class UnreadablePicture(UserError):
    """A file that cannot be read as a picture; `reason` says why not."""

    def __init__(self, path, reason):
        super().__init__(
            f"expected a picture, received {str(path)!r}, which cannot be "
            f"read ({reason}): replace or remove it"
        )
        self.reason = reason

    def named(self, name):
        """The name, and the reason where it is not that of most files."""
        return name if self.reason == BROKEN else f"{name}: {self.reason}"


def read_pictures(files, input_shape):
    """Reads files in a model's `input_shape`, `(height, width, channels)`.

    Returns:
        Pairs of a path and its pixels, the paths that cannot be read (and
        why not), and how many pictures were resized.
    """
    pictures, unreadable, resized = [], [], 0
    for path in files:
        try:
            pixels = read_picture(path, None, input_shape[2])
        except UnreadablePicture as error:
            unreadable.append(error.named(path))
            continue
        if pixels.shape != tuple(input_shape):
            pixels = convert(pixels, input_shape[:2])
            resized += 1
        pictures.append((path, pixels))
    return pictures, unreadable, resized


def read_picture(path, image_size, channels):
    """Reads one picture, turned as its EXIF data say.

    Args:
        path: Path of a file in one of `PICTURE_FORMATS`.
        image_size: `(height, width)` to resize to, or `None`.
        channels: 1 for grey, 3 for colour, 4 for colour and transparency,
            or `None` for what the file has.

    Returns:
        uint8 array of shape `(height, width, channels)`. Without a channel
        for transparency, what is transparent is white.

    Raises:
        UnreadablePicture: If the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise UserError("no regular file")  # A pipe has no end.
            with Image.open(path, formats=PICTURE_FORMATS) as opened:
                limit = MAX_DEFLATE_RATIO * os.path.getsize(path)
                if math.prod(opened.size) > max(limit, MAX_UNPROVEN_PIXELS):
                    raise UserError("more pixels than its file can hold")
                if opened.format == "PNG":
                    # Decoding alone does not look at the checksums.
                    with Image.open(path, formats=["PNG"]) as twin:
                        twin.verify()
                picture = _eight_bit(ImageOps.exif_transpose(opened))
        return _to_array(picture, image_size, channels)
    except UserError as error:
        reason = str(error)
    except UnidentifiedImageError:
        reason = "no picture, or of another format"
        if not os.path.getsize(path):
            reason = "an empty file"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = f"too large: more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except MemoryError:
        reason = "too large for the memory that is free"
    # Broken bytes make Pillow's decoders raise nearly everything.
    except Exception as error:
        reason = getattr(error, "strerror", None) or BROKEN
    raise UnreadablePicture(path, reason)


def convert(pixels, image_size=None, channels=None):
    """One picture, a uint8 array, in another size or with other channels."""
    picture = Image.fromarray(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels
    )
    return _to_array(picture, image_size, channels)


def adapt(x, image_size, grayscale):
    """Resizes and greys the pictures of one part."""
    shape = (*(image_size or x.shape[1:3]), 1 if grayscale else x.shape[3])
    if x.shape[1:] == shape:
        return x
    require_memory(len(x) * math.prod(shape))
    adapted = np.empty((len(x), *shape), np.uint8)
    for place, pixels in zip(adapted, x):
        place[:] = convert(pixels, shape[:2], shape[2])
    return adapted


def _eight_bit(picture):
    """The same picture in mode L, RGB or RGBA."""
    if picture.mode == "F":
        raise UserError("floating point, not 8 or 16 bits")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError("more than 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    is_grey = picture.mode in ("1", "L", "LA", "La")
    has_alpha = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if has_alpha or "transparency" in picture.info:
        picture_with_alpha = picture.convert("RGBA")
        # Many pictures could be transparent, and are so nowhere.
        if picture_with_alpha.getextrema()[3][0] < 255:
            return picture_with_alpha
        picture = picture_with_alpha if has_alpha else picture
    if is_grey:
        return picture.convert("L")
    colour = picture.convert("RGB")
    if picture.mode == "P":
        red, green, blue = colour.split()
        if red == green == blue:
            return red
    return colour


def _to_array(picture, image_size, channels):
    if channels and channels < 4 and picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    if channels:
        picture = picture.convert(PICTURE_MODES[channels])
    if image_size:
        height, width = image_size
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)
