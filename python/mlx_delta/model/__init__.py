"""The network: layers, their caches, and the whole text model. Knows nothing of files, tokens' text or sampling."""
