"""A web server of a folder, with parts of files, that counts requests and can be made to fail."""

import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest


class Serving:
    """A folder at a local address.

    Attributes
    ----------
    url : str
        Of the folder.
    counts : Counter
        Requests answered with a file or a part of one, by (path, range).
    seen : list
        Of each request: the path with its query, and the headers.
    fault : callable or None
        Called with the path of a request; returns None, or what goes wrong: an HTTP status,
        ``"close"``, ``"cut"`` (in the middle of the answer), ``"hang"``, ``"no length"``, ``"whole"`` (of a part).
    opens : callable or None
        Called with the path and query of a request and its headers; tells whether it is answered.
    """

    def __init__(self, folder, port=0, context=None):
        self.counts, self.seen, self.fault, self.opens = Counter(), [], None, None
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"of": self}))
        self._server.folder = folder
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self):
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing of who hangs up, as a run that ends does: it would stand between what the run itself says."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    of: Serving

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.of.seen.append((self.path, dict(self.headers)))
        fault = self.of.fault(path) if self.of.fault else None
        if self.of.opens and not self.of.opens(self.path, self.headers):
            fault = 403
        file = self.server.folder / path.lstrip("/")
        if fault == "close" or self.of.stopped.is_set():
            self.close_connection = True
        elif fault == "hang":
            self.of.stopped.wait(60)
            self.close_connection = True
        elif isinstance(fault, int) or not file.is_file():
            self._answer(fault or 404, b"<html>no</html>")
        else:
            self._answer_file(path, file.read_bytes(), fault)

    def _answer_file(self, path, data, fault):
        said = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        self.of.counts[path, self.headers.get("Range")] += 1
        if not said or fault == "whole":
            self._answer(200, data, fault=fault)
            return
        first, last = said.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= len(data):
            self._answer(416, b"")
            return
        self._answer(206, data[start:stop], part=f"bytes {start}-{stop - 1}/{len(data)}", fault=fault)

    def _answer(self, status, data, *, part=None, fault=None):
        self.send_response(status)
        if fault != "no length":
            self.send_header("Content-Length", str(len(data)))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault in ("cut", "no length"):
            self.close_connection = True


@contextmanager
def serving(folder, **options):
    """Serve a folder while the context lasts."""
    server = Serving(folder, **options)
    try:
        yield server
    finally:
        server.stop()


def certificate(folder, *options):
    """Return the files of a certificate of this machine and of its key, or skip the test where none can be made."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl, to make a certificate")
    files = folder / "cert.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*make, *options, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


@contextmanager
def nobody_at():
    """Keep a local port at which nobody answers: no other process is given it, `serving` can have it."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]
