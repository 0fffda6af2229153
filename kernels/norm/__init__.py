"""Normalisations over the last dimensions."""
