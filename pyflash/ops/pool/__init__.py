"""Pooling: max, average, adaptive, and their inverse."""
