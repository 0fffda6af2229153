// What the module asks of CUDA itself.
#include "../facade.h"

namespace pf::cuda::core {

Status select_device(int device) { return pf::cuda::select_device(device); }
int driver_version() { return pf::cuda::driver_version(); }
int runtime_version() { return pf::cuda::runtime_version(); }

}  // namespace pf::cuda::core
