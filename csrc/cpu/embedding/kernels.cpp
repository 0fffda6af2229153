#include "bag.h"
#include "gather.h"
#include "rotary.h"
#include "scatter.h"
