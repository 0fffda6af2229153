// The layer_norm kernels.
