// Rows sorted by expert, each times the matrix of its expert, and the gradient of those matrices.
#pragma once

#include "backward.h"

// Mirrored by calls.py.
struct Grouped {
    int64_t rows, experts, in, out, threads;
    const int64_t* counts;      // [experts], how many of the rows each expert has
    const void *weight, *bias;  // bias [experts, out]
    int64_t weight_expert, weight_out, weight_in;  // strides of weight [experts, out, in]
    const float* x;             // [rows, in]
    float* y;                   // [rows, out]: the product, or for the gradient what it changes by
    void* d_weight;             // [experts, out, in], or [experts, in, out] if the weight's columns are contiguous
};

template <class W>
int grouped_product(const Grouped& g) {
    Routing routing(g.counts, g.experts);
    auto tasks = routing.tasks(TASK_TOKENS);
#pragma omp parallel for num_threads(g.threads) if (g.threads > 1) schedule(dynamic, 1)
    for (size_t i = 0; i < tasks.size(); i++) {
        const Task& task = tasks[i];
        Matrix<W> m{(const W*)g.weight + task.expert * g.weight_expert, g.out, g.in, g.weight_out, g.weight_in};
        const W* bias = g.bias ? (const W*)g.bias + task.expert * g.out : nullptr;
        Panels panels(task.count);
        int64_t n = panels.tokens(), stored = padded_rows(g.out);
        own_scratch.reserve(Scratch::padded(n * g.in) + Scratch::padded(n * stored));
        float *x = own_scratch.take(n * g.in), *y = own_scratch.take(n * stored);
        gather(panels, sorted_rows(task, g.x, g.in), g.in, g.in, x);
        multiply(m, bias, panels, x, y);
        scatter(panels, sorted_rows(task, g.y, g.out), y, stored, g.out);
    }
    return 0;
}

template <class W>
int grouped_gradient(const Grouped& g) {
    Routing routing(g.counts, g.experts);
    Task all{0, 0, g.rows};
    auto y = sorted_rows(all, (const float*)g.y, g.out), x = sorted_rows(all, g.x, g.in);
    bool turned = g.weight_in != 1;
    auto &left = turned ? x : y, &right = turned ? y : x;
    int64_t rows = turned ? g.in : g.out, columns = turned ? g.out : g.in, blocks = (rows + OUTER_ROWS - 1) / OUTER_ROWS;
    Write how = way_of_writing<W>(routing.active.size(), rows, columns, false);
#pragma omp parallel for num_threads(g.threads) if (g.threads > 1) schedule(dynamic, 1)
    for (size_t i = 0; i < routing.active.size() * blocks; i++)
        weight_task(routing, routing.active[i / blocks], i % blocks, left.data(), rows, right.data(), columns,
                    (W*)g.d_weight, how);
    return 0;
}
