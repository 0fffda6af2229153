#include "../common/embedding.h"
#include "bindings.h"
#include "reader.h"

PF_KERNEL(embedding, embedding_fwd, EmbeddingFwd)
PF_KERNEL(embedding, embedding_bwd, EmbeddingBwd)
PF_KERNEL(embedding, embedding_renorm, EmbeddingRenorm)
PF_KERNEL(embedding, embedding_bag_fwd, EmbeddingBagFwd)
PF_KERNEL(embedding, embedding_bag_dots, EmbeddingBagDots)
PF_KERNEL(embedding, rotary, Rotary)

static void read_three(Reader& r, int64_t (&out)[3], const char* field) {
  const std::array<int64_t, 3> sizes = r.sizes<3>(field);
  for (int i = 0; i < 3; i++) out[i] = sizes[i];
}

// The tuples that ops/embedding/_cpu.py makes. Each returns a place whose index is out of range, or -1; of bags, also
// one whose bounds do not fit.
PF_BINDINGS(m) {
  py::dict index_types;  // torch's names
  index_types["int32"] = (int)IndexType::i32;
  index_types["int64"] = (int)IndexType::i64;
  m.attr("INDEX_TYPES") = index_types;
  m.def("embedding_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "embedding_fwd", "problem");
    int64_t wrong = -1;
    EmbeddingFwd p;
    p.weight = r.address("weight");
    p.indices = r.address("indices");
    p.y = r.address<void>("y");
    p.n = r.size("n");
    p.rows = r.size("rows");
    p.row_bytes = r.size("row_bytes");
    p.weight_row_stride = r.size("weight_row_stride");
    p.index_type = r.member<IndexType>("index_type", kIndexTypes);
    p.wrong = &wrong;
    r.done();
    launch(embedding::embedding_fwd, p, num_threads);
    return wrong;
  });
  m.def("embedding_bwd_workspace", embedding_bwd_workspace);
  m.def("embedding_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "embedding_bwd", "problem");
    int64_t wrong = -1, wrong_bag = -1;
    EmbeddingBwd p;
    p.dy = r.address("dy");
    p.indices = r.address("indices");
    p.dweight = r.address<void>("dweight");
    p.workspace = r.address<int64_t>("workspace");
    p.n = r.size("n");
    p.rows = r.size("rows");
    p.cols = r.size("cols");
    p.dy_row_stride = r.size("dy_row_stride");
    p.padding = r.integer("padding");
    p.scale_by_frequency = r.flag("scale_by_frequency");
    p.bounds = r.address<const int64_t>("bounds");
    p.per_sample = r.address("per_sample");
    p.counts = r.address<const int64_t>("counts");
    p.winners = r.address<const int64_t>("winners");
    p.bags = r.size("bags");
    p.index_type = r.member<IndexType>("index_type", kIndexTypes);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    p.wrong = &wrong;
    p.wrong_bag = &wrong_bag;
    r.done();
    launch(embedding::embedding_bwd, p, num_threads);
    return py::make_tuple(wrong, wrong_bag);
  });
  m.attr("BAG_MODES") = py::make_tuple("sum", "mean", "max");
  m.def("embedding_bag_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "embedding_bag_fwd", "problem");
    int64_t wrong = -1, wrong_bag = -1;
    EmbeddingBagFwd p;
    p.weight = r.address("weight");
    p.indices = r.address("indices");
    p.bounds = r.address<const int64_t>("bounds");
    p.per_sample = r.address("per_sample");
    p.y = r.address<void>("y");
    p.counts = r.address<int64_t>("counts");
    p.winners = r.address<int64_t>("winners");
    p.n = r.size("n");
    p.rows = r.size("rows");
    p.cols = r.size("cols");
    p.bags = r.size("bags");
    p.weight_row_stride = r.size("weight_row_stride");
    p.padding = r.integer("padding");
    p.mode = r.member<BagMode>("mode", kBagModes);
    p.index_type = r.member<IndexType>("index_type", kIndexTypes);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    p.wrong = &wrong;
    p.wrong_bag = &wrong_bag;
    r.done();
    launch(embedding::embedding_bag_fwd, p, num_threads);
    return py::make_tuple(wrong, wrong_bag);
  });
  m.def("embedding_bag_dots", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "embedding_bag_dots", "problem");
    int64_t wrong = -1, wrong_bag = -1;
    EmbeddingBagDots p;
    p.dy = r.address("dy");
    p.weight = r.address("weight");
    p.indices = r.address("indices");
    p.bounds = r.address<const int64_t>("bounds");
    p.dper_sample = r.address<void>("dper_sample");
    p.n = r.size("n");
    p.rows = r.size("rows");
    p.cols = r.size("cols");
    p.bags = r.size("bags");
    p.dy_row_stride = r.size("dy_row_stride");
    p.weight_row_stride = r.size("weight_row_stride");
    p.padding = r.integer("padding");
    p.index_type = r.member<IndexType>("index_type", kIndexTypes);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    p.wrong = &wrong;
    p.wrong_bag = &wrong_bag;
    r.done();
    launch(embedding::embedding_bag_dots, p, num_threads);
    return py::make_tuple(wrong, wrong_bag);
  });
  m.def("embedding_renorm", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "embedding_renorm", "problem");
    int64_t wrong = -1;
    EmbeddingRenorm p;
    p.weight = r.address("weight");
    p.indices = r.address("indices");
    p.y = r.address<void>("y");
    p.n = r.size("n");
    p.rows = r.size("rows");
    p.cols = r.size("cols");
    p.weight_row_stride = r.size("weight_row_stride");
    p.max_norm = r.number("max_norm");
    p.norm_type = r.number("norm_type");
    p.index_type = r.member<IndexType>("index_type", kIndexTypes);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    p.wrong = &wrong;
    r.done();
    launch(embedding::embedding_renorm, p, num_threads);
    return wrong;
  });
  m.def("rotary", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "rotary", "problem");
    Rotary p;
    p.x = r.address("x");
    p.cos = r.address("cos");
    p.sin = r.address("sin");
    p.y = r.address<void>("y");
    read_three(r, p.size, "size");
    read_three(r, p.x_stride, "x_stride");
    read_three(r, p.y_stride, "y_stride");
    read_three(r, p.table_stride, "table_stride");
    p.dim = r.size("dim");
    p.half = r.size("half");
    p.interleaved = r.flag("interleaved");
    p.inverse = r.flag("inverse");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(embedding::rotary, p, num_threads);
  });
}
