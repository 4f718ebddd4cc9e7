// The activations between the two products, forward and backward, on rows of floats whose length is a multiple of
// LANES. The kinds are those of gates.py, in its order.
#pragma once

#include "vectors.h"

struct GateNumbers {
    float alpha, limit;
};

// Each activation gives its value and its derivative at g.
struct Silu {
    static void at(Vector g, Vector& value, Vector& slope) {
        Vector s = sigmoid(g);
        value = g * s;
        slope = s * (1.0f + g * (1.0f - s));
    }
};
struct Gelu {
    static void at(Vector g, Vector& value, Vector& slope) {
        Vector below = 0.5f + 0.5f * error_function(g * 0.70710678f);
        value = g * below;
        slope = below + g * 0.39894228f * exponential(-0.5f * g * g);
    }
};
struct GeluTanh {
    static void at(Vector g, Vector& value, Vector& slope) {
        Vector s = sigmoid(1.5957691216f * (g + 0.044715f * g * g * g));  // (1 + tanh(z)) / 2 = sigmoid(2z)
        value = g * s;
        slope = s + g * s * (1.0f - s) * 1.5957691216f * (1.0f + 0.134145f * g * g);
    }
};
struct Relu {
    static void at(Vector g, Vector& value, Vector& slope) {
        value = pick(g <= 0.0f, Vector{}, g);
        slope = pick(g > 0.0f, broadcast(1.0f), Vector{});
    }
};
struct SquaredRelu {
    static void at(Vector g, Vector& value, Vector& slope) {
        Vector positive = pick(g <= 0.0f, Vector{}, g);
        value = positive * positive;
        slope = 2.0f * positive;
    }
};

// How an activation and `up` make the output: value, and how it changes with gate and up.
template <class Activation>
struct Gated {
    static void at(Vector g, Vector u, GateNumbers, Vector& value, Vector& by_gate, Vector& by_up) {
        Vector slope;
        Activation::at(g, by_up, slope);
        value = by_up * u;
        by_gate = slope * u;
    }
};
template <class Activation>
struct Ungated {
    static void at(Vector g, Vector, GateNumbers, Vector& value, Vector& by_gate, Vector& by_up) {
        Activation::at(g, value, by_gate);
        by_up = Vector{};
    }
};
struct Clamped {  // (up + 1) * gate * sigmoid(alpha * gate), cut at the limit
    static void at(Vector g, Vector u, GateNumbers n, Vector& value, Vector& by_gate, Vector& by_up) {
        Vector limit = broadcast(n.limit);
        Vector gate = least(g, limit), up = greatest(least(u, limit), -limit);
        Vector s = sigmoid(n.alpha * gate);
        Vector glu = gate * s;
        value = (up + 1.0f) * glu;
        by_gate = pick(g <= limit, (up + 1.0f) * (s + n.alpha * glu * (1.0f - s)), Vector{});
        by_up = pick((u <= limit) & (u >= -limit), glu, Vector{});
    }
};
struct LimitedSilu {  // silu(gate) * up, cut at the limit
    static void at(Vector g, Vector u, GateNumbers n, Vector& value, Vector& by_gate, Vector& by_up) {
        Vector limit = broadcast(n.limit);
        Vector gate = least(g, limit), up = greatest(least(u, limit), -limit), slope, act;
        Silu::at(gate, act, slope);
        value = act * up;
        by_gate = pick(g <= limit, slope * up, Vector{});
        by_up = pick((u <= limit) & (u >= -limit), act, Vector{});
    }
};

struct Gate {
    // act = gate(g, u)
    void (*forward)(const float* g, const float* u, float* act, int64_t n, GateNumbers numbers);
    // From d = d loss / d act before the routing weight w: dot += d * act; act *= w; g and u become w * d loss / d (g, u).
    void (*backward)(float* g, float* u, const float* d, const float* w, float* act, float* dot, int64_t n,
                     GateNumbers numbers);
};

template <class Kind>
static void gate_forward(const float* g, const float* u, float* act, int64_t n, GateNumbers numbers) {
    for (int64_t i = 0; i < n; i += LANES) {
        Vector value, by_gate, by_up;
        Kind::at(load(g + i), load(u + i), numbers, value, by_gate, by_up);
        store(act + i, value);
    }
}

template <class Kind>
static void gate_backward(float* g, float* u, const float* d, const float* w, float* act, float* dot, int64_t n,
                          GateNumbers numbers) {
    for (int64_t i = 0; i < n; i += LANES) {
        Vector value, by_gate, by_up, change = load(d + i), weight = load(w + i);
        Kind::at(load(g + i), load(u + i), numbers, value, by_gate, by_up);
        store(dot + i, load(dot + i) + change * value);
        store(act + i, value * weight);
        change *= weight;
        if (u != g) store(u + i, change * by_up);
        store(g + i, change * by_gate);
    }
}

template <class Kind>
static Gate make_gate() {
    return {gate_forward<Kind>, gate_backward<Kind>};
}

static Gate gate_of(int kind, bool gated) {
    switch (kind) {
        case 0: return gated ? make_gate<Gated<Silu>>() : make_gate<Ungated<Silu>>();
        case 1: return gated ? make_gate<Gated<Gelu>>() : make_gate<Ungated<Gelu>>();
        case 2: return gated ? make_gate<Gated<GeluTanh>>() : make_gate<Ungated<GeluTanh>>();
        case 3: return gated ? make_gate<Gated<Relu>>() : make_gate<Ungated<Relu>>();
        case 4: return gated ? make_gate<Gated<SquaredRelu>>() : make_gate<Ungated<SquaredRelu>>();
        case 5: return make_gate<Clamped>();
        default: return make_gate<LimitedSilu>();
    }
}
