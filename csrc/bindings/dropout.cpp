#include "bindings.h"

void bind_dropout(py::module_& m) {
  m.def("dropout", [](Address x, Address seed, Address y, int64_t n, uint32_t drop_below, double keep_scale, int dtype,
                      int num_threads) {
    launch(&KernelTable::dropout,
           {at<void>(x), at<int64_t>(seed), at<void>(y), n, drop_below, keep_scale, (Dtype)dtype}, num_threads);
  });
  m.def("philox_words", [](Address counters, Address words, int64_t n, uint32_t key0, uint32_t key1) {
    launch(&KernelTable::philox_words, {at<uint32_t>(counters), at<uint32_t>(words), n, key0, key1}, 1);
  });
}
