"""Where the guard reads and writes routing.yaml: a repository's directory, or a server's admin endpoint."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from samegraph_service.errors import RoutingConflict, RoutingProblem, RoutingReadOnly
from samegraph_service.experiments import routing_file
from samegraph_service.experiments.routing_file import RoutingFile

from .sources import SourceError

#: A write is answered once it is in force, which may take loading a version.
TIMEOUT_S = 60.0
PATH = "/admin/routing"


class RoutingStore(Protocol):
    """What holds a routing file."""

    def read(self) -> RoutingFile:
        """Return the file.

        Raises:
            SamegraphError: It is not valid, or cannot be read.
        """

    def write(self, text: str, revision: str) -> None:
        """Put a file in the place of the one with this revision.

        Raises:
            RoutingConflict: The file there has another revision.
            SamegraphError: It is not valid, or cannot be written.
        """


class RepositoryStore:
    """The file in a directory that this process can write.

    Args:
        repository: The directory.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository

    def read(self) -> RoutingFile:
        """Return the file in the directory."""
        return routing_file.read(self._repository)

    def write(self, text: str, revision: str) -> None:
        """Write it in one step."""
        routing_file.write_routing(self._repository, text, if_revision=revision)


class AdminStore:
    """The file of a server (and of all that share its volume), over `GET` and `PUT /admin/routing`.

    Args:
        url: The server, for example http://127.0.0.1:8000.
        token_file: A file that holds the admin token; read for each call, so that a new token needs no restart.
    """

    def __init__(self, url: str, token_file: Path) -> None:
        self._url = (url if "//" in url else f"http://{url}").rstrip("/") + PATH
        self._token_file = token_file
        if urllib.parse.urlsplit(self._url).scheme not in ("http", "https"):
            raise SourceError(f"{url!r} is no address; give one such as http://127.0.0.1:8000")

    def read(self) -> RoutingFile:
        """Return the file in force there."""
        text, revision = self._call("GET")
        return replace(routing_file.parse(text.encode()), revision=revision)

    def write(self, text: str, revision: str) -> None:
        """Have the server check it, write it and put it in force."""
        self._call("PUT", text, revision)

    def _call(self, method: str, text: str | None = None, revision: str = "") -> tuple[str, str]:
        """Return the body and the revision of an answer."""
        headers = {"authorization": f"Bearer {self._token()}", "content-type": "application/yaml"}
        if revision:
            headers["if-match"] = f'"{revision}"'
        request = urllib.request.Request(self._url, None if text is None else text.encode(), headers, method=method)  # noqa: S310 - checked
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
                body: bytes = response.read(routing_file.MAX_BYTES + 1)
                return body.decode("utf-8", "replace"), str(response.headers.get("etag", "")).strip('"')
        except urllib.error.HTTPError as error:
            raise self._problem(error, text or "", revision) from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{self._url} cannot be reached ({error})") from error

    def _problem(self, error: urllib.error.HTTPError, text: str, revision: str) -> Exception:
        try:
            found: Any = json.loads(error.read(2 * routing_file.MAX_BYTES))
        except ValueError:
            found = None
        document: dict[str, Any] = found if isinstance(found, dict) else {}  # a proxy may have answered
        code = document.get("code")
        if code == "routing_changed":
            return RoutingConflict(revision, str(error.headers.get("etag", "")).strip('"'))
        if code == "routing_read_only":
            return RoutingReadOnly(text, f"says {self._url}")
        if code == "bad_routing":
            return RoutingProblem([str(problem) for problem in document.get("problems", [])])
        if error.code == 401:
            return SourceError(f"{self._url} does not take the token in {self._token_file.name}: {document.get('error', 'status 401')}")
        return SourceError(f"{self._url} answered {error.code}: {document.get('error', error.reason)}")

    def _token(self) -> str:
        try:
            token = self._token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise SourceError(f"the token cannot be read from {self._token_file} ({error})") from error
        if not token or not token.isprintable() or not token.isascii():
            raise SourceError(f"{self._token_file} holds no token: one line of printable characters")
        return token


__all__ = ["AdminStore", "RepositoryStore", "RoutingStore"]
