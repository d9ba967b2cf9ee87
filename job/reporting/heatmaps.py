"""Pictures of heatmaps: a photo in grey, with colours from black over red to yellow where the model looks."""

import numpy as np
from PIL import Image

_HEATS = (0.0, 0.25, 0.5, 0.75, 1.0)
_COLOURS = np.asarray([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32)  # "inferno".
_STRENGTH = 0.55  # Of the colour against the photo.


def with_heatmap(photo_SSD: np.ndarray, heatmap_GG: np.ndarray, side_px: int) -> Image.Image:
    """Return a picture, `side_px` wide, of a photo, uint8 (S, S, 3), under its heatmap, whose values are at least 0."""
    size, largest = (side_px, side_px), float(heatmap_GG.max())
    scaled_GG = heatmap_GG.astype(np.float32) / largest if largest > 0 else np.zeros(heatmap_GG.shape, np.float32)
    heat_SS = np.asarray(Image.fromarray(scaled_GG).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colour_SSD = np.stack([np.interp(heat_SS, _HEATS, channel) for channel in _COLOURS.T], axis=-1)
    grey_SS = np.asarray(Image.fromarray(photo_SSD).convert("L").resize(size, Image.Resampling.LANCZOS))
    blended_SSD = (1 - _STRENGTH) * grey_SS[..., None] + _STRENGTH * colour_SSD
    return Image.fromarray(blended_SSD.astype(np.uint8))
