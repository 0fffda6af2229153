#include "../attention.h"

#include "../../common/device_attention.h"
#include "launch.h"

PF_CUDA_KERNEL(attention, attention_fwd, DeviceAttentionFwd)
PF_CUDA_KERNEL(attention, attention_bwd, DeviceAttentionBwd)
PF_CUDA_KERNEL(attention, attention_decode, DeviceAttentionDecode)

// The tuples that ops/attention/_cuda.py makes: (problem, what lies on the device, tensors).
namespace {

DeviceAttention read_problem(const py::tuple& problem, const py::tuple& on_device, const char* operation) {
  DeviceAttention p = {};
  p.of = attention_problem(problem, operation);
  Reader r(on_device, operation, "on_device");
  p.seed = r.address("seed");
  p.cu_seqlens_q = r.address("cu_seqlens_q");
  p.cu_seqlens_k = r.address("cu_seqlens_k");
  p.seqlens_k = r.address("seqlens_k");
  p.longest_q = r.size("longest_q");
  p.longest_k = r.size("longest_k");
  const auto stride = r.sizes<2>("lse_stride");
  p.lse_stride[0] = stride[0], p.lse_stride[1] = stride[1];
  p.index_bytes_q = (int32_t)r.size("index_bytes_q");
  p.index_bytes_k = (int32_t)r.size("index_bytes_k");
  p.from_end = r.flag("from_end");
  r.done();
  return p;
}

DeviceAttentionFwd read_attention_fwd(const py::tuple& call) {
  const auto [problem, on_device, results] = parts_of<3>(call, "attention_fwd");
  DeviceAttentionFwd p = {};
  p.at = read_problem(problem, on_device, "attention_fwd");
  Reader r(results, "attention_fwd", "results");
  read_results(r, p);
  r.done();
  return p;
}

DeviceAttentionBwd read_attention_bwd(const py::tuple& call) {
  const auto [problem, on_device, gradients] = parts_of<3>(call, "attention_bwd");
  DeviceAttentionBwd p = {};
  p.at = read_problem(problem, on_device, "attention_bwd");
  Reader r(gradients, "attention_bwd", "gradients");
  read_gradients(r, p);
  p.terms = r.address<void>("terms");
  p.terms_rows = r.size("terms_rows");
  r.done();
  return p;
}

DeviceAttentionDecode read_attention_decode(const py::tuple& call) {
  const auto [problem, on_device, results] = parts_of<3>(call, "attention_decode");
  DeviceAttentionDecode p = {};
  p.fwd.at = read_problem(problem, on_device, "attention_decode");
  Reader r(results, "attention_decode", "results");
  read_results(r, p.fwd);
  p.part_out = r.address<void>("part_out");
  p.part_lse = r.address<void>("part_lse");
  p.splits = r.size("splits");
  p.split_len = r.size("split_len");
  p.block_table = r.address("block_table");
  p.max_blocks = r.size("max_blocks");
  p.block_size = r.size("block_size");
  p.num_blocks = r.size("num_blocks");
  p.block_bytes = (int32_t)r.size("block_bytes");
  r.done();
  return p;
}

}  // namespace

PF_BINDINGS(m) {
  m.attr("MASK_TYPES") = mask_types();
  PF_CUDA_DEF(m, attention, attention_fwd);
  PF_CUDA_DEF(m, attention, attention_bwd);
  PF_CUDA_DEF(m, attention, attention_decode);
}
