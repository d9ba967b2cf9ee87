"""The stages, one function each. No stage imports another."""
