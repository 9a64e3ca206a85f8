"""A MONAI Label server, and requests to it with the standard library alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAME = "fewshot_alpnet_segmentation"


def make_app(python: Path, app: Path, weights: Path, settings: dict | None = None, labels: str | None = None) -> Path:
    """MONAI Label's generic app with a copy of the bundle, with ``labels`` on offer and ``settings`` of train.json."""
    shutil.copytree(python.parent.parent / "apps" / "monaibundle", app)
    export = [str(python), "-m", "scripts.export", "monailabel", str(app), "--weights", str(weights)]
    subprocess.run([*export, *(["--labels", labels] if labels else [])], cwd=ROOT, check=True)
    train = app / "model" / NAME / "configs" / "train.json"
    train.write_text(json.dumps(json.loads(train.read_text()) | (settings or {})))
    return app


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serve(
    python: Path, app: Path, studies: Path | str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[Client]:
    """A server of a studies folder or of a DICOMweb address, until the block ends."""
    port = free_port()
    command = [str(python), "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--conf", "models", NAME, "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])  # the tool that writes DICOM segmentations
    variables = {**os.environ, "PATH": path, **(environment or {})}
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent, env=variables)
    try:
        client = Client(port)
        client.wait(300, lambda: process.poll() is None)
        yield client
    finally:
        process.terminate()
        process.wait(30)


class Client:
    """One server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def call(
        self,
        method: str,
        path: str,
        query: dict | None = None,
        fields: dict[str, str] | None = None,
        files: dict[str, Path] | None = None,
        body: Any = None,
        timeout: float = 900,
    ) -> tuple[int, str, bytes]:
        """Status, content type and content of an answer."""
        url = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        headers, data = {}, None
        if fields is not None or files is not None:
            boundary = uuid.uuid4().hex
            parts = [(f'name="{k}"', v.encode()) for k, v in (fields or {}).items()]
            parts += [(f'name="{k}"; filename="{p.name}"', p.read_bytes()) for k, p in (files or {}).items()]
            data = b"".join(
                f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
                for head, content in parts
            )
            data += f"--{boundary}--\r\n".encode()
            headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
        elif body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read()

    def wait(self, seconds: float, alive: Callable[[], bool]) -> None:
        """Until the server answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not alive():
                raise RuntimeError("the server ended while starting")
            try:
                if self.call("GET", "/info/", timeout=5)[0] == 200:
                    return
            except OSError:
                time.sleep(1)
        raise TimeoutError(f"no server after {seconds} s")

    def finish(
        self, image: str, label: Path, names: list[str], values: list[int] | None = None, tag: str = "final"
    ) -> None:
        """Save a finished label, or one with another tag."""
        info = [{"name": n, "idx": v} for n, v in zip(names, values or range(1, len(names) + 1))]
        status, _, content = self.call(
            "PUT",
            "/datastore/label",
            {"image": image, "tag": tag},
            fields={"params": json.dumps({"label_info": info})},
            files={"label": label},
        )
        assert status == 200, content

    def batch(self, workers: int) -> None:
        """Segment all scans without a finished label in the server's batch mode."""
        body = {"multi_gpu": False, "max_workers": workers, "device": "cpu"}
        status, _, content = self.call(
            "POST", f"/batch/infer/{NAME}", {"images": "unlabeled", "run_sync": "true"}, body=body
        )
        assert status == 200, content

    def train(self, epochs: int) -> None:
        """Train on all scans."""
        body = {"max_epochs": epochs, "device": "cpu"}
        status, _, content = self.call("POST", f"/train/{NAME}", {"run_sync": "true"}, body=body, timeout=3600)
        assert status == 200, content

    def infer(self, image: str, dst: Path | None = None, params: dict | None = None) -> tuple[int, dict]:
        """Segment a scan into a file; status and the answer's parameters, or its error."""
        status, kind, content = self.call(
            "POST", f"/infer/{NAME}", {"image": image, "output": "all"}, fields={"params": json.dumps(params or {})}
        )
        if status != 200:
            return status, json.loads(content)
        boundary = re.search("boundary=([^;]+)", kind)[1].strip('"').encode()
        answer: dict = {}
        for part in content.split(b"--" + boundary)[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            if b'name="params"' in head:
                answer = json.loads(value[:-2])
            elif dst is not None:
                dst.write_bytes(value[:-2])
        return status, answer
