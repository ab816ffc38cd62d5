"""Text to tokens and back, where it stops, what may come next; knows nothing of messages, tools or the command line."""
