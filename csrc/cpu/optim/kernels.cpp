#include "norm.h"
#include "step.h"
