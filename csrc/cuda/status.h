// How an entry of csrc/cuda answers; without CUDA's headers, for csrc/bindings/cuda.
#pragma once

namespace pf::cuda {

// Null, or what is wrong; valid until the next call.
struct Status {
  const char* error;
};

}  // namespace pf::cuda
