// Matrix products C = A B of operands that lie in cache, and the layouts that they want.
//
// A is read unit by unit, with a stride for rows and one for the summed index; B has rows of units, padded with zeros
// to whole vectors. A tile of C stays in registers over the whole sum, then goes to `done(row, column, vector)`.
#pragma once

#include "numbers.hpp"

#include <algorithm>

template <class S> INLINE VectorOf<S> multiply_add(VectorOf<S> sum, UnitOf<S> a, const UnitOf<S> *b) {
#ifdef __AVX512BF16__
    if constexpr (Kind<S>::PAIR == 2)
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)_mm512_loadu_si512(b));
    else
#endif
        return sum + a * load(b);
}

// `ROW` is the stride between rows of A where the compiler may know it, else 0 and `row_stride` holds.
template <class S, int ROWS, int VECTORS, int ROW, class Done>
INLINE void tile(long units, const UnitOf<S> *a, long row_stride, long step, const UnitOf<S> *b, long ldb, long row,
                 long column, Done &done) {
    if (ROW) row_stride = ROW;
    VectorOf<S> sums[ROWS][VECTORS] = {};
    const UnitOf<S> *starts[(ROWS + 2) / 3]; // each serves three rows, as base, base + stride, base + 2 stride
    for (int i = 0; i < (ROWS + 2) / 3; i++) starts[i] = a + 3 * i * row_stride;
    for (long k = 0; k < units; k++, b += ldb) {
#pragma GCC unroll 32
        for (int m = 0; m < ROWS; m++) {
            const UnitOf<S> value = starts[m / 3][m % 3 * row_stride];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[m][v] = multiply_add<S>(sums[m][v], value, b + v * WIDTH<S>);
        }
#pragma GCC unroll 32
        for (int i = 0; i < (ROWS + 2) / 3; i++) starts[i] += step;
    }
#pragma GCC unroll 32
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) done(row + m, column + v * WIDTH<S>, sums[m][v]);
}

template <class S, int VECTORS, int ROW, class Done>
void panel(long rows, long units, const UnitOf<S> *a, long row_stride, long step, const UnitOf<S> *b, long ldb,
           long column, Done &done) {
    constexpr int ROWS = VECTORS == 1 ? ACCUMULATORS / 2 : ACCUMULATORS / VECTORS;
    long row = 0;
    const auto at = [&] { return a + row * row_stride; };
    for (; row + ROWS <= rows; row += ROWS)
        tile<S, ROWS, VECTORS, ROW>(units, at(), row_stride, step, b, ldb, row, column, done);
    for (; row + 4 <= rows; row += 4) tile<S, 4, VECTORS, ROW>(units, at(), row_stride, step, b, ldb, row, column, done);
    for (; row < rows; row++) tile<S, 1, VECTORS, ROW>(units, at(), row_stride, step, b, ldb, row, column, done);
}

template <class S, int ROW, class Done>
INLINE void gemm_strided(long rows, long columns, long units, const UnitOf<S> *a, long row_stride, long step,
                         const UnitOf<S> *b, long ldb, Done done) {
    const long vectors = (columns + WIDTH<S> - 1) / WIDTH<S>;
    long v = 0;
    if (vectors % 2) {
        const long first = vectors == 1 ? 1 : 3;
        if (first == 1)
            panel<S, 1, ROW>(rows, units, a, row_stride, step, b, ldb, 0, done);
        else
            panel<S, 3, ROW>(rows, units, a, row_stride, step, b, ldb, 0, done);
        v = first;
    }
    for (; v < vectors; v += 2)
        panel<S, 2, ROW>(rows, units, a, row_stride, step, b + v * WIDTH<S>, ldb, v * WIDTH<S>, done);
}

// A of rows of numbers `lda` apart, summed along the row.
template <class S, class Done>
INLINE void gemm(long rows, long columns, long summed, const S *a, long lda, const UnitOf<S> *b, long ldb, Done done) {
    constexpr int P = Kind<S>::PAIR;
    const auto *units = reinterpret_cast<const UnitOf<S> *>(a);
    gemm_strided<S, 0>(rows, columns, (summed + P - 1) / P, units, lda / P, 1, b, ldb, done);
}

