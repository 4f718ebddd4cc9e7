// A layer of experts, forward and backward, for float32 and bfloat16 weights. Sums are float32 and rounded once, in an
// order that depends on nothing but the routing: results are the same for any number of threads.
//
// Built by build.py with the C++ compiler of the machine; the functions are called through ctypes, the forward of a model
// that does not train also as an operator of PyTorch.

#include "backward.h"
#include "grouped.h"
#if __has_include(<torch/csrc/stable/version.h>)
#include "operator.h"
#endif

extern "C" {
int moeba_forward_float32(const Problem* p) { return forward<float>(*p); }
int moeba_forward_bfloat16(const Problem* p) { return forward<BFloat16>(*p); }
int moeba_backward_float32(const Problem* p) { return backward<float>(*p); }
int moeba_backward_bfloat16(const Problem* p) { return backward<BFloat16>(*p); }
int moeba_grouped_product_float32(const Grouped* g) { return grouped_product<float>(*g); }
int moeba_grouped_product_bfloat16(const Grouped* g) { return grouped_product<BFloat16>(*g); }
int moeba_grouped_gradient_float32(const Grouped* g) { return grouped_gradient<float>(*g); }
int moeba_grouped_gradient_bfloat16(const Grouped* g) { return grouped_gradient<BFloat16>(*g); }
void moeba_release_scratch() { release_scratch(); }
int64_t moeba_size_of_problem() { return sizeof(Problem); }
int64_t moeba_size_of_grouped() { return sizeof(Grouped); }
}
