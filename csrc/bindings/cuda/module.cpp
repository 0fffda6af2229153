// The module pyflash._cuda, and its twin pyflash._cuda_host, whose kernels run on the CPU (csrc/cuda/host).
#include "../dtypes.h"
#include "launch.h"

#ifdef PF_CUDA_HOST
#include "../../cuda/host/runtime.h"
#define PF_MODULE_NAME _cuda_host
#else
#define PF_MODULE_NAME _cuda
#endif
#ifndef PF_CONTRACT
#define PF_CONTRACT ""
#endif
#ifndef PF_ARCHS
#define PF_ARCHS ""
#endif

namespace pf::cuda::core {
int driver_version();
int runtime_version();
}  // namespace pf::cuda::core

const Bindings* Bindings::first = nullptr;  // before any constructor runs

PYBIND11_MODULE(PF_MODULE_NAME, m) {
  m.attr("CONTRACT") = PF_CONTRACT;  // pyflash/ops/core/contract.py
  m.attr("ARCHS") = PF_ARCHS;        // "80 90 90+ptx": what it holds machine code for, and PTX
  add_dtypes(m);
  // 13000 is CUDA 13.0: what the driver takes (0: there is none), and what this was built with. Starts no device.
  m.def("versions", [] { return py::make_tuple(pf::cuda::core::driver_version(), pf::cuda::core::runtime_version()); });
#ifdef PF_CUDA_HOST
  // Who runs when several may, "depth_first" or "random:7", and when cp.async copies, "lazy" or "eager".
  m.def("set_order", [](const std::string& schedule, const std::string& copies) {
    auto& options = pf::cuda::host::options();
    if (!pf::cuda::host::read_schedule(schedule.c_str(), options) ||
        !pf::cuda::host::read_copies(copies.c_str(), options))
      throw py::value_error("pyflash._cuda_host.set_order: '" + schedule + "', '" + copies +
                            "'; docs/cuda-on-host.md has a table of them");
  });
  // The device that is stood in for: its processors, and the shared memory that a block may have.
  m.def("set_device", [](int processors, size_t shared_bytes) {
    pf::cuda::host::options().processors = processors;
    pf::cuda::host::options().shared_bytes = shared_bytes;
  });
#endif
  for (const Bindings* family = Bindings::first; family; family = family->next) family->define(m);
}
