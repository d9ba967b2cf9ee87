"""Turn the bytes of a photo into the pixels that the model takes, bit for bit those of its training.

Needs NumPy and Pillow only. transfer-job writes this file beside each model, with the numbers of that model. Its page
docs/preprocessing.md has these rules in words, and the few files for which this program raises an error.
"""

import io

import numpy as np
from PIL import Image

IMAGE_SIZE, RESIZE, BIT_DEPTH = 224, "squash", 16

_T = Image.Transpose
_UPRIGHT = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE}
_UPRIGHT |= {6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90}  # By EXIF orientation.


def preprocess(payload: bytes) -> np.ndarray:
    """Return uint8 pixels (IMAGE_SIZE, IMAGE_SIZE, 3) in RGB. Raises: OSError, ValueError, if the photo cannot be read."""
    image = Image.open(io.BytesIO(payload))  # The first one, if there are several frames.
    layout = str(image.tile[0].args) if image.tile else ""
    if any(deep in layout for deep in ("RGB;16", "RGBA;16", "RGBX;16", "LA;16", "I;12")):
        raise ValueError("Pillow cannot read all bits of this photo: save it with 8 bits, or as 16-bit grayscale")
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        shrink_while_decoding(image)
    image.load()
    try:
        orientation = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)  # Pillow turns TIFFs by itself.
    except Exception:  # Malformed EXIF: the photo is taken as it is stored.
        orientation = 1
    rgb = to_rgb(image)
    return np.asarray(to_square(rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb))


def shrink_while_decoding(image: Image.Image) -> None:
    """Let libjpeg divide the sides of a large JPEG by 8, 4 or 2, as far as the resize still does not enlarge it."""
    width, height = image.size
    needed_width, needed_height = resized(width, height) if RESIZE == "pad" else (IMAGE_SIZE, IMAGE_SIZE)
    for factor in (8, 4, 2):
        if -(-width // factor) >= needed_width and -(-height // factor) >= needed_height:
            image.draft(None, (width // factor, height // factor))
            return


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB. Transparency is laid over white. Of 16 bits, the value 2**BIT_DEPTH - 1 becomes white."""
    if image.mode.startswith("I;16") or (image.format, image.mode) == ("PPM", "I"):
        values, top = np.asarray(image).astype(np.int64), 2**BIT_DEPTH - 1
        gray = (np.minimum(values, top) * 510 + top) // (2 * top)
        gray[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        is_16_bit = image.mode == "I" and values.min() >= 0 and values.max() <= 65535
        low, high = (0, 65535) if is_16_bit else (values.min(), values.max())
        return Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white, opaque = Image.new("RGB", image.size, "white"), image.convert("RGBA")
        white.paste(opaque, mask=opaque)
        return white
    return image.convert("RGB")


def to_square(rgb: Image.Image) -> Image.Image:
    """Resize once, antialiased bilinear: the whole photo (squash), its middle (crop), or into black borders (pad)."""
    width, height = rgb.size
    if RESIZE == "pad":
        inner, square = rgb.resize(resized(width, height), Image.Resampling.BILINEAR), Image.new("RGB", (IMAGE_SIZE,) * 2)
        square.paste(inner, ((IMAGE_SIZE - inner.width) // 2, (IMAGE_SIZE - inner.height) // 2))
        return square
    side = min(width, height)
    left, top = ((width - side) / 2, (height - side) / 2) if RESIZE == "crop" else (0, 0)
    box = (left, top, width - left, height - top)
    return rgb.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box)


def resized(width: int, height: int) -> tuple[int, int]:
    """Return the size of the photo inside the borders of pad."""
    scale = IMAGE_SIZE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
