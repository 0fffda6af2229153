// An activation in a tuple that Python hands over (pyflash/ops/<family>/_cpu.py).
#pragma once
#include "../common/activation.h"
#include "reader.h"

// The next three fields. With a `first_row` of -1 there may be none.
inline Activation read_activation(Reader& r, int first_row = 0) {
  Activation activation;
  activation.row = r.member<int32_t>("activation", kActivations, first_row);
  activation.first = r.number("first parameter");
  activation.second = r.number("second parameter");
  return activation;
}
