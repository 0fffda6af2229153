"""Triton kernels: device code and launchers that fill the outputs they are given."""
