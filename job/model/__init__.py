"""The model: backbones, the cut between frozen and fine-tuned layers, and the head."""
