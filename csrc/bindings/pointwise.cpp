#include "../common/pointwise.h"
#include "bindings.h"

PF_KERNEL(pointwise, activation_fwd, ActivationFwd)
PF_KERNEL(pointwise, activation_bwd, ActivationBwd)
PF_KERNEL(pointwise, dropout, Dropout)
PF_KERNEL(pointwise, philox_words, PhiloxWords)

PF_BINDINGS(m) {
  m.def("dropout", [](Address x, Address seed, Address y, int64_t n, uint32_t drop_below, double keep_scale, int dtype,
                      int num_threads) {
    launch(pointwise::dropout, {at<void>(x), at<int64_t>(seed), at<void>(y), n, drop_below, keep_scale, (Dtype)dtype},
           num_threads);
  });
  m.def("philox_words", [](Address counters, Address words, int64_t n, uint32_t key0, uint32_t key1) {
    launch(pointwise::philox_words, {at<uint32_t>(counters), at<uint32_t>(words), n, key0, key1}, 1);
  });
  m.def("activation_fwd", [](Address x, Address y, int64_t n, int activation, int dtype, int num_threads) {
    launch(pointwise::activation_fwd, {at<void>(x), at<void>(y), n, activation, (Dtype)dtype}, num_threads);
  });
  m.def("activation_bwd",
        [](Address dy, Address saved, Address dx, int64_t n, int activation, int dtype, int num_threads) {
          launch(pointwise::activation_bwd, {at<void>(dy), at<void>(saved), at<void>(dx), n, activation, (Dtype)dtype},
                 num_threads);
        });
}
