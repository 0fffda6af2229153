#include "fingerprint.h"
#include "peak.h"
