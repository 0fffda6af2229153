#include "bindings.h"

void bind_layer_norm(py::module_&) {}
