#include "means.h"
