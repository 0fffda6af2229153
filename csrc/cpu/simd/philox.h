// Philox4x32-10 on vectors. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
