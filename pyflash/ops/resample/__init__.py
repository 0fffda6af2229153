"""Resizing and padding: what moves the places of an image."""
