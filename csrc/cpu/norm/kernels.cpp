#include "channel_backward.h"
#include "channel_forward.h"
#include "layer_norm.h"
#include "local_response.h"
