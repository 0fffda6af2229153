#include "activation.h"
#include "dropout.h"
#include "dropout_forms.h"
