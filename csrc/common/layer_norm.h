// Parameters of the layer_norm kernels.
#pragma once
#include <stdint.h>

#include "dtype.h"
