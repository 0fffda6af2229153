// The types as every module names them: torch's names, and the numbers of csrc/common/dtype.h.
#pragma once
#include "../common/dtype.h"
#include "registration.h"

inline void add_dtypes(py::module_& m) {
  py::dict dtypes;  // read by pyflash/ops/core/native.py and _cuda.py
  dtypes["float32"] = (int)Dtype::f32;
  dtypes["float64"] = (int)Dtype::f64;
  dtypes["bfloat16"] = (int)Dtype::bf16;
  dtypes["float16"] = (int)Dtype::f16;
  m.attr("DTYPES") = dtypes;
}
