"""The `samegraph-client` command. Needs click and rich (`samegraph-client[cli]`)."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, or say what is missing for it."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        sys.exit("the samegraph-client command needs optional packages: pip install 'samegraph-client[cli]'")
    from .commands import samegraph_client

    samegraph_client(prog_name="samegraph-client")


if __name__ == "__main__":
    main()
