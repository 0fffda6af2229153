#include "bindings.h"

void bind_linear(py::module_&) {}
