"""transfer-job: one batch job from labelled photos to an image classifier you can trust and ship."""

__version__ = "0.2.0"
