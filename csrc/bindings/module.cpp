// The module pyflash._cpu: instruction sets, and the kernel families.
#include <stdlib.h>

#include "../common/core.h"
#include "bindings.h"
#include "dtypes.h"
#include "reader.h"

#ifndef PF_CONTRACT
#define PF_CONTRACT ""
#endif
#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

PF_KERNEL(core, fma_peak, FmaPeak)
PF_KERNEL(core, transposed, Transposed)

const Bindings* Bindings::first = nullptr;  // before any constructor runs

PYBIND11_MODULE(_cpu, m) {
  if (const char* wanted = getenv("PYFLASH_CPU_ISA"))
    if (*wanted && !select_isa(wanted))
      throw py::import_error(
          std::string("PYFLASH_CPU_ISA is '") + wanted +
          "': not an instruction set of this build and processor; python -m pyflash info lists them");
  if (selected_isa() < 0)
    throw py::import_error("pyflash's native core was built for instruction sets that this processor has not");
  // Of memory that nothing was written to yet: 2 MB pages, where the system has them and gives them.
  m.def("prefer_large_pages", [](Address address, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const Address page = 4096, begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
    if (end > begin) madvise(at<void>(begin), end - begin, MADV_HUGEPAGE);
#endif
  });
  m.attr("CONTRACT") = PF_CONTRACT;  // pyflash/ops/core/contract.py
  add_dtypes(m);
  m.def("isas", [] {
    py::list rows;  // (name, is it in this build, does this processor have it), worst first
    for (const Isa* isa = isas(); isa->name; isa++)
      rows.append(py::make_tuple(isa->name, isa->is_built, isa->is_supported));
    return rows;
  });
  m.def("isa", [] { return isas()[selected_isa()].name; });
  m.def("select_isa", [](const std::string& name) { return select_isa(name.c_str()); });
  m.def("best_isa", [](bool is_intel) { return isas()[best_isa(is_intel)].name; });
  m.def("processor", [] {  // (maker, family, model)
    const Processor here = processor();
    return py::make_tuple(here.is_intel ? "intel" : here.is_amd ? "amd" : "other", here.family, here.model);
  });
  m.def("fma_peak", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "fma_peak", "problem");
    double flops = 0;
    float sink = 0;
    FmaPeak p;
    p.iterations = r.size("iterations");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    p.flops = &flops;
    p.sink = &sink;
    r.done();
    launch(core::fma_peak, p, num_threads);
    return flops;  // the caller's clock makes a rate of it
  });
  m.def("transposed", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "transposed", "problem");
    Transposed p;
    p.from = r.address("from");
    p.to = r.address<void>("to");
    p.batch = r.size("batch");
    p.rows = r.size("rows");
    p.cols = r.size("cols");
    const int64_t log_itemsize = r.member<int64_t>("log_itemsize", 4, 1);
    p.itemsize = 1 << log_itemsize;
    r.done();
    launch(core::transposed, p, num_threads);
  });
  for (const Bindings* family = Bindings::first; family; family = family->next) family->define(m);
}
