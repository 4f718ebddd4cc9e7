// The layer forward as PyTorch's operator `moeba::experts` (declared in operators.py): Python code grows cold while
// weights stream through the caches, and costs more between two layers than a small layer itself.
//
// Only PyTorch's stable C++ interface is used (2.10 or later). Where it cannot be compiled, Python makes the same call.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "layer.h"

namespace moeba_operator {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Contiguous and of `dtype`: the tensor itself where it is so already.
static Tensor plain(const Tensor& tensor, ScalarType dtype) {
    Tensor typed = tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
    return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

static Tensor experts(Tensor hidden, Tensor index, Tensor weights, Tensor inner, Tensor down,
                      std::optional<Tensor> inner_bias, std::optional<Tensor> down_bias, int64_t gate_kind, bool gated,
                      bool interleaved, double alpha, double limit, bool transposed) {
    Tensor x = plain(hidden, ScalarType::Float), scales = plain(weights, ScalarType::Float);
    Tensor chosen = plain(index, ScalarType::Long), out = torch::stable::empty_like(x);
    ScalarType dtype = inner.scalar_type();
    if (inner_bias) inner_bias = plain(*inner_bias, dtype);
    if (down_bias) down_bias = plain(*down_bias, dtype);
    int out_dim = transposed ? 2 : 1, in_dim = transposed ? 1 : 2;
    Problem p{};
    p.tokens = chosen.size(0), p.top_k = chosen.size(1), p.experts = inner.size(0);
    p.hidden = x.size(1), p.width = down.size(in_dim);
    p.gate_kind = gate_kind, p.gated = gated, p.interleaved = interleaved, p.alpha = alpha, p.limit = limit;
    p.threads = torch::stable::get_num_threads();
    p.inner = inner.data_ptr(), p.down = down.data_ptr();
    p.inner_bias = inner_bias ? inner_bias->data_ptr() : nullptr;
    p.down_bias = down_bias ? down_bias->data_ptr() : nullptr;
    p.inner_expert = inner.stride(0), p.inner_out = inner.stride(out_dim), p.inner_in = inner.stride(in_dim);
    p.down_expert = down.stride(0), p.down_out = down.stride(out_dim), p.down_in = down.stride(in_dim);
    p.x = (const float*)x.data_ptr(), p.index = (const int64_t*)chosen.data_ptr();
    p.weights = (const float*)scales.data_ptr(), p.out = (float*)out.data_ptr();
    int failed = dtype == ScalarType::Float ? forward<float>(p) : forward<BFloat16>(p);
    STD_TORCH_CHECK(!failed, "top_k_index holds a negative expert index");
    return hidden.scalar_type() == ScalarType::Float ? out : torch::stable::to(out, hidden.scalar_type());
}

}  // namespace moeba_operator

// Once a process: the registration is never taken back.
extern "C" void moeba_register_operator() {
    static torch::stable::detail::StableLibrary library(torch::stable::detail::StableLibrary::Kind::IMPL, "moeba", "CPU",
                                                        __FILE__, __LINE__);
    library.impl("experts", TORCH_BOX(&moeba_operator::experts));
}
