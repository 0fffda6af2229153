// Parameters of the attention kernels.
#pragma once
#include <stdint.h>

#include "dtype.h"
