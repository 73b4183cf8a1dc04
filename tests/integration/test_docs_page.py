"""The documentation pages, over HTTP and in a real browser: served from our own files, on a closed network, below any prefix."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import samegraph_service
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from samegraph_service.api.multipart import parts
from samegraph_service.openapi import ModelDoc, openapi_document
from samegraph_service.pages import ModelEntry, VersionEntry, docs_page, docs_router, index_page
from samegraph_transforms.manifest import Decoder, Manifest, Missing, Output, RawField, Stage
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as until
from selenium.webdriver.support.ui import Select, WebDriverWait

STATIC = Path(samegraph_service.__file__).parent / "static"
PREFIX = "/serving/here"


def _manifest(name: str, version: int, fields: Sequence[RawField], outputs: Sequence[Output], **more: Any) -> Manifest:
    stage = Stage(name="model", file="model.onnx", inputs={}, outputs={})
    return Manifest(name=name, version=version, fields=list(fields), outputs=list(outputs), stages=[stage], **more)


LABEL = Output(name="species", dtype="string", shape=[])
PROBABILITIES = Output(name="probabilities", dtype="float32", shape=[3], element_names=["Adelie", "Chinstrap", "Gentoo"])
PENGUINS = [
    RawField(name="island", kind="string", allowed=["Biscoe", "Dream", "Torgersen"], missing=Missing(rule="sentinel", sentinel="")),
    RawField(
        name="bill_length_mm",
        kind="number",
        minimum=0,
        maximum=100,
        missing=Missing(rule="nan"),
        example=39.1,
        description="Length of the bill",
    ),
    RawField(name="year", kind="integer", example=2007),
]
DECODER = Decoder(node="decode", library_version="12.0.0", formats=["JPEG", "PNG"], modes={"RGB": "RGB"})
MODELS = [
    ModelDoc(
        name="penguins",
        versions={
            1: _manifest("penguins", 1, PENGUINS[:2], [LABEL], description="The species of a penguin."),
            2: _manifest("penguins", 2, PENGUINS, [LABEL, PROBABILITIES], description="The species of a penguin, with probabilities."),
        },
        default=2,
    ),
    ModelDoc(
        name="photos",
        versions={1: _manifest("photos", 1, [RawField(name="image", kind="image", max_pixels=10**6)], [LABEL], decoders=[DECODER])},
        default=1,
    ),
]
ENTRIES = [
    ModelEntry(
        "penguins",
        "The species of a penguin, with probabilities.",
        [
            VersionEntry(1, "ready", labels=["stable"], digest="ab" * 32),
            VersionEntry(2, "ready", default=True, digest="cd" * 32),
            VersionEntry(3, "failed", "golden sample 3 (missing_sex): tensor `probabilities` differs by 1.2e-3"),
        ],
    ),
    ModelEntry("photos", "What a photo shows.", [VersionEntry(1, "loading")]),
]


# --- a small server --------------------------------------------------------------------------------------------------


def make_app() -> FastAPI:
    """Make an app with the pages, and predict routes that answer what they were sent."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(docs_router(lambda: openapi_document(MODELS, base=app.openapi()), get_models=lambda: ENTRIES))

    @app.get("/readyz", tags=["health"])
    async def readyz() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/models/{route:path}", include_in_schema=False)
    async def predict(route: str, request: Request) -> dict[str, Any]:
        body = await request.body()
        echo: dict[str, Any] = {
            "route": route,
            "content_type": request.headers.get("content-type"),
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        if echo["content_type"] == "application/json":
            echo["sent"] = json.loads(body)
        if str(echo["content_type"]).startswith("multipart/"):
            echo["files"] = [hashlib.sha256(data).hexdigest() for _, data in parts(echo["content_type"], body, 10)]
        return {"predictions": [], "echo": echo}

    return app


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> tuple[HTTPResponse, bytes]:
        """Ask for `path` exactly as written."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()


@contextmanager
def running(app: FastAPI) -> Iterator[Server]:
    """Run `app` on a real uvicorn in a thread, on a port of the system's choice."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Server(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The app at the root, and once more below a prefix."""
    app = make_app()
    app.mount(PREFIX, make_app())
    with running(app) as server:
        yield server


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_name_no_other_host(server: Server, path: str) -> None:
    """A page has no absolute address at all, so nothing can come from elsewhere, and it works below a prefix."""
    response, body = server.get(path)
    page = body.decode()
    assert response.status == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?:|(?:href|src)=\"/|@import", page)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_carry_a_strict_policy(server: Server, path: str) -> None:
    """Nothing is allowed by default, no inline script or style and no evaluation, and nobody may frame the page."""
    response, body = server.get(path)
    policy = dict(d.strip().split(" ", 1) for d in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert "*" not in response.headers["content-security-policy"]
    assert not re.search(r"<style|style=|<script>|onclick|javascript:", body.decode())
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_start_page_needs_no_script(server: Server) -> None:
    """The start page works in any browser."""
    assert b"<script" not in server.get("/")[1]


def test_own_style_and_script_name_no_other_host() -> None:
    """The files we wrote fetch nothing from elsewhere."""
    for name in ("pages.css", "docs.js"):
        assert "//" not in re.sub(r"(?m)//.*$|/\*.*?\*/", "", (STATIC / name).read_text())


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_everything_a_page_refers_to_is_there(server: Server, prefix: str) -> None:
    """Every style, script and icon of both pages is found, cached for ever and of the right type."""
    types = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
    found = set()
    for page in ("/", "/docs"):
        _, body = server.get(prefix + page)
        found |= set(re.findall(r'(?:href|src)="(static/[^"]+)"', body.decode()))
    assert len(found) == 5
    for address in found:
        response, body = server.get(f"{prefix}/{address}")
        assert response.status == 200
        assert response.headers["content-type"] == types[Path(address.partition("?")[0]).suffix]
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert body == (STATIC / address.partition("?")[0].removeprefix("static/")).read_bytes()


def test_static_files_are_compressed_and_revalidated(server: Server) -> None:
    """A browser gets a quarter of the bytes, and none at all the second time; without the digest it must ask again."""
    plain = (STATIC / "swagger-ui/swagger-ui-bundle.js").read_bytes()
    response, body = server.get("/static/swagger-ui/swagger-ui-bundle.js", {"Accept-Encoding": "br, gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["vary"] == "Accept-Encoding"
    assert response.headers["cache-control"] == "no-cache"
    assert gzip.decompress(body) == plain
    assert len(body) < len(plain) / 3
    etag = response.headers["etag"]
    again, nothing = server.get("/static/swagger-ui/swagger-ui-bundle.js", {"Accept-Encoding": "gzip", "If-None-Match": f'"x", {etag}'})
    assert (again.status, nothing) == (304, b"")
    other, whole = server.get("/static/swagger-ui/swagger-ui-bundle.js", {"If-None-Match": etag})
    assert (other.status, whole) == (200, plain)


@pytest.mark.parametrize(
    "path", ["/static/../pages.py", "/static/%2e%2e/pages.py", "/static/README.md", "/static/", "/static//etc/passwd", "/static/docs.js/"]
)
def test_only_the_known_files_are_served(server: Server, path: str) -> None:
    """A path is looked up in a closed set and never opened."""
    assert server.get(path)[0].status == 404


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/static/docs.js"])
def test_head_is_answered_without_a_body(server: Server, path: str) -> None:
    """Tools that ask for the headers alone get them."""
    response, body = server.get(path, method="HEAD")
    assert (response.status, body) == (200, b"")


def test_the_document_is_served_and_revalidated(server: Server) -> None:
    """openapi.json holds the models' paths and FastAPI's, and not the pages themselves; unchanged, it is not sent again."""
    response, body = server.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    paths = json.loads(body)["paths"]
    assert "/v1/models/penguins/versions/1:predict" in paths
    assert "/readyz" in paths
    assert not set(paths) & {"/", "/docs", "/openapi.json", "/static/{path}"}
    assert server.get("/openapi.json", {"If-None-Match": response.headers["etag"]})[0].status == 304


def test_the_document_says_where_the_service_lies(server: Server) -> None:
    """Below a prefix the document names it as the server; at the root it need not."""
    assert "servers" not in json.loads(server.get("/openapi.json")[1])
    assert json.loads(server.get(f"{PREFIX}/openapi.json")[1])["servers"] == [{"url": PREFIX}]


def test_vendored_files_are_those_the_readme_names() -> None:
    """The digests in static/README.md are those of the files, so nobody edited them in passing."""
    named = dict(re.findall(r"\| `(swagger-ui/[^`]+)` \| `([0-9a-f]{64})` \|", (STATIC / "README.md").read_text()))
    actual = {p.relative_to(STATIC).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in (STATIC / "swagger-ui").iterdir()}
    assert named == actual


# --- the start page as text ------------------------------------------------------------------------------------------


def test_the_start_page_shows_versions_states_and_reasons() -> None:
    """Versions come newest first, with state, default, labels, digest and reason."""
    text = re.sub(r"<[^>]+>", " ", index_page(ENTRIES))
    words = re.sub(r"\s+", " ", text)
    assert "penguins Try it The species of a penguin, with probabilities. Version State Notes 3 failed golden sample 3" in words
    assert "2 ready default · digest cdcdcdcdcdcd" in words
    assert "1 ready label stable · digest abababababab" in words
    assert "photos What a photo shows." in words


def test_the_start_page_escapes_what_packages_say() -> None:
    """Text from a package can hold anything; it stays text."""
    evil = '<script>alert("1")</script>'
    page = index_page([ModelEntry("m", evil, [VersionEntry(1, "failed", evil, labels=[evil])])])
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;") == 3


def test_the_start_page_of_an_empty_repository_says_what_to_do() -> None:
    """Nobody is left before a blank page."""
    assert "No model is loaded. Put a package into the model repository" in index_page([])


def test_the_documentation_page_says_where_to_look_without_javascript() -> None:
    """A reader without JavaScript is sent to the document itself."""
    assert '<noscript><p class="missing">This page needs JavaScript.' in docs_page()


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a fresh profile, which records every request and every console line."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary, "Debian's chromium is needed: apt-get install chromium"
    assert driver, "Debian's chromium-driver is needed: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,1400",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """The browser for one test, which in the end must have asked no other host for anything and have nothing to complain about."""
    chromium.get("about:blank")
    recorded(chromium, "browser")
    recorded(chromium, "performance")
    yield chromium
    messages = [json.loads(entry)["message"] for entry in recorded(chromium, "performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked, "the browser recorded no request, so it could not have recorded a foreign one"
    assert [url for url in asked if not re.match(r"http://127\.0\.0\.1:\d+/|data:|blob:", url)] == []
    assert recorded(chromium, "browser") == []


def recorded(chromium: webdriver.Chrome, log: str) -> list[str]:
    """Return the messages of one of the browser's logs since the last look."""
    entries: list[dict[str, str]] = chromium.get_log(log)  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries]


def wait(browser: webdriver.Chrome) -> WebDriverWait[webdriver.Chrome]:
    """Wait for a condition on the page, at most half a minute."""
    return WebDriverWait(browser, 30, poll_frequency=0.05)


def open_operation(browser: webdriver.Chrome, address: str, path: str) -> WebElement:
    """Open the documentation page, unfold the operation of `path` and press "Try it out"."""
    browser.get(address)
    summary = wait(browser).until(until.presence_of_element_located((By.CSS_SELECTOR, f'.opblock-post [data-path="{path}"]')))
    block = summary.find_element(By.XPATH, "ancestor::div[contains(concat(' ', @class, ' '), ' opblock ')]")
    press(browser, block, ".opblock-summary-control")
    press(browser, block, ".try-out__btn")
    return block


def press(browser: webdriver.Chrome, block: WebElement, button: str) -> None:
    """Wait for a button of an operation, bring it into view and click it."""
    found = wait(browser).until(lambda _: block.find_element(By.CSS_SELECTOR, button))
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()


def execute(browser: webdriver.Chrome, block: WebElement) -> dict[str, Any]:
    """Press "Execute" and return what the answer shown in the page says."""
    press(browser, block, ".execute")
    live = wait(browser).until(lambda _: block.find_element(By.CSS_SELECTOR, ".live-responses-table .response"))
    assert live.find_element(By.CSS_SELECTOR, ".response-col_status").text.split()[0] == "200"
    shown = live.find_element(By.CSS_SELECTOR, ".highlight-code code, .highlight-code pre").text
    answer: dict[str, Any] = json.loads(shown)["echo"]
    return answer


@pytest.mark.parametrize("prefix", [pytest.param("", id="at the root"), pytest.param(PREFIX, id="below a prefix")])
def test_a_models_example_can_be_tried_in_the_page(browser: webdriver.Chrome, server: Server, prefix: str) -> None:
    """Try it out, Execute: the example reaches the model's own route as it stands in the document, and the answer is shown."""
    block = open_operation(browser, f"{server.url}{prefix}/docs", "/v1/models/penguins:predict")
    echo = execute(browser, block)
    assert (echo["route"], echo["content_type"]) == ("penguins:predict", "application/json")
    assert echo["sent"] == {"instances": [{"island": "Biscoe", "bill_length_mm": 39.1, "year": 2007}]}


def test_an_image_can_be_uploaded_in_the_page(browser: webdriver.Chrome, server: Server, tmp_path: Path) -> None:
    """With an image media type the page offers a file, and sends its bytes as they are under that type."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), (200, 30, 60)).save(photo)
    block = open_operation(browser, f"{server.url}/docs", "/v1/models/photos:predict")
    Select(block.find_element(By.CSS_SELECTOR, ".opblock-section-request-body select.content-type")).select_by_value("image/png")
    wait(browser).until(lambda _: block.find_element(By.CSS_SELECTOR, "input[type=file]")).send_keys(str(photo))
    echo = execute(browser, block)
    assert echo["content_type"] == "image/png"
    assert echo["sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()


def test_many_images_can_be_uploaded_in_the_page(browser: webdriver.Chrome, server: Server, tmp_path: Path) -> None:
    """With multipart the page takes one file after the other, and they arrive in that order."""
    photos = [tmp_path / "a.png", tmp_path / "b.jpeg"]
    for photo, colour in zip(photos, ("red", "navy"), strict=True):
        Image.new("RGB", (8, 8), colour).save(photo)
    block = open_operation(browser, f"{server.url}/docs", "/v1/models/photos:predict")
    Select(block.find_element(By.CSS_SELECTOR, ".opblock-section-request-body select.content-type")).select_by_value("multipart/form-data")
    press(browser, block, ".json-schema-form-item-add")  # beside the one that is there
    inputs = wait(browser).until(lambda _: files if len(files := block.find_elements(By.CSS_SELECTOR, "input[type=file]")) == 2 else False)
    for place, photo in zip(inputs, photos, strict=True):
        place.send_keys(str(photo))
    echo = execute(browser, block)
    assert echo["files"] == [hashlib.sha256(p.read_bytes()).hexdigest() for p in photos]


def test_the_start_page_leads_to_the_models_documentation(browser: webdriver.Chrome, server: Server) -> None:
    """The link beside a ready model opens the documentation at that model; a model that is not ready has none."""
    browser.get(f"{server.url}/")
    links = browser.find_elements(By.CSS_SELECTOR, ".model header a")
    assert [link.get_attribute("aria-label") for link in links] == ["Try penguins"]
    links[0].click()
    wait(browser).until(until.presence_of_element_located((By.ID, "operations-tag-penguins")))
    assert browser.current_url == f"{server.url}/docs#/penguins"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_pages_follow_the_readers_colour_scheme(browser: webdriver.Chrome, server: Server, scheme: str) -> None:
    """Text and ground swap lightness between light and dark, on both pages."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        for path, element in (("/", ".model h2"), ("/docs", ".info .title")):
            browser.get(server.url + path)
            place = wait(browser).until(until.presence_of_element_located((By.CSS_SELECTOR, element)))
            body = browser.find_element(By.TAG_NAME, "body")
            text, ground = (_lightness(e.value_of_css_property(p)) for e, p in ((place, "color"), (body, "background-color")))
            assert (ground > 200 and text < 120) if scheme == "light" else (ground < 60 and text > 160)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _lightness(colour: str) -> float:
    red, green, blue = (float(v) for v in re.findall(r"[\d.]+", colour)[:3])
    return (red + green + blue) / 3
