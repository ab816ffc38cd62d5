"""Chat: messages to prompts, model output to text, thoughts and tool calls; knows nothing of the command line."""
