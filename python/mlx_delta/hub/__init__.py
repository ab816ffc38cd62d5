"""Models by name: ``org/name`` to a directory of the Hugging Face cache, downloaded when it is not there yet."""
