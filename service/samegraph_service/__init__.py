"""samegraph: serve raw inputs through the exact preprocessing graph a model was trained with."""

__version__ = "0.1.0"
