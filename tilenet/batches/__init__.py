"""Many images by one command."""
