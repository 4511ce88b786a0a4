"""One step per format version."""
