"""samegraph-transforms: author, import, pack, prove and run model packages. No web import anywhere below here."""

__version__ = "0.1.0"
