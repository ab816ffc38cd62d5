"""Between an agent and a server of the tiny model: ``python relay.py PORT http://127.0.0.1:8080 TOOL [ARGUMENTS]``.

The tiny model reads 8,192 tokens, and does not choose well among an agent's tools. So of each request's instructions
the relay passes on 200 characters, of its tools the one that is named, and asks for a call of it (``tool_choice``)
until there is a result among the messages. All else goes through as it comes, byte for byte on the way back. Each
request is a line on standard error.

ARGUMENTS: JSON, which the tool's schema is narrowed to: what an agent really runs should be harmless.
"""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PORT, ADDRESS, TOOL = int(sys.argv[1]), urlsplit(sys.argv[2]), sys.argv[3]
ARGUMENTS = json.loads(sys.argv[4]) if len(sys.argv) > 4 else None
MOST = 200  # characters


def narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    if ARGUMENTS is None:
        return schema
    properties = {name: {"type": "string", "enum": [value]} for name, value in ARGUMENTS.items()}
    return {"type": "object", "properties": properties, "required": list(ARGUMENTS)}


def short(content: Any) -> Any:
    """Instructions, and what an agent puts before a question, in every form that the APIs have."""
    if isinstance(content, str):
        return content if len(content) < 4 * MOST else content[:MOST]
    if isinstance(content, list):
        return [{**part, "text": short(part["text"])} if "text" in part else part for part in content]
    return content


def cut(body: dict[str, Any], path: str) -> str:
    for field in ("system", "instructions"):
        if field in body:
            body[field] = short(body[field])
    messages = body.get("messages") or body.get("input") or []
    for message in messages if isinstance(messages, list) else []:
        if "content" in message:
            message["content"] = short(message["content"])
    found = json.dumps(messages)
    has_result = any(text in found for text in ('"role": "tool"', '"tool_result"', '_call_output"'))
    tools = []
    for tool in body.get("tools") or []:
        function = tool.get("function", tool)
        if function.get("name") == TOOL:
            schema = "input_schema" if path.startswith("/v1/messages") else "parameters"
            function["description"] = function.get("description", "")[:MOST]
            function[schema] = narrowed(function[schema])
            tools.append(tool)
    if tools:
        body["tools"] = tools
        wanted = "any" if path.startswith("/v1/messages") else "required"
        choice = "none" if has_result else wanted
        body["tool_choice"] = {"type": choice} if path.startswith("/v1/messages") else choice
    else:
        body.pop("tools", None)
        body.pop("tool_choice", None)
    return f"{len(tools)} tools, a result among the messages: {has_result}"


class Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # an answer ends with its connection

    def handle_one_way(self) -> None:
        content, told = self.rfile.read(int(self.headers.get("content-length") or 0)), ""
        if content and self.headers.get_content_type() == "application/json":
            body = json.loads(content)
            told = cut(body, self.path)
            content = json.dumps(body).encode()
        connection = HTTPConnection(ADDRESS.hostname or "", ADDRESS.port or 80)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "content-length")}
        connection.request(self.command, self.path, content, {**kept, "accept-encoding": "identity"})
        response = connection.getresponse()
        print(f"{self.command} {self.path} {response.status}: {told}", file=sys.stderr, flush=True)
        self.send_response(response.status)
        self.send_header("content-type", response.getheader("content-type", ""))
        self.end_headers()
        while piece := response.read1(1 << 16):
            self.wfile.write(piece)
            self.wfile.flush()

    do_GET = do_POST = do_HEAD = handle_one_way

    def log_message(self, *_: Any) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Relay).serve_forever()
