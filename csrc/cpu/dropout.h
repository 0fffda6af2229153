// The dropout kernels.
