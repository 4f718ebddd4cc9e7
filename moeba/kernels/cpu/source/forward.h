// The layer forward: by streaming the weights for a few tokens, by panels for many.
#pragma once

#include "layer.h"
#include "routing.h"
#include "scratch.h"
#include "streaming.h"

constexpr int64_t STREAM_TOKENS = 8;  // average tokens an expert up to which reading the weights is all that counts
constexpr int64_t STREAM_ROWS = 128;  // of a task
constexpr int64_t TASK_TOKENS = 3 * PANEL;

// ---- few tokens: stream the weights ----

template <class W>
void stream_inner(const Layer<W>& layer, const Routing& routing, int64_t e, int64_t block, float* act) {
    const Problem& p = layer.p;
    int64_t first = block * STREAM_ROWS, rows = std::min(STREAM_ROWS, p.width - first), count = routing.count(e);
    Task task{e, routing.starts[e], count};
    auto x = row_pointers(routing, task, p.x, p.hidden, p.top_k);
    own_scratch.reserve((4 * count + 1) * STREAM_ROWS);
    float *gates = own_scratch.take(count * STREAM_ROWS), *ups = own_scratch.take(count * STREAM_ROWS);
    float *both = own_scratch.take(2 * count * STREAM_ROWS), *result = own_scratch.take(STREAM_ROWS);
    std::vector<float*> out(count);
    auto product = [&](int64_t row, int64_t many, int64_t stride, float* to) {
        for (int64_t t = 0; t < count; t++) out[t] = to + t * stride;
        stream(layer.inner(e), row, many, count, x.data(), out.data());
        if (const W* bias = layer.inner_bias(e))
            for (int64_t t = 0; t < count; t++)
                for (int64_t r = 0; r < many; r++) out[t][r] += widen(bias[row + r]);
    };
    if (p.gated && p.interleaved) {
        product(2 * first, 2 * rows, 2 * STREAM_ROWS, both);
        for (int64_t i = 0; i < count * STREAM_ROWS; i++) gates[i] = both[2 * i], ups[i] = both[2 * i + 1];
    } else {
        product(first, rows, STREAM_ROWS, gates);
        if (p.gated) product(p.width + first, rows, STREAM_ROWS, ups);
        else ups = gates;
    }
    for (int64_t t = 0; t < count; t++) {
        if (W* saved = p.saved ? (W*)p.saved + (task.first + t) * layer.rows : nullptr)
            for (int64_t r = 0; r < rows; r++) {
                narrow(saved + layer.gate_row(first + r), gates[t * STREAM_ROWS + r]);
                narrow(saved + layer.up_row(first + r), ups[t * STREAM_ROWS + r]);
            }
        layer.gate.forward(gates + t * STREAM_ROWS, ups + t * STREAM_ROWS, result, STREAM_ROWS, layer.numbers);
        memcpy(act + (task.first + t) * p.width + first, result, rows * 4);
    }
}

template <class W>
void stream_down(const Layer<W>& layer, const Routing& routing, int64_t e, int64_t block, float* act, float* answers) {
    const Problem& p = layer.p;
    int64_t first = block * STREAM_ROWS, rows = std::min(STREAM_ROWS, p.hidden - first), count = routing.count(e);
    Task task{e, routing.starts[e], count};
    auto x = sorted_rows(task, (const float*)act, p.width);
    auto out = row_pointers(routing, task, answers + first, p.hidden, 1);
    stream(layer.down(e), first, rows, count, x.data(), out.data());
    if (const W* bias = layer.down_bias(e))
        for (int64_t t = 0; t < count; t++)
            for (int64_t r = 0; r < rows; r++) out[t][r] += widen(bias[first + r]);
}

