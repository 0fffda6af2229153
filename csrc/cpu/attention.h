// The attention kernels.
