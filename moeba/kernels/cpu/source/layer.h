// One call: what Python hands over, and what the kernels make of it.
#pragma once

#include <cstdint>

#include "gates.h"
#include "products.h"

// Mirrored by calls.py. Weights are described by the strides of [experts, out, in]; null pointers mean absent.
struct Problem {
    int64_t tokens, top_k, experts, hidden, width;
    int64_t gate_kind, gated, interleaved, threads;
    double alpha, limit;
    const void *inner, *down, *inner_bias, *down_bias;
    int64_t inner_expert, inner_out, inner_in, down_expert, down_out, down_in;
    const float* x;         // [tokens, hidden]
    const int64_t* index;   // [tokens, top_k]; an index of `experts` or more lives on another device
    const float* weights;   // [tokens, top_k]
    float* out;             // [tokens, hidden]
    void* saved;            // [tokens * top_k, inner rows] before the gate, sorted by expert, in the weights' dtype
    const float* d_out;     // [tokens, hidden]
    float* d_x;             // [tokens, hidden]
    float* d_weights;       // [tokens, top_k]
    void *d_inner, *d_down, *d_inner_bias, *d_down_bias;  // rows of experts without tokens are not touched
    int64_t add_inner, add_down;                          // add to what stands there
};

template <class W>
struct Layer {
    const Problem& p;
    int64_t rows;  // of the inner product: gate and up, or up alone
    Gate gate;
    GateNumbers numbers;

    explicit Layer(const Problem& problem)
        : p(problem),
          rows(problem.gated ? 2 * problem.width : problem.width),
          gate(gate_of(problem.gate_kind, problem.gated)),
          numbers{(float)problem.alpha, (float)problem.limit} {}

    Matrix<W> inner(int64_t e) const {
        return {(const W*)p.inner + e * p.inner_expert, rows, p.hidden, p.inner_out, p.inner_in};
    }
    Matrix<W> down(int64_t e) const {
        return {(const W*)p.down + e * p.down_expert, p.hidden, p.width, p.down_out, p.down_in};
    }
    const W* inner_bias(int64_t e) const { return p.inner_bias ? (const W*)p.inner_bias + e * rows : nullptr; }
    const W* down_bias(int64_t e) const { return p.down_bias ? (const W*)p.down_bias + e * p.hidden : nullptr; }
    // Where gate and up of output row i stand among the inner rows.
    int64_t gate_row(int64_t i) const { return p.gated && p.interleaved ? 2 * i : i; }
    int64_t up_row(int64_t i) const { return !p.gated ? i : p.interleaved ? 2 * i + 1 : p.width + i; }
};

// out[token] = sum over its choices, in their order, of scale * rows[selection]
void add_up(const Problem& p, const float* rows, const float* scales, float* out) {
    constexpr int64_t COLUMNS = 256;
    int64_t blocks = (p.hidden + COLUMNS - 1) / COLUMNS;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.tokens * blocks; i++) {
        int64_t t = i / blocks, first = i % blocks * COLUMNS, last = std::min(p.hidden, first + COLUMNS);
        float* to = out + t * p.hidden;
        memset(to + first, 0, (last - first) * 4);
        for (int64_t s = t * p.top_k; s < (t + 1) * p.top_k; s++) {
            if (p.index[s] >= p.experts) continue;
            const float* from = rows + s * p.hidden;
            float scale = scales ? scales[s] : 1.0f;
            for (int64_t c = first; c < last; c++) to[c] += scale * from[c];
        }
    }
}
