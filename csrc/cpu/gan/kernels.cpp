#include "filtered_lrelu.h"
#include "minibatch_stddev.h"
#include "upfirdn2d.h"
