"""`python -m samegraph_transforms` is the `samegraph` command."""

from .cli import main

main()
