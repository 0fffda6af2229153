#include "fingerprint.h"
#include "peak.h"
#include "transposed.h"
