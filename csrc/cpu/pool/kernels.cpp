#include "avg.h"
#include "max.h"
