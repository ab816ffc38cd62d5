"""The command line: one short file a command, and the imports that a command needs only when it runs."""
