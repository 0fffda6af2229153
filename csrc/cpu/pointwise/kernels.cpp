#include "activation.h"
#include "dropout.h"
