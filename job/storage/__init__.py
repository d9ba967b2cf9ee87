"""What lasts: the only code that writes final names."""
