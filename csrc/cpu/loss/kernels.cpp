#include "cross_entropy.h"
#include "linear_cross_entropy.h"
#include "means.h"
#include "nll.h"
