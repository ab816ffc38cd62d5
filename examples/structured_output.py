"""Get an answer as a JSON document of a given schema: needs pip install 'mlx-delta[structured]'."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mlx_delta

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["good", "bad", None]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default="Hello, I am Ada, 36 years old, and in a good mood.")
    parser.add_argument("--model", default=Path(__file__).parent / "tiny", help="default: the tiny example")
    arguments = parser.parse_args()

    model = mlx_delta.load_model(arguments.model)
    question = f"{arguments.text}\n\nSay that as JSON that follows this schema: {json.dumps(SCHEMA)}"
    messages = [{"role": "user", "content": question}]
    result = model.chat(messages, json_schema=SCHEMA, enable_thinking=False, temperature=0, max_new_tokens=256)
    person = json.loads(result.text)
    print(json.dumps(person, indent=2))


if __name__ == "__main__":
    main()
