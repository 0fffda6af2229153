#include "../common/optim.h"

#include "bindings.h"
#include "reader.h"

PF_KERNEL(optim, optim_step, OptimStep)
PF_KERNEL(optim, total_norm, TotalNorm)
PF_KERNEL(optim, scale_tensors, ScaleTensors)

namespace {

// The sizes of tensors, and columns of their addresses.
class Lists {
 public:
  Lists(Reader& r, const char* operation) : r_(r), operation_(operation), sizes_(r.list<int64_t>("sizes")) {
    before_ = sums([](int64_t size) { return size; });
  }
  TensorList of(Dtype dtype) const { return {before_.data(), (int64_t)sizes_.size(), dtype}; }
  // The chunks before each, of so many elements.
  std::vector<int64_t> chunks_before(int64_t chunk) const {
    return sums([&](int64_t size) { return (size + chunk - 1) / chunk; });
  }
  // As long as the sizes; of a column that may be missing also null.
  void* const* column(const char* field, bool may_be_missing = false) {
    columns_.push_back(r_.list<void*>(field));
    const size_t count = columns_.back().size();
    if (may_be_missing && count == 0) return nullptr;
    if (count != sizes_.size())
      throw py::type_error(std::string("pyflash." PF_MODULE ".") + operation_ + ": " + field + " has " +
                           std::to_string(count) + " addresses, expected " + std::to_string(sizes_.size()));
    return columns_.back().data();
  }

 private:
  template <class F>
  std::vector<int64_t> sums(F f) const {
    std::vector<int64_t> sums(1, 0);
    for (const int64_t size : sizes_) sums.push_back(sums.back() + f(size));
    return sums;
  }

  Reader& r_;
  const char* operation_;
  std::vector<int64_t> sizes_, before_;
  std::vector<std::vector<void*>> columns_;  // whose own vectors stay where they are
};

UpdateOptions read_options(Reader& r) {
  UpdateOptions o;
  o.rule = r.member<UpdateRule>("rule", kUpdateRules);
  o.gradient_factor = r.number("gradient_factor");
  o.sign = r.number("sign");
  o.weight_decay = r.number("weight_decay");
  o.shrink = r.number("shrink");
  o.step_size = r.number("step_size");
  o.momentum = r.number("momentum");
  o.fresh = r.number("fresh");
  o.is_nesterov = r.flag("is_nesterov");
  o.mean_decay = r.number("mean_decay");
  o.square_decay = r.number("square_decay");
  o.root_scale = r.number("root_scale");
  o.eps = r.number("eps");
  o.ema_decay = r.number("ema_decay");
  o.gradients = r.member<Gradients>("gradients", kGradients);
  return o;
}

void expect_states(const OptimStep& step) {
  const bool fits = step.options.rule == UpdateRule::sgd    ? !step.states[1] && !step.states[2]
                    : step.options.rule == UpdateRule::adam ? step.states[0] && step.states[1]
                                                            : step.states[0] != nullptr;
  if (!fits && step.of.count) throw py::type_error("pyflash." PF_MODULE ".optim_step: these are not the rule's states");
}

}  // namespace

// The tuples that ops/optim/_cpu.py makes.
PF_BINDINGS(m) {
  m.attr("UPDATE_RULES") = py::make_tuple("sgd", "adam", "rmsprop");
  m.attr("GRADIENTS") = py::make_tuple("kept", "written", "zeroed");
  m.attr("NORM_KINDS") = py::make_tuple("euclidean", "maximum");
  m.def("optim_step", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "optim_step", "problem");
    Lists lists(r, "optim_step");
    OptimStep p;
    p.params = lists.column("params");
    p.grads = lists.column("grads");
    const char* const fields[kStates] = {"first state", "second state", "third state"};
    for (int i = 0; i < kStates; i++) p.states[i] = lists.column(fields[i], true);
    p.emas = lists.column("emas", true);
    p.options = read_options(r);
    p.of = lists.of(r.member<Dtype>("dtype", kDtypes));
    r.done();
    expect_states(p);
    launch(optim::optim_step, p, num_threads);
  });
  m.def("total_norm", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "total_norm", "problem");
    Lists lists(r, "total_norm");
    double total = 0;
    TotalNorm p;
    p.tensors = lists.column("tensors");
    p.kind = r.member<NormKind>("kind", kNormKinds);
    p.of = lists.of(r.member<Dtype>("dtype", kDtypes));
    r.done();
    const std::vector<int64_t> chunks_before = lists.chunks_before(kNormChunk);
    std::vector<double> chunks(chunks_before.back());
    p.chunks_before = chunks_before.data();
    p.chunks = chunks.data();
    p.total = &total;
    launch(optim::total_norm, p, num_threads);
    return total;
  });
  m.def("scale_tensors", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "scale_tensors", "problem");
    Lists lists(r, "scale_tensors");
    ScaleTensors p;
    p.tensors = lists.column("tensors");
    p.factor = r.number("factor");
    p.of = lists.of(r.member<Dtype>("dtype", kDtypes));
    r.done();
    launch(optim::scale_tensors, p, num_threads);
  });
}
