"""Masks in other places than a folder of their own: labels in an image, TIFF files; what a mask was made from."""
