// Vectors of floats as wide as the machine has them, written with the compiler's own vector types: one text for
// AVX-512, AVX2, NEON and anything else.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int TILE_ROWS = 8;  // a tile keeps TILE_ROWS x TILE_VECTORS sums in registers
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int TILE_ROWS = 4;
#else
constexpr int LANES = 4;
constexpr int TILE_ROWS = 4;
#endif
constexpr int TILE_VECTORS = 3;

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

struct BFloat16 {
    uint16_t bits;
};

static inline Vector broadcast(float value) { return value - Vector{}; }

static inline Vector load(const float* from) {
    Vector vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

static inline Vector load(const BFloat16* from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return (Vector)(__builtin_convertvector(halves, Words) << 16);
}

static inline void store(float* to, Vector vector) { memcpy(to, &vector, sizeof vector); }

// Rounds to the nearest, ties to even; a NaN stays one.
static inline void store(BFloat16* to, Vector vector) {
    Words words = (Words)vector;
    Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
    Words quiet = (words >> 16) | 0x40;
    Words is_nan = (Words)(vector != vector);
    Halves halves = __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), Halves);
    memcpy(to, &halves, sizeof halves);
}

// Stores that do not first read into the cache what they overwrite; `to` is aligned to the bytes that are stored.
static inline void store_past_cache(float* to, Vector vector) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, (__m512)vector);
#elif defined(__AVX__)
    _mm256_stream_ps(to, (__m256)vector);
#else
    store(to, vector);
#endif
}

static inline void store_past_cache(BFloat16* to, Vector vector) {
    BFloat16 rounded[LANES];
    store(rounded, vector);
#if defined(__AVX512F__)
    __m256i bits;
    memcpy(&bits, rounded, sizeof bits);
    _mm256_stream_si256((__m256i*)to, bits);
#elif defined(__AVX__)
    __m128i bits;
    memcpy(&bits, rounded, sizeof bits);
    _mm_stream_si128((__m128i*)to, bits);
#else
    memcpy(to, rounded, sizeof rounded);
#endif
}

// Makes stores past the cache visible to other threads before the next barrier.
static inline void finish_stores() {
#if defined(__AVX__)
    _mm_sfence();
#endif
}

static inline float widen(float value) { return value; }
static inline float widen(BFloat16 value) {
    uint32_t word = (uint32_t)value.bits << 16;
    float wide;
    memcpy(&wide, &word, 4);
    return wide;
}

static inline void narrow(float* to, float value) { *to = value; }
static inline void narrow(BFloat16* to, float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    to->bits = value != value ? (word >> 16) | 0x40 : (word + 0x7fff + ((word >> 16) & 1)) >> 16;
}

// Lanes of two vectors, lane i from place `from(i)` of the 2 * LANES that they have.
template <class From, int... Lane>
static inline Vector shuffle_lanes(Vector a, Vector b, From, std::integer_sequence<int, Lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, From::at(Lane)...);
#else
    return __builtin_shuffle(a, b, Integers{From::at(Lane)...});
#endif
}
template <class From>
static inline Vector shuffle(Vector a, Vector b) {
    return shuffle_lanes(a, b, From{}, std::make_integer_sequence<int, LANES>{});
}

// Of each pair of runs of FOLD lanes, the first (or second) run of `a` and then of `b`.
template <int FOLD, bool SECOND>
struct Runs {
    static constexpr int at(int lane) {
        int within = lane % (2 * FOLD);
        return lane - within + (within < FOLD ? within : LANES + within - FOLD) + (SECOND ? FOLD : 0);
    }
};

// The sum of each of LANES vectors, in the lane of its number: pairs of vectors are folded into one, log2(LANES) times.
template <int FOLD = 1>
static inline Vector sums_of(Vector (&vectors)[LANES]) {
    if constexpr (FOLD == LANES) {
        return vectors[0];
    } else {
        for (int i = 0; i < LANES / (2 * FOLD); i++)
            vectors[i] = shuffle<Runs<FOLD, false>>(vectors[2 * i], vectors[2 * i + 1]) +
                         shuffle<Runs<FOLD, true>>(vectors[2 * i], vectors[2 * i + 1]);
        return sums_of<2 * FOLD>(vectors);
    }
}

static inline Vector pick(Integers condition, Vector yes, Vector no) {
    return (Vector)(((Integers)yes & condition) | ((Integers)no & ~condition));
}
static inline Vector least(Vector a, Vector b) { return pick(b < a, b, a); }  // a NaN in `a` stays
static inline Vector greatest(Vector a, Vector b) { return pick(b > a, b, a); }

// exp to about one unit in the last place: 2^n times a polynomial on [-ln2/2, ln2/2] (coefficients of Cephes).
static inline Vector exponential(Vector x) {
    x = greatest(least(x, broadcast(88.3762626f)), broadcast(-87.3365447f));
    const float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    Vector shifted = x * 1.44269504f + round_to_integer;
    Vector n = shifted - round_to_integer;
    Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    Integers power = (Integers)shifted - (Integers)broadcast(round_to_integer);
    return (Vector)((Integers)p + (power << 23));
}

static inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }

// The error function as a quotient of polynomials on [-4, 4] (the form that Eigen uses for floats).
static inline Vector error_function(Vector x) {
    x = greatest(least(x, broadcast(4.0f)), broadcast(-4.0f));
    Vector s = x * x;
    Vector a = -2.72614225801306e-10f * s + 2.77068142495902e-08f;
    a = a * s - 2.10102402082508e-06f;
    a = a * s - 5.69250639462346e-05f;
    a = a * s - 7.34990630326855e-04f;
    a = a * s - 2.95459980854025e-03f;
    a = a * s - 1.60960333262415e-02f;
    Vector b = -1.45660718464996e-05f * s - 2.13374055278905e-04f;
    b = b * s - 1.68282697438203e-03f;
    b = b * s - 7.37332916720468e-03f;
    b = b * s - 1.42647390514189e-02f;
    return x * a / b;
}

// Lanes of `a` and `b` in turn, from their first (or second) half.
template <bool SECOND>
struct InTurn {
    static constexpr int at(int lane) { return (SECOND ? LANES / 2 : 0) + lane / 2 + lane % 2 * LANES; }
};

// A square of LANES rows in registers, turned over its diagonal: log2(LANES) perfect shuffles.
static inline void transpose(Vector (&rows)[LANES]) {
    for (int stage = 1; stage < LANES; stage *= 2) {
        Vector shuffled[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            shuffled[2 * i] = shuffle<InTurn<false>>(rows[i], rows[i + LANES / 2]);
            shuffled[2 * i + 1] = shuffle<InTurn<true>>(rows[i], rows[i + LANES / 2]);
        }
        for (int i = 0; i < LANES; i++) rows[i] = shuffled[i];
    }
}
