#include "filtered_lrelu.h"
#include "upfirdn2d.h"
