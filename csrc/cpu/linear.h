// The linear kernels.
