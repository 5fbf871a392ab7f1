"""What a server refuses, asked over HTTP."""

from __future__ import annotations

import io
import json
import os
import socket
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import gradio.analytics
import pytest
from PIL import Image

from serving.limits import Limits, restricted_pillow
from serving.server import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the server with a model, and a link into it from below the folder of uploads: see `port`."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text("secret")
    return path


@pytest.fixture(scope="module")
def port() -> int:
    """A server that answers what needs no model."""
    with serving(None, limits=Limits(upload=50_000)) as address:
        yield urlsplit(address).port


def send(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Send a request whose path is not tidied up."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body or None, {key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read()


def upload(port: int, name: str, data: bytes) -> tuple[int, bytes]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = "multipart/form-data; boundary=x"
    return send(port, "POST", "/gradio_api/upload", head + data + b"\r\n--x--\r\n", Content_Type=kind)


def test_uploads_are_readable_and_no_other_file_is(port, folder):
    status, body = upload(port, "a.png", b"hello")
    (path,) = json.loads(body)
    kept = Path(path).parents[1]
    assert (status, send(port, "GET", f"/gradio_api/file={path}")) == (200, (200, b"hello"))
    (kept / "link").symlink_to(folder)
    (kept / "link.json").symlink_to(folder / "config.json")
    up = "/..".join([str(kept), *[""] * (len(kept.parts) - 1)])
    for asked in (
        *("/etc/passwd", str(folder / "config.json"), f"{folder}/", str(kept), f"{kept}/link/config.json"),
        *(f"{kept}/link.json", f"{up}/etc/passwd", f"{path}/../../../../../etc/passwd", "etc/passwd", "README.md"),
        *("~/.bashrc", "%2Fetc%2Fpasswd", f"{kept}/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "file:///etc/passwd"),
        *("http://127.0.0.1:9/", "https://example.org/x.png", "/proc/self/environ", f"{path}%00.png", ""),
    ):
        for route in ("file=", "file/"):
            status, body = send(port, "GET", f"/gradio_api/{route}{asked}")
            assert status in (400, 403, 404) and b"root:" not in body and b"secret" not in body, asked
    for name in ("../../evil.png", "/tmp/evil.png", "..%2fevil.png"):
        (stored,) = json.loads(upload(port, name, b"x")[1])
        assert Path(stored).resolve().is_relative_to(kept)


@pytest.mark.parametrize(
    "method, path",
    [
        *[("GET", f"/gradio_api/{name}") for name in ("vibe-code", "openapi.json", "queue/status", "token", "runs")],
        *[("POST", f"/gradio_api/{name}") for name in ("vibe-edit", "vibe-code", "process_recording", "run/ask")],
        *[("GET", f"/{name}") for name in ("monitoring", "monitoring/summary", "docs", "svelte/x.js", "pwa_icon")],
        ("GET", "/gradio_api/proxy=https://example.org/"),
        ("GET", "/gradio_api/custom_component/x/client/component/../../../../etc/passwd"),
        ("GET", "/static/../../../../../../etc/passwd"),
        ("GET", "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd"),
        ("POST", "/login"),
    ],
)
def test_what_the_page_does_not_need_does_not_exist(port, method, path):
    status, body = send(port, method, path, b"{}" if method == "POST" else b"", Content_Type="application/json")
    assert status in (403, 404) and b"root:" not in body


def test_only_names_of_this_machine_are_answered(port):
    for host in ("localhost", "127.0.0.1", f"localhost:{port}", f"[::1]:{port}"):
        assert send(port, "GET", "/", Host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        assert send(port, "GET", "/", Host=host)[0] == 404
    crossed = HTTPConnection("127.0.0.1", port)
    crossed.request("GET", "/config", headers={"Origin": "https://evil.example"})
    assert crossed.getresponse().headers["Access-Control-Allow-Origin"] is None


def test_too_much_is_refused():
    with serving(None, limits=Limits(upload=50_000)) as address:  # of its own: it will be full
        fill(urlsplit(address).port)


def fill(port: int) -> None:
    assert upload(port, "a.png", bytes(49_000))[0] == 200
    assert upload(port, "a.png", bytes(50_001))[0] == 413
    assert upload(port, "a.png", bytes(2_000_000))[0] == 413
    chunks = (bytes(100_000) for _ in range(60))
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:  # without a length
        connection.request("POST", "/gradio_api/queue/join", chunks, {"Content-Type": "application/json"})
        assert connection.getresponse().status >= 400
    except OSError:  # it hangs up
        pass
    for n in range(25):
        status, _ = upload(port, f"{n}.png", bytes([n]) * 49_000)
    assert status == 507
    assert send(port, "GET", "/")[0] == 200


def test_it_listens_on_one_address_tells_nobody_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/etc")
    with serving(None) as address:
        port = urlsplit(address).port
        assert "GRADIO_ALLOWED_PATHS" not in os.environ and not gradio.analytics.analytics_enabled()
        assert send(port, "GET", "/gradio_api/file=/etc/passwd")[0] == 404
        assert upload(port, "a.png", b"x")[0] == 200
        (folder,) = tmp_path.iterdir()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), timeout=1)
    assert not folder.exists() and os.environ["GRADIO_ALLOWED_PATHS"] == "/etc"


def test_pillow_opens_pictures_alone():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    buffer = io.BytesIO()
    Image.new("1", (20_000, 5_001)).save(buffer, "PNG")
    Image.init()
    before = [*Image.ID]
    with restricted_pillow():
        with pytest.raises(Image.UnidentifiedImageError):
            Image.open(io.BytesIO(postscript))
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(buffer.getvalue()))
    assert Image.open(io.BytesIO(postscript), formats=["EPS"]).format == "EPS" and before == Image.ID
