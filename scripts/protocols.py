#!/usr/bin/env python3
"""Compile the .proto files of the gRPC service into service/samegraph_service/rpc/descriptors.py.

    .venv/bin/python scripts/protocols.py

The compiler (grpcio-tools) is installed into an environment that is thrown away, because nothing else needs it. What is kept of its work is
the descriptors: the protobuf library makes the message classes from them when the service starts, in a pool of their own. So the file fits
every protobuf release, and a process may hold other clients' messages of the same names, such as tritonclient's.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tempfile
import textwrap
import venv
from pathlib import Path

RPC = Path(__file__).resolve().parent.parent / "service" / "samegraph_service" / "rpc"
SOURCES = ("inference.proto", "health.proto")
OUTPUT = RPC / "descriptors.py"
TEMPLATE = '''\
"""The compiled .proto files of this directory. Written by scripts/protocols.py; do not edit."""

#: SHA-256 of the sources, one after the other.
SOURCES_SHA256 = "{digest}"

#: A serialized `google.protobuf.FileDescriptorSet`, in base64.
DESCRIPTORS = """\\
{descriptors}
"""
'''


def sources_digest() -> str:
    """Return the digest that the compiled file names while it is up to date."""
    return hashlib.sha256(b"".join((RPC / name).read_bytes() for name in SOURCES)).hexdigest()


def main() -> None:
    """Compile and write."""
    with tempfile.TemporaryDirectory() as directory:
        tools = Path(directory) / "tools"
        venv.create(tools, with_pip=True)
        python = str(tools / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "grpcio-tools"], check=True)
        compiled = Path(directory) / "descriptors"
        command = [python, "-m", "grpc_tools.protoc", f"--proto_path={RPC}", f"--descriptor_set_out={compiled}", *SOURCES]
        subprocess.run(command, check=True)
        text = "\n".join(textwrap.wrap(base64.b64encode(compiled.read_bytes()).decode(), 120))
    OUTPUT.write_text(TEMPLATE.format(digest=sources_digest(), descriptors=text))
    print(f"wrote {OUTPUT}", file=sys.stderr)


if __name__ == "__main__":
    main()
