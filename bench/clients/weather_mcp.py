"""An MCP server on standard input and output with one tool, for agents that are to call one: no package needed."""

from __future__ import annotations

import json
import sys
from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {"location": {"type": "string", "description": "City name"}},
    "required": ["location"],
}
TOOL = {"name": "get_weather", "description": "Get weather for a location", "inputSchema": SCHEMA}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    method, given = request["method"], request.get("params") or {}
    if method == "initialize":
        version = given.get("protocolVersion", "2025-06-18")
        info = {"name": "weather", "version": "1"}
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        location = given["arguments"].get("location")
        print(f"called for {location}", file=sys.stderr, flush=True)
        return {"content": [{"type": "text", "text": f"sunny in {location}"}]}
    return {}


for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer(asked)}), flush=True)
