"""Decoding: logits to tokens to text; knows nothing of messages, tools or the command line."""
