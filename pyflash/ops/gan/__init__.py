"""The operators of image generators: StyleGAN's resampling."""
