"""JPEGs, decoded by libjpeg-turbo (simplejpeg), which gives Pillow's pixels and reports when it had to repair a scan."""

import simplejpeg
from PIL import Image

from job.decoding import headers
from job.decoding.rules import BadPhoto, Facts

# The factors by which libjpeg can scale while it decodes. TensorFlow's decoder in the exported graph has the same ones.
REDUCTIONS = (8, 4, 2)


def reduction_for(size: tuple[int, int], needed_size: tuple[int, int]) -> int:
    """Return the factor (8, 4, 2 or 1) for scaling a JPEG while decoding: the largest one that leaves `needed_size`."""
    (width, height), (needed_width, needed_height) = size, needed_size
    for reduction in REDUCTIONS:
        if -(-width // reduction) >= needed_width and -(-height // reduction) >= needed_height:
            return reduction
    return 1


def decode(payload: bytes, needed_size: tuple[int, int], facts: Facts) -> Image.Image | None:
    """Decode a JPEG; None if Pillow has to do it: for CMYK, and for what libjpeg-turbo's simple interface does not support.

    A CMYK picture is decoded here only to get the warnings, which Pillow does not report. Raises: BadPhoto.
    """
    is_cmyk = facts.mode not in ("RGB", "L")
    reduction = REDUCTIONS[0] if is_cmyk else reduction_for((facts.width, facts.height), needed_size)
    smallest = [-(-side // reduction) for side in (facts.width, facts.height)]
    try:
        pixels = simplejpeg.decode_jpeg(payload, "CMYK" if is_cmyk else "RGB", min_width=smallest[0], min_height=smallest[1])
    except ValueError as error:
        message = str(error)
        if message.startswith("tj") or "not supported" in message.lower() or "unsupported" in message.lower():
            return None
        if message.startswith("Premature end"):
            raise BadPhoto("cut off: the JPEG ends before the picture does", facts) from None
        raise BadPhoto(f"damaged JPEG: the decoder had to repair it ({message})", facts) from None
    if is_cmyk:
        return None
    height, width, _ = pixels.shape
    return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)


def checked_layout(payload: bytes, facts: Facts, notes: list[str]) -> headers.JpegLayout:
    """Return the parts of a JPEG. Bytes behind its end are noted. Raises: BadPhoto, if it cannot be complete."""
    layout = headers.jpeg_layout(payload)
    if not layout.can_hold(facts.width * facts.height, len(payload)):
        raise BadPhoto("cut off: the JPEG ends before the picture does", facts)
    extra = len(payload) - layout.end
    if layout.end > 0 and extra > 0 and facts.format == "JPEG":  # An MPO has its further pictures there.
        notes.append(f"{extra:,} bytes behind the end of the picture")
    return layout
