"""Losses: means of functions of each element."""
