// Compiled by nvcc for GPUs, and by a C++ compiler for host/.
#include "backward.h"
#include "forward.h"
#include "passes.h"

namespace pf::cuda::recurrent {

namespace {

template <class V>
struct Type {
  typedef V type;
};

// Calls f(arithmetic as a Type).
template <class F>
Status for_arithmetic(Dtype dtype, bool allows_tf32, F f) {
  switch (dtype) {
    case Dtype::bf16: return f(Type<bf16>());
    case Dtype::f16: return f(Type<f16>());
    case Dtype::f32: return allows_tf32 ? f(Type<tf32>()) : f(Type<float>());
    default: return {"float64 is not served"};
  }
}
template <class F>
Status for_cell(Cell cell, F f) {
  switch (cell) {
    case Cell::lstm: return f(Lstm());
    case Cell::gru: return f(Gru());
    default: return f(Plain());
  }
}

// Tiles of weights of a block: 8 or 16 units of gated cells, 16 or 32 of a plain one.
template <class C>
constexpr int kFew = C::kGates == 1 ? 1 : 2;
template <class C>
constexpr int kMany = C::kGates == 1 ? 2 : C::kGates;

// Calls f(kernel as a Type, its plan) of the one that is to be taken; the plan's units are 0 where none can be.
template <class F>
Status for_forward(const RnnShape& shape, bool allows_tf32, F f) {
  return for_arithmetic(shape.dtype, allows_tf32, [&](auto arithmetic) {
    return for_cell(shape.cell, [&](auto cell) {
      typedef typename decltype(arithmetic)::type A;
      typedef Forward<A, decltype(cell), kFew<decltype(cell)>> Few;
      typedef Forward<A, decltype(cell), kMany<decltype(cell)>> Many;
      const Plan few = plan_of<Few, RnnWalkFwd>(shape), many = plan_of<Many, RnnWalkFwd>(shape);
      return is_better(many, few, shape) ? f(Type<Many>(), many) : f(Type<Few>(), few);
    });
  });
}
template <class F>
Status for_backward(const RnnShape& shape, bool allows_tf32, F f) {
  return for_arithmetic(shape.dtype, allows_tf32, [&](auto arithmetic) {
    return for_cell(shape.cell, [&](auto cell) {
      typedef Backward<typename decltype(arithmetic)::type, decltype(cell)> K;
      return f(Type<K>(), plan_of<K, RnnWalkBwd>(shape));
    });
  });
}

template <class Params>
struct Walks {
  const Params& p;
  Stream stream;

  template <class K>
  Status operator()(Type<K>, const Plan& plan) const {
    if (!plan.units) return {"the recurrent weights do not fit into this device"};
    return walk<K>(p, plan, stream);
  }
};

}  // namespace

Status walk_sizes(const RnnWalkSizes& p, void*) {
  auto say = [&](auto, const Plan& plan) {
    *p.workspace_bytes = plan.units ? plan.bytes() : 0;
    return Status{nullptr};
  };
  return p.backward ? for_backward(p.shape, p.allows_tf32, say) : for_forward(p.shape, p.allows_tf32, say);
}
Status walk_fwd(const RnnWalkFwd& p, void* stream) {
  return for_forward(p.walk.shape, p.walk.allows_tf32, Walks<RnnWalkFwd>{p, (Stream)stream});
}
Status walk_bwd(const RnnWalkBwd& p, void* stream) {
  return for_backward(p.walk.shape, p.walk.allows_tf32, Walks<RnnWalkBwd>{p, (Stream)stream});
}

Status activate(const RnnActivate& p, void* stream) {
  const dim3 blocks(blocks_for(p.rows * p.shape.hidden, kPassThreads));
  return for_dtype(p.shape.dtype, [&](auto element) {
    typedef decltype(element) T;
    if constexpr (sizeof(T) == 8)
      return Status{"float64 is not served"};
    else if (p.shape.cell == Cell::lstm)
      return launch<Activate<T, Lstm>>(blocks, 0, (Stream)stream, p);
    else
      return launch<Activate<T, Gru>>(blocks, 0, (Stream)stream, p);
  });
}
Status gather(const RnnGather& p, void* stream) {
  const int64_t elements = p.shape.length * p.shape.batch * p.shape.directions * p.shape.hidden;
  if (!elements) return {nullptr};
  return for_dtype(p.shape.dtype, [&](auto element) {
    typedef decltype(element) T;
    if constexpr (sizeof(T) == 8)
      return Status{"float64 is not served"};
    else
      return launch<Gather<T>>(dim3(blocks_for(elements, kPassThreads)), 0, (Stream)stream, p);
  });
}

}  // namespace pf::cuda::recurrent
