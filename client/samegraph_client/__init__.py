"""samegraph-client: send raw inputs to a model server and lose none of them."""

__version__ = "0.1.0"
