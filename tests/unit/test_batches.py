"""Sizes of batches."""

import pytest

from job.train.feed import even_batch_size


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (20, 20), (256, 256), (257, 129), (430, 215), (1000, 250)])
def test_batches_are_equal_and_as_few_as_with_the_largest_size(count, size):
    assert even_batch_size(count, 256) == size