template <class W>
void forward_few(const Layer<W>& layer, const Routing& routing) {
    const Problem& p = layer.p;
    int64_t active = routing.active.size(), selections = p.tokens * p.top_k;
    size_t act_size = Scratch::padded(routing.size() * p.width);
    shared_scratch.reserve(act_size + Scratch::padded(selections * p.hidden));
    float *act = shared_scratch.take(act_size), *answers = shared_scratch.take(selections * p.hidden);
    int64_t inner_blocks = (p.width + STREAM_ROWS - 1) / STREAM_ROWS;
    int64_t down_blocks = (p.hidden + STREAM_ROWS - 1) / STREAM_ROWS;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < active * inner_blocks; i++)
            stream_inner(layer, routing, routing.active[i / inner_blocks], i % inner_blocks, act);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < active * down_blocks; i++)
            stream_down(layer, routing, routing.active[i / down_blocks], i % down_blocks, act, answers);
        add_up(p, answers, p.weights, p.out);
    }
    shared_scratch.trim();
}

// ---- many tokens: panels ----

// The inner product of one task and its gate; both stay in panels. Inner rows are kept in `saved` if there is one.
template <class W>
void inner_panels(const Layer<W>& layer, const Routing& routing, const Task& task, const Panels& panels, float* x,
                  float* inner) {
    const Problem& p = layer.p;
    gather(panels, row_pointers(routing, task, p.x, p.hidden, p.top_k), p.hidden, p.hidden, x);
    multiply(layer.inner(task.expert), layer.inner_bias(task.expert), panels, x, inner);
}

template <class W, class F>
void each_row_of_gate(const Layer<W>& layer, const Panels& panels, float* inner, const F& visit) {
    int64_t stored = padded_rows(layer.rows);
    for (int i = 0; i < panels.count; i++) {
        int64_t width = panels.width(i);
        float* panel = inner + panels.starts[i] * stored;
        for (int64_t r = 0; r < layer.p.width; r++)
            visit(panel + layer.gate_row(r) * width, panel + layer.up_row(r) * width,
                  panels.starts[i] * layer.p.width + r * width, panels.starts[i], width);
    }
}

template <class W>
void forward_task(const Layer<W>& layer, const Routing& routing, const Task& task, float* answers) {
    const Problem& p = layer.p;
    Panels panels(task.count);
    int64_t n = panels.tokens(), stored = padded_rows(layer.rows), hidden = padded_rows(p.hidden);
    own_scratch.reserve(Scratch::padded(n * hidden) + Scratch::padded(n * stored) + Scratch::padded(n * p.width));
    float *x = own_scratch.take(n * hidden), *inner = own_scratch.take(n * stored), *act = own_scratch.take(n * p.width);
    inner_panels(layer, routing, task, panels, x, inner);
    if (p.saved)
        scatter(panels, sorted_rows(task, (W*)p.saved, layer.rows), inner, stored, layer.rows);
    each_row_of_gate(layer, panels, inner, [&](float* g, float* u, int64_t at, int64_t, int64_t width) {
        layer.gate.forward(g, u, act + at, width, layer.numbers);
    });
    float* y = x;  // the tokens are not needed any more
    multiply(layer.down(task.expert), layer.down_bias(task.expert), panels, act, y);
    scatter(panels, row_pointers(routing, task, answers, p.hidden, 1), y, hidden, p.hidden);
}

template <class W>
void forward_many(const Layer<W>& layer, const Routing& routing) {
    const Problem& p = layer.p;
    auto tasks = routing.tasks(TASK_TOKENS);
    shared_scratch.reserve(p.tokens * p.top_k * p.hidden);
    float* answers = shared_scratch.take(p.tokens * p.top_k * p.hidden);
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < tasks.size(); i++) forward_task(layer, routing, tasks[i], answers);
        add_up(p, answers, p.weights, p.out);
    }
    shared_scratch.trim();
}

template <class W>
int forward(const Problem& p) {
    Routing routing(p.index, p.tokens * p.top_k, p.experts);
    if (!routing.valid) return 1;
    Layer<W> layer(p);
    if (routing.size() <= STREAM_TOKENS * (int64_t)routing.active.size()) forward_few(layer, routing);
    else forward_many(layer, routing);
    return 0;
}
