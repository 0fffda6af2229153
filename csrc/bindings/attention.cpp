#include "bindings.h"

void bind_attention(py::module_&) {}
