"""How it learns, and on how many devices."""
