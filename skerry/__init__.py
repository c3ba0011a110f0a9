"""Everything both shores share, and the public face of Skerry."""

__version__ = "0.1.0"
