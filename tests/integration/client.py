"""Requests to a MONAI Label server with the standard library alone."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

NAME = "fewshot_alpnet_segmentation"


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

    def wait(self, seconds: float, alive) -> None:
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

    def finish(self, image: str, label: Path, names: list[str], values: list[int] | None = None) -> None:
        """Save a finished label."""
        info = [{"name": n, "idx": v} for n, v in zip(names, values or range(1, len(names) + 1))]
        status, _, content = self.call(
            "PUT",
            "/datastore/label",
            {"image": image, "tag": "final"},
            fields={"params": json.dumps({"label_info": info})},
            files={"label": label},
        )
        assert status == 200, content

    def infer(self, image: str, dst: Path | None = None, params: dict | None = None) -> tuple[int, dict]:
        """Segment a scan into a file; status and the answer's parameters, or its error."""
        status, kind, content = self.call(
            "POST",
            f"/infer/{NAME}",
            {"image": image, "output": "all"},
            fields={"params": json.dumps(params or {})},
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
