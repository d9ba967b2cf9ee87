"""What a photo is, and how it gets in."""
