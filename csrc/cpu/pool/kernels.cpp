#include "avg.h"
#include "max.h"
#include "unpool.h"
