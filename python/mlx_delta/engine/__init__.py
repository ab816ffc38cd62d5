"""Sequences of tokens: the prompt's pass, the next token, the draw. Knows nothing of text."""
