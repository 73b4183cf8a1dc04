"""The documents' commands, run against a real server, print what the documents say they print.

Every ```sh block is run as it stands, in order, in a copy of a built checkout; the ```json, ```text or ```http block right
after it is its answer. A ```python block begins with a comment that names its file, which a later command uses. ```console is
for what starts servers or environments; those lines are only checked to exist.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from documented import Block, blocks, difference
from server_process import ROOT, ServerProcess

DOCUMENTS = ("README.md", "docs/endpoints.md", "docs/image-models.md", "docs/text-models.md")
#: Where the documents say the checkout lies and the server answers.
DIRECTORY = "/home/you/samegraph"
ADDRESS = "http://127.0.0.1:8000"
TOKEN = "a-token-for-the-tests"


class Checkout:
    """A built checkout with a server over its models, as a reader has it after `make serve`."""

    def __init__(self, directory: Path, server: ServerProcess) -> None:
        self.directory = directory
        self.server = server

    def save(self, block: Block) -> str:
        """Write a Python block to the file it names, and return the name."""
        name = block.text.splitlines()[0].removeprefix("# ")
        assert name.endswith(".py"), f"line {block.line}: begin a Python block with a comment that names its file"
        (self.directory / name).write_text(self._local(block.text))
        return name

    def run(self, block: Block) -> str | None:
        """Run a block's commands and return what is wrong with their answer, or None."""
        command = ["bash", "-euo", "pipefail", "-c", self._local(block.text)]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, timeout=300, check=False)
        self._take_up()
        if done.returncode:
            return f"exit code {done.returncode}: {done.stderr}"
        return None if block.answer is None else difference(block.answer, done.stdout.replace(str(self.directory), DIRECTORY))

    def _local(self, text: str) -> str:
        return text.replace(ADDRESS, self.server.url)

    def forget_all_but(self, models: Collection[str]) -> None:
        """Remove the models that a document's commands packed, so that no document depends on another."""
        for packed in (self.directory / "models").iterdir():
            if packed.name not in models:
                shutil.rmtree(packed)
        self._take_up()

    def _take_up(self) -> None:
        """Let the server find what the commands packed; a reader waits for its next look."""
        request = urllib.request.Request(self.server.url + "/admin/reload", method="POST", headers={"authorization": f"Bearer {TOKEN}"})
        urllib.request.urlopen(request, timeout=120).close()


EXAMPLES = ("penguins", "flights", "imagenet")


@pytest.fixture(scope="module")
def built(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    directory = tmp_path_factory.mktemp("checkout")
    for name in ("docs", "Makefile", "README.md", ".venv-build"):
        (directory / name).symlink_to(ROOT / name)
    (directory / ".venv").symlink_to(sys.prefix)
    for name in EXAMPLES:
        shutil.copytree(examples / name, directory / "models" / name, ignore=shutil.ignore_patterns("*.py", "reference"))
    running = ServerProcess(directory / "models", LOG__ACCESS="false", ADMIN__TOKEN=TOKEN)
    try:
        assert running.url, "the server did not become ready:\n" + "\n".join(running.lines)
        yield Checkout(directory, running)
    finally:
        running.close()


@pytest.fixture
def checkout(built: Checkout) -> Iterator[Checkout]:
    yield built
    built.forget_all_but(EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_print_what_the_document_says(checkout: Checkout, document: str) -> None:
    """Every command works as printed and gives the printed answer; only ids, digests and last digits may differ."""
    wrong: list[str] = []
    ran = 0
    for block in blocks(ROOT / document):
        if block.language == "python":
            checkout.save(block)
        elif block.language == "sh":
            ran += 1
            problem = checkout.run(block)
            if problem is not None:
                wrong.append(f"{document}:{block.line}: {problem}")
    assert ran, f"{document} has no commands"
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_python_file_is_used_by_a_command(document: str) -> None:
    """No snippet is only there to be looked at: what is printed was run."""
    found = list(blocks(ROOT / document))
    for i, block in enumerate(found):
        if block.language == "python":
            module = block.text.splitlines()[0].removeprefix("# ").removesuffix(".py")
            assert any(module in later.text for later in found[i + 1 :] if later.language == "sh"), f"{document}:{block.line}"


def test_other_commands_exist() -> None:
    """What the README tells to type and no test can run to its end (`make serve`) is at least there to be typed."""
    lines = [line for block in blocks(ROOT / "README.md") if block.language == "console" for line in block.text.splitlines()]
    makefile = (ROOT / "Makefile").read_text()
    assert "make serve" in lines
    for line in lines:
        program, first = line.split()[:2]
        if program == "make":
            assert f"\n{first}:" in makefile, line
        elif program == "samegraph":
            subprocess.run([Path(sys.executable).with_name("samegraph"), first, "--help"], check=True, capture_output=True)
        else:
            assert program == "docker", line


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        pytest.param('{"a": 0.50001, "request_id": "abcdef012345-f"}', None, id="last-digits-and-ids"),
        pytest.param('{"a": 0.51, "request_id": "abcdef012345-f"}', "$.a", id="another-number"),
        pytest.param('{"a": 1, "request_id": "abcdef012345-f"}', "$.a", id="an-integer"),
        pytest.param('{"a": 0.5, "request_id": "mine"}', "$.request_id", id="an-id-of-another-form"),
        pytest.param('{"a": 0.5}', "members", id="a-member-less"),
    ],
)
def test_the_comparison_sees_what_differs(printed: str, problem: str | None) -> None:
    """The rule that lets ids and last digits differ lets nothing else."""
    found = difference(Block("json", '{"a": 0.5, "request_id": "25a719b2ca2f-1"}', 1), printed)
    assert found is None if problem is None else problem in (found or "")
