"""Masks drawn over their images."""
