// Numbers as they are stored and as they are computed with, vectors of them, and the functions that the step needs.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

#ifdef __AVX512F__
constexpr int VECTOR_BYTES = 64, ACCUMULATORS = 24;
#else
constexpr int VECTOR_BYTES = 32, ACCUMULATORS = 12;
#endif

struct Bf16 {
    uint16_t bits;
};

// Stored numbers S: what sums are taken in (Sum), and the unit of a matrix product (Unit): a single number, or, where
// the processor multiplies pairs of neighbours, a pair of them.
template <class S> struct Kind {
    using Sum = S;
    using Unit = S;
    static constexpr int PAIR = 1;
};
template <> struct Kind<Bf16> {
    using Sum = float;
    using Unit = uint32_t;
    static constexpr int PAIR = 2;
};

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t LooseWords __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));

template <class A> struct Vector {
    static constexpr int WIDTH = VECTOR_BYTES / sizeof(A);
    typedef A V __attribute__((vector_size(VECTOR_BYTES)));
    typedef A Loose __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(A)), may_alias));
};
template <class S> using SumOf = typename Kind<S>::Sum;
template <class S> using UnitOf = typename Kind<S>::Unit;
template <class S> using VectorOf = typename Vector<SumOf<S>>::V;
template <class S> constexpr int WIDTH = Vector<SumOf<S>>::WIDTH;

INLINE Floats load(const float *from) { return *reinterpret_cast<const Vector<float>::Loose *>(from); }
INLINE Doubles load(const double *from) { return *reinterpret_cast<const Vector<double>::Loose *>(from); }
INLINE void store(float *to, Floats value) { *reinterpret_cast<Vector<float>::Loose *>(to) = value; }
INLINE void store(double *to, Doubles value) { *reinterpret_cast<Vector<double>::Loose *>(to) = value; }
template <class A> INLINE typename Vector<A>::V spread(A value) { return value - typename Vector<A>::V{}; }

#ifdef __AVX512BF16__
INLINE Floats load(const Bf16 *from) {
    Words wide = __builtin_convertvector(*reinterpret_cast<const LooseHalves *>(from), Words) << 16;
    return (Floats)wide;
}
INLINE void store(Bf16 *to, Floats value) {
    *reinterpret_cast<LooseHalves *>(to) = (Halves)_mm512_cvtneps_pbh((__m512)value);
}
#endif

// The first `count` numbers of a vector.
template <class S> INLINE void store_part(S *to, VectorOf<S> value, long count) {
    if (count >= WIDTH<S>) return store(to, value);
    S whole[WIDTH<S>];
    store(whole, value);
    std::memcpy(to, whole, count * sizeof(S));
}

template <class V> INLINE auto sum(V value) {
    auto total = value[0];
    for (unsigned i = 1; i < sizeof(V) / sizeof(total); i++) total += value[i];
    return total;
}
template <class V> INLINE auto largest(V value) {
    auto most = value[0];
    for (unsigned i = 1; i < sizeof(V) / sizeof(most); i++) most = value[i] > most ? value[i] : most;
    return most;
}
template <class V> INLINE V max_of(V a, V b) { return a > b ? a : b; }

// Neighbours change places.
INLINE Floats swap_pairs(Floats x) {
    Ints order;
    for (int i = 0; i < Vector<float>::WIDTH; i++) order[i] = i ^ 1;
    return __builtin_shuffle(x, order);
}
INLINE Doubles swap_pairs(Doubles x) {
    for (int i = 0; i < Vector<double>::WIDTH; i += 2) {
        double first = x[i];
        x[i] = x[i + 1], x[i + 1] = first;
    }
    return x;
}

// exp for arguments up to about 80, to 2 units in the last place; below -87 the smallest normal number, near enough 0.
INLINE Floats exp_of(Floats x) {
    x = max_of(x, spread(-87.0f));
    const Floats shifted = x * 1.44269504f + 12582912.0f; // 1.5 2^23: the integer nearest x / ln 2 in the low bits
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f; // Cody and Waite's two parts of ln 2
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;           // Cephes' expf
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (Floats)((Ints)p + ((Ints)shifted << 23));
}
INLINE Doubles exp_of(Doubles x) {
    for (int i = 0; i < Vector<double>::WIDTH; i++) x[i] = std::exp(x[i]);
    return x;
}

// The standard normal distribution function, given x and exp(-x^2 / 2): Abramowitz and Stegun 7.1.26, to 1e-7.
INLINE Floats normal_cdf(Floats x, Floats bell) {
    const Floats z = (x < 0.0f ? -x : x) * 0.70710678f;
    const Floats t = 1.0f / (1.0f + 0.3275911f * z);
    Floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = (p * t + 0.254829592f) * t;
    const Floats tail = 0.5f * p * bell;
    return x < 0.0f ? tail : 1.0f - tail;
}
INLINE Doubles normal_cdf(Doubles x, Doubles) {
    for (int i = 0; i < Vector<double>::WIDTH; i++) x[i] = 0.5 * std::erfc(-x[i] * 0.70710678118654752440);
    return x;
}
