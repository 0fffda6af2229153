// Runs a case of kernels.h for test_host.py. Arguments: the case, and for each run a schedule and when
// cp.async copies. Prints "right", "wrong: ..." or the host's sentence for each.
#include <stdio.h>
#include <string.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/cuda/host/guarded.h"
#include "kernels.h"

namespace {

using pf::cuda::host::Guarded;

std::string found;  // what the case prints

float number(int i) { return (float)((unsigned)i * 2654435761u >> 26) / 16 - 2; }  // a multiple of 1/16 in [-2, 2)

void expect(const float* got, const std::vector<double>& wanted, double tolerance, Status status) {
  found = status.error ? status.error : "right";
  for (size_t i = 0; !status.error && i < wanted.size(); i++)
    if (!(got[i] - wanted[i] <= tolerance && wanted[i] - got[i] <= tolerance)) {
      char text[96];
      snprintf(text, sizeof text, "wrong: element %zu is %g, wanted %g", i, (double)got[i], wanted[i]);
      found = text;
      return;
    }
}

struct Floats : Guarded {
  Floats(size_t count, const char* name) : Guarded(count * 4, name) {}
  float* begin() const { return (float*)data(); }
  void fill() const {
    for (size_t i = 0; i < bytes / 4; i++) begin()[i] = number((int)i);
  }
};

template <Mistake kMistake>
void row_sums() {
  constexpr int kRows = 6, kColumns = 300;
  Floats x(kRows * kColumns, "x"), sums(kRows, "sums");
  x.fill();
  std::vector<double> wanted(kRows);
  for (int i = 0; i < kRows * kColumns; i++) wanted[(size_t)i / kColumns] += number(i);
  const Status status =
      launch<RowSums<kMistake>>({kRows / 2}, 0, nullptr, (const float*)x.begin(), sums.begin(), kColumns);
  expect(sums.begin(), wanted, 1e-3, status);
  if (found == "right" && !sums.is_intact()) found = "wrong: a write beside sums";
}

template <class T, Slip kSlip>
void product() {
  constexpr int kRows = 32, kDepth = 96;
  Guarded a(kRows * kDepth * 2, "a"), b(8 * kDepth * 2, "b");
  Floats c(kRows * 8, "c");
  for (int i = 0; i < kRows * kDepth; i++) ((T*)a.data())[i] = from_float<T>(number(i));
  for (int i = 0; i < 8 * kDepth; i++) ((T*)b.data())[i] = from_float<T>(number(3 * i + 1));
  std::vector<double> wanted(kRows * 8);
  for (int row = 0; row < kRows; row++)
    for (int column = 0; column < 8; column++)
      for (int i = 0; i < kDepth; i++)
        wanted[(size_t)row * 8 + column] += number(row * kDepth + i) * number(3 * (column * kDepth + i) + 1);
  expect(c.begin(), wanted, 1e-3,
         launch<Product<T, kSlip>>({1}, 0, nullptr, (const T*)a.data(), (const T*)b.data(), c.begin(), kDepth));
}

template <class K>
void small_product() {
  Guarded b(16 * 8 * 2, "b");
  Floats a(16 * 16, "a"), c(16 * 8, "c");
  a.fill();
  for (int i = 0; i < 16 * 8; i++) ((f16*)b.data())[i] = from_float<f16>(number(5 * i));
  std::vector<double> wanted(16 * 8);
  for (int i = 0; i < 16 * 8 * 16; i++) {
    const int row = i / 128, column = i / 16 % 8, k = i % 16;
    wanted[(size_t)row * 8 + column] += number(row * 16 + k) * number(5 * (k * 8 + column));
  }
  expect(c.begin(), wanted, 1e-3, launch<K>({1}, 0, nullptr, (const f16*)b.data(), (const float*)a.begin(), c.begin()));
}

template <Lapse kLapse>
void rotate() {
  constexpr int kBlocks = 4, kSteps = 5, kCount = kBlocks * kWarp;
  Floats state(2 * kCount, "state");
  std::vector<double> wanted(kCount);
  for (int i = 0; i < kCount; i++) state.begin()[i] = number(i);
  for (int i = 0; i < kCount; i++) wanted[(size_t)i] = number((i + kSteps) % kCount) + kSteps;
  uint32_t arrived = 0;
  const Status status =
      kLapse == Lapse::not_cooperative
          ? launch<Rotate<kLapse>>({kBlocks}, 0, nullptr, state.begin(), &arrived, kSteps)
          : launch_cooperative<Rotate<kLapse>>({kBlocks}, 0, nullptr, state.begin(), &arrived, kSteps);
  expect(state.begin() + kSteps % 2 * kCount, wanted, 0, status);
}
template <Lapse kLapse>
void pass_on() {
  constexpr int kBlocks = 4;
  Floats state(kBlocks * kWarp, "state");
  uint32_t flags[kBlocks] = {};
  std::vector<double> wanted(kBlocks * kWarp);
  for (int i = 0; i < kBlocks * kWarp; i++) wanted[(size_t)i] = i / kWarp + 1;
  expect(state.begin(), wanted, 0,
         launch_cooperative<PassOn<kLapse>>({kBlocks}, 0, nullptr, state.begin(), &flags[0], 0));
}

void votes() {
  Floats out(192, "out");
  std::vector<double> wanted(192);
  for (int lane = 0; lane < 32; lane++) {
    wanted[(size_t)lane] = lane < 3 ? lane : lane - 3;
    wanted[(size_t)lane + 32] = lane % 16 + 5 > 15 ? lane : lane + 5;
    wanted[(size_t)lane + 64] = lane / 8 * 8 + 1;
    wanted[(size_t)lane + 96] = 31;
    wanted[(size_t)lane + 128] = 1;
    wanted[(size_t)lane + 160] = 8;
  }
  expect(out.begin(), wanted, 0, launch<Votes>({1}, 0, nullptr, out.begin()));
}

void numbers() {
  std::vector<float> got;
  std::vector<double> wanted;
  auto add = [&](float value, double what) { got.push_back(value), wanted.push_back(what); };
  for (int bits = 0; bits < 1 << 16; bits++) {
    const f16 h = {(uint16_t)bits};
    if ((bits & 0x7c00) == 0x7c00 && bits & 0x3ff) continue;  // NaN
    add((float)from_float<f16>(to_float(h)).bits, bits);
    const bf16 b = {(uint16_t)bits};
    if ((bits & 0x7f80) != 0x7f80 || !(bits & 0x7f)) add((float)from_float<bf16>(to_float(b)).bits, bits);
  }
  add(to_float(from_float<f16>(1.0f + 0x1p-11f)), 1);  // a tie, to even
  add(to_float(from_float<f16>(1.0f + 3 * 0x1p-11f)), 1 + 0x1p-9);
  add(to_float(from_float<f16>(65519.0f)), 65504);
  add((float)from_float<f16>(65520.0f).bits, 0x7c00);
  add((float)from_float<f16>(0x1p-25f).bits, 0);
  add((float)from_float<f16>(0x1.8p-25f).bits, 1);
  add(to_float(from_float<bf16>(1.0f + 0x1p-8f)), 1);
  add(to_float(from_float<bf16>(1.0f + 3 * 0x1p-8f)), 1 + 0x1p-6);
  add(__uint_as_float(from_float<tf32>(1.0f + 0x1p-11f).bits), 1 + 0x1p-10);  // a tie, away from zero
  const uint32_t halves = pair_of<f16>(1.0f, -2.0f), brains = pair_of<bf16>(1.0f, -2.0f);
  add((float)(halves & 0xffff), 0x3c00), add((float)(halves >> 16), 0xc000);
  add((float)(brains & 0xffff), 0x3f80), add((float)(brains >> 16), 0xc000);
  add(exp2_approx(-3.0f), 0.125), add(exp2_approx(0.0f), 1), add(exp2_approx(-INFINITY), 0);
  add(exp2_approx(-127.0f), 0);  // subnormal
  expect(got.data(), wanted, 0, {nullptr});
}

void say(Status status) { found = status.error ? status.error : "right"; }

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<void()>> cases = {
      {"row_sums", row_sums<Mistake::none>},
      {"row_sums/no_barrier", row_sums<Mistake::no_barrier>},
      {"row_sums/no_second_barrier", row_sums<Mistake::no_second_barrier>},
      {"row_sums/other_barrier", row_sums<Mistake::other_barrier>},
      {"row_sums/leaves_early", row_sums<Mistake::leaves_early>},
      {"row_sums/skips_shuffle", row_sums<Mistake::skips_shuffle>},
      {"row_sums/outside_of_mask", row_sums<Mistake::outside_of_mask>},
      {"row_sums/past_shared", row_sums<Mistake::past_shared>},
      {"row_sums/past_global", row_sums<Mistake::past_global>},
      {"row_sums/before_global", row_sums<Mistake::before_global>},
      {"row_sums/beside_global", row_sums<Mistake::beside_global>},
      {"row_sums/much_shared", row_sums<Mistake::much_shared>},
      {"row_sums/runs_down_the_stack", row_sums<Mistake::runs_down_the_stack>},
      {"row_sums/only_half_arrives", row_sums<Mistake::only_half_arrives>},
      {"product", product<bf16, Slip::none>},
      {"product/float16", product<f16, Slip::none>},
      {"product/transposed", small_product<Transposed<true>>},
      {"product/transposed/no_barrier", small_product<Transposed<false>>},
      {"product/tf32", small_product<InTf32>},
      {"product/weak_wait", product<bf16, Slip::weak_wait>},
      {"product/no_barrier_behind", product<bf16, Slip::no_barrier_behind>},
      {"product/other_layout", product<bf16, Slip::other_layout>},
      {"product/misaligned", product<bf16, Slip::misaligned>},
      {"rotate", rotate<Lapse::none>},
      {"rotate/no_grid_barrier", rotate<Lapse::no_grid_barrier>},
      {"rotate/not_cooperative", rotate<Lapse::not_cooperative>},
      {"pass_on", pass_on<Lapse::none>},
      {"pass_on/lost_flag", pass_on<Lapse::lost_flag>},
      {"pass_on/no_wait", pass_on<Lapse::no_wait>},
      {"votes", votes},
      {"numbers", numbers},
      {"launch", [] { say(launch<Nothing>({3, 2}, 0, nullptr, 0)); }},
      {"launch/no_blocks", [] { say(launch<Nothing>({0}, 0, nullptr, 0)); }},
      {"launch/threads", [] { say(launch<Wide>({1}, 0, nullptr, 0)); }},
      {"launch/bounds", [] { say(launch<Crowded>({1}, 0, nullptr, 0)); }},
      {"launch/shared", [] { say(launch<Nothing>({1}, 228 << 10, nullptr, 0)); }},
      {"launch/cooperative", [] { say(launch_cooperative<Nothing>({1 << 14}, 0, nullptr, 0)); }},
  };
  const auto at = cases.find(argc > 1 ? argv[1] : "");
  if (at == cases.end()) {
    for (const auto& row : cases) puts(row.first.c_str());
    return 2;
  }
  for (int i = 2; i + 1 < argc; i += 2) {
    if (!host::read_schedule(argv[i], host::options()) || !host::read_copies(argv[i + 1], host::options())) return 2;
    at->second();
    puts(found.c_str());
  }
  return 0;
}
