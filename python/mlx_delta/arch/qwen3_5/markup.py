"""How Qwen3.5 marks thoughts and tool calls; ``chat.parse`` reads them."""

from __future__ import annotations

from mlx_delta.arch.base import Markup

MARKUP = Markup(
    thoughts=("<think>", "</think>"),
    call=("<tool_call>", "</tool_call>"),
    response=("<tool_response>", "</tool_response>"),
    call_head="<tool_call>\n<function={name}>\n",
    call_end="</function>\n</tool_call>",
    parameter_head="<parameter={name}>\n",
    parameter_end="\n</parameter>\n",
    turn=("<|im_start|>", "assistant"),
    ends=("<|im_end|>", "<|endoftext|>"),
)
