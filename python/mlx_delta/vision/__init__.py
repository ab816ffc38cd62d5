"""Pictures and videos to what a text model reads in their places: decoded, resized, cut into patches, looked at."""
