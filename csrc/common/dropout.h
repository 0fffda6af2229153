// Parameters of the dropout kernels.
#pragma once
#include <stdint.h>

#include "dtype.h"
