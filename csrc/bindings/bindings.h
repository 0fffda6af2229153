// Of the module pyflash._cpu: how a kernel is called.
#pragma once
#include "../cpu/dispatch.h"
#include "registration.h"

// Runs the kernel of the selected instruction set.
template <class Params>
void call(const Kernel<Params>& kernel, const Params& params, int num_threads) {
  kernel.of[selected_isa()](params, allowed_threads(num_threads));
}
// The same without the interpreter lock.
template <class Params>
void launch(const Kernel<Params>& kernel, const Params& params, int num_threads) {
  py::gil_scoped_release release;
  call(kernel, params, num_threads);
}
