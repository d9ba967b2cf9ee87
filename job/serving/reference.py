"""The program model/preprocess.py, with which other programs decode photos as the training did."""

import inspect
import re

from job.decoding.rules import DecodeRules
from job.serving import preprocess

_NUMBERS = re.compile("^IMAGE_SIZE, RESIZE, BIT_DEPTH = .*$", re.MULTILINE)


def preprocessing(rules: DecodeRules) -> str:
    """Return the text of model/preprocess.py: that of `job.serving.preprocess`, with the numbers of these rules."""
    numbers = f'IMAGE_SIZE, RESIZE, BIT_DEPTH = {rules.image_size}, "{rules.resize}", {rules.bit_depth}'
    return _NUMBERS.sub(numbers, inspect.getsource(preprocess), count=1)
