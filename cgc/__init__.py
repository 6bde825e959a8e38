"""cgc: segment any Gaussian-splat scene into objects."""

__version__ = "0.1.0"
