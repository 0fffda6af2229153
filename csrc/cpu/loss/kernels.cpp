#include "cross_entropy.h"
#include "means.h"
#include "nll.h"
