// Of the modules pyflash._cuda and pyflash._cuda_host, which are one source: how a kernel of csrc/cuda is launched.
// CUDA's headers stay with the kernels.
#pragma once
#include <array>
#include <stdexcept>
#include <string>

#include "../../cuda/status.h"
#include "../reader.h"

// The entry family::name of csrc/cuda/<family>/kernels.cu; the linker says when it is not there.
#define PF_CUDA_KERNEL(family, name, Params)       \
  namespace pf::cuda::family {                     \
  Status name(const Params& params, void* stream); \
  }

namespace pf::cuda::core {
Status select_device(int device);
}

// The tuples that a call is made of, each read by its own.
template <size_t kCount>
std::array<py::object, kCount> parts_of(const py::tuple& call, const char* operation) {
  if (call.size() != kCount)
    throw py::type_error(std::string("pyflash." PF_MODULE ".") + operation + ": the call has " +
                         std::to_string(call.size()) + " parts, expected " + std::to_string(kCount));
  std::array<py::object, kCount> parts;
  for (size_t i = 0; i < kCount; i++) parts[i] = call[i];
  return parts;
}

// On a stream of a device, as torch numbers them; without the interpreter lock.
template <class Params>
void launch(const char* operation, pf::cuda::Status (*kernel)(const Params&, void*), const Params& params, int device,
            Address stream) {
  std::string error;
  {
    py::gil_scoped_release release;
    pf::cuda::Status status = pf::cuda::core::select_device(device);
    if (!status.error) status = kernel(params, at<void>(stream));
    if (status.error) error = status.error;
  }
  if (!error.empty()) throw std::runtime_error(std::string("pyflash." PF_MODULE ".") + operation + ": " + error);
}

// name(problem, device, stream), of a tuple that read_<name> reads.
#define PF_CUDA_DEF(m, family, name)                                             \
  m.def(#name, [](const py::tuple& problem, int device, Address stream) {        \
    launch(#name, pf::cuda::family::name, read_##name(problem), device, stream); \
  })
