// Parameters of the linear kernels.
#pragma once
#include <stdint.h>

#include "dtype.h"
