#include "tensor_stats.h"
