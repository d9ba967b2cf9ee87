"""The table of examples, duplicates and near copies, neighbours in feature space, and augmentation."""
