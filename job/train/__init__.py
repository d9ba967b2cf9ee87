"""Training: the recipe, the schedule, batches, the loop and checkpoints."""
