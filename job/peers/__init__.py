"""How several workers of one run talk to each other, and to nobody else."""
