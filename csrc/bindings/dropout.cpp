#include "bindings.h"

void bind_dropout(py::module_&) {}