// A transposed: `a` has one row of units per summed unit, `lda` apart, as `interleave` makes them.
template <class S, class Done>
INLINE void gemm_transposed(long rows, long columns, long units, const UnitOf<S> *a, long lda, const UnitOf<S> *b,
                            long ldb, Done done) {
    gemm_strided<S, 1>(rows, columns, units, a, 1, lda, b, ldb, done);
}

// What may be done with a tile: put it, stored or as a sum, or add it.
template <class S> INLINE auto put(S *c, long ldc) {
    return [=](long row, long column, auto value) { store(c + row * ldc + column, value); };
}
template <class A> INLINE auto add(A *c, long ldc) {
    return [=](long row, long column, auto value) {
        A *to = c + row * ldc + column;
        store(to, load(to) + value);
    };
}
// As add, where C's rows are not padded.
template <class A> INLINE auto add_exactly(A *c, long ldc, long columns) {
    return [=](long row, long column, auto value) {
        A *to = c + row * ldc + column;
        const long count = columns - column;
        if (count >= Vector<A>::WIDTH) return store(to, load(to) + value);
        for (long i = 0; i < count; i++) to[i] += value[i];
    };
}

// Rows of numbers as rows of units that pair a row with the next; where units are single numbers, the rows themselves.
template <class S> const UnitOf<S> *interleave(const S *from, long rows, long columns, long ld, UnitOf<S> *to) {
    if constexpr (Kind<S>::PAIR == 1) return from;
    else {
        for (long row = 0; row < rows; row += 2) {
            const S *one = from + row * ld, *two = row + 1 < rows ? one + ld : nullptr;
            for (long column = 0; column < columns; column += WIDTH<S>) {
                Words low = __builtin_convertvector(*reinterpret_cast<const LooseHalves *>(one + column), Words);
                Words high{};
                if (two) high = __builtin_convertvector(*reinterpret_cast<const LooseHalves *>(two + column), Words);
                *reinterpret_cast<LooseWords *>(to + row / 2 * ld + column) = low | high << 16;
            }
        }
        return to;
    }
}

// (rows, columns) with `ld` numbers a row, into one row of units per column unit: units of `rows` numbers, `ldt` apart.
template <class S> void transpose(const S *from, long rows, long columns, long ld, UnitOf<S> *to, long ldt) {
    constexpr int P = Kind<S>::PAIR, BLOCK = 16;
    const auto *units = reinterpret_cast<const UnitOf<S> *>(from);
    const long wide = (columns + P - 1) / P;
    for (long first = 0; first < rows; first += BLOCK)
        for (long unit = 0; unit < wide; unit++)
            for (long row = first; row < std::min(first + BLOCK, rows); row++)
                to[unit * ldt + row] = units[row * (ld / P) + unit];
}

// Weights W (rows, columns) for X W^T (sum over columns) and for dY W (sum over rows), each column scaled.
template <class S> INLINE UnitOf<S> unit_of(SumOf<S> low, SumOf<S> high) {
    if constexpr (Kind<S>::PAIR == 1) return low;
    else {
        const auto half = [](float value) -> uint32_t {
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0; // not a number stays none
            return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        };
        return half(low) | half(high) << 16;
    }
}
template <class S>
void pack_forward(const SumOf<S> *w, long rows, long columns, const SumOf<S> *scale, UnitOf<S> *to, long ld) {
    constexpr int P = Kind<S>::PAIR;
    for (long column = 0; column < columns; column += P) {
        const bool both = P == 2 && column + 1 < columns;
        const SumOf<S> one = scale[column], two = both ? scale[column + 1] : 0;
        for (long row = 0; row < rows; row++) {
            const SumOf<S> *from = w + row * columns + column;
            to[column / P * ld + row] = unit_of<S>(from[0] * one, both ? from[1] * two : 0);
        }
    }
}
template <class S>
void pack_backward(const SumOf<S> *w, long rows, long columns, const SumOf<S> *scale, UnitOf<S> *to, long ld) {
    constexpr int P = Kind<S>::PAIR;
    for (long row = 0; row < rows; row += P) {
        const SumOf<S> *one = w + row * columns, *two = one + columns;
        if (P == 2 && row + 1 < rows)
            for (long k = 0; k < columns; k++) to[row / P * ld + k] = unit_of<S>(one[k] * scale[k], two[k] * scale[k]);
        else
            for (long k = 0; k < columns; k++) to[row / P * ld + k] = unit_of<S>(one[k] * scale[k], 0);
    }
}
