// Matrix products and sums, each done by a team of threads together.
#include <algorithm>
#include <type_traits>
#ifdef _OPENMP
#include <omp.h>
#endif

struct Range { int64_t begin, end; };

// The threads of a step. OpenMP may grant fewer than asked for, so every share follows from the true number.
struct Team {
  int64_t rank, size;

  void wait() const {
    if (size > 1) {
#pragma omp barrier
    }
  }

  // This thread's part of `count` items of `width` elements: multiples of 16 elements. Little work is the
  // first thread's alone.
  Range share(int64_t count, int64_t width = 1) const {
    if (count * width < 4096) return rank == 0 ? Range{0, count} : Range{0, 0};
    const int64_t grain = width < 16 ? 16 : 1, grains = (count + grain - 1) / grain;
    return {std::min(count, grains * rank / size * grain), std::min(count, grains * (rank + 1) / size * grain)};
  }
};

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, WIDEST = 4;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, WIDEST = 2;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, WIDEST = 4;
#else
constexpr int VECTOR_BYTES = 16, WIDEST = 2;
#endif
constexpr int LANES = VECTOR_BYTES / sizeof(T);
typedef T Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));

// A panel whose rows lie over more bytes than this is packed, because the processor finds the pages of fewer at once.
constexpr int64_t MANY_PAGES = 1 << 17;

// Rows of a register tile by its width in vectors: with 32 registers, and with 16.
constexpr int rows_of_tile(int vectors) {
  return WIDEST == 4 ? (vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 14) : (vectors == 2 ? 6 : 8);
}

// A tile of left @ right + bias, in registers. The left is read one element at a time, so that a transpose
// costs nothing; the right holds whole vectors, zeros beyond `width`, of which only the last is not whole.
template <int ROWS, int VECTORS>
inline void tile(int64_t depth, const T* left, int64_t left_row, int64_t left_column, const T* right,
                 int64_t right_row, const T* bias, T* out, int64_t out_row, int64_t width) {
  Vector sums[ROWS][VECTORS];  // in registers only if every loop over it is unrolled
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) sums[i][j] = *(const Vector*)(bias + j * LANES);
  for (int64_t k = 0; k < depth; ++k) {
    Vector row[VECTORS];
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; ++j) row[j] = *(const Vector*)(right + k * right_row + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const T factor = left[i * left_row + k * left_column];
#pragma GCC unroll 16
      for (int j = 0; j < VECTORS; ++j) sums[i][j] += factor * row[j];
    }
  }
  constexpr int WHOLE = VECTORS - 1;
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    T* target = out + i * out_row;
#pragma GCC unroll 4
    for (int j = 0; j < WHOLE; ++j) *(Vector*)(target + j * LANES) = sums[i][j];
    const Vector last = sums[i][WHOLE];
    if (width == VECTORS * LANES) *(Vector*)(target + WHOLE * LANES) = last;
    else std::memcpy(target + WHOLE * LANES, &last, (width - WHOLE * LANES) * sizeof(T));
  }
}

template <int VECTORS>
void panel(Range rows, int64_t depth, const T* left, int64_t left_row, int64_t left_column, const T* right,
           int64_t right_row, const T* bias, T* out, int64_t out_row, int64_t width) {
  constexpr int MOST = rows_of_tile(VECTORS);
  int64_t i = rows.begin;
  const auto take = [&](auto tile_of_rows, int64_t count) {
    for (; i + count <= rows.end; i += count)
      tile_of_rows(depth, left + i * left_row, left_row, left_column, right, right_row, bias, out + i * out_row,
                   out_row, width);
  };
  take(tile<MOST, VECTORS>, MOST);
  take(tile<4, VECTORS>, 4);
  take(tile<2, VECTORS>, 2);
  take(tile<1, VECTORS>, 1);
}

#if defined(__GNUC__) && !defined(__clang__)
// Which of the lanes of two rows `transpose` takes, by bit: a table, since gcc builds such vectors anew at every use.
struct Exchange {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
  alignas(VECTOR_BYTES) Index low[LANES][LANES] = {}, high[LANES][LANES] = {};

  constexpr Exchange() {
    for (int bit = 1; bit < LANES; bit *= 2)
      for (int lane = 0; lane < LANES; ++lane) {
        low[bit][lane] = lane & bit ? lane - bit + LANES : lane;
        high[bit][lane] = lane & bit ? lane + LANES : lane + bit;
      }
  }
};
constexpr Exchange EXCHANGE;
#endif

// LANES rows of LANES elements each become columns: for one bit of the indices after the other, the two blocks
// that differ in it change places.
inline void transpose(Vector* rows) {
#if defined(__GNUC__) && !defined(__clang__)
  typedef Exchange::Index Indices __attribute__((vector_size(VECTOR_BYTES), may_alias));
#pragma GCC unroll 8
  for (int bit = 1; bit < LANES; bit *= 2) {
    const Indices low = *(const Indices*)EXCHANGE.low[bit], high = *(const Indices*)EXCHANGE.high[bit];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
      if (!(i & bit)) {
        const Vector a = rows[i], b = rows[i + bit];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + bit] = __builtin_shuffle(a, b, high);
      }
  }
#else
  for (int i = 0; i < LANES; ++i)
    for (int j = 0; j < i; ++j) {
      const T element = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = element;
    }
#endif
}

// Columns `j` to `j + width` of the right, as whole vectors one row after the other.
inline void pack(int64_t depth, const T* right, int64_t row, int64_t column, int64_t width, int64_t padded, T* packed) {
  if (width < padded) std::memset(packed, 0, depth * padded * sizeof(T));
  if (column == 1) {
    for (int64_t k = 0; k < depth; ++k) {
      const T* source = right + k * row;
      T* target = packed + k * padded;
      int64_t c = 0;
      for (; c + LANES <= width; c += LANES) *(Vector*)(target + c) = *(const Vector*)(source + c);
      for (; c < width; ++c) target[c] = source[c];
    }
    return;
  }
  const int64_t whole_depth = row == 1 ? depth / LANES * LANES : 0, whole_width = width / LANES * LANES;
  for (int64_t k = 0; k < whole_depth; k += LANES)
    for (int64_t c = 0; c < whole_width; c += LANES) {
      alignas(VECTOR_BYTES) Vector tile[LANES];
      for (int i = 0; i < LANES; ++i) tile[i] = *(const Vector*)(right + k + (c + i) * column);
      transpose(tile);
      for (int i = 0; i < LANES; ++i) *(Vector*)(packed + (k + i) * padded + c) = tile[i];
    }
  for (int64_t c = 0; c < width; ++c)
    for (int64_t k = c < whole_width ? whole_depth : 0; k < depth; ++k)
      packed[k * padded + c] = right[k * row + c * column];
}

inline void block(Range rows, Range columns, T* packing, int64_t width, int64_t depth, const T* left, int64_t left_row,
                  int64_t left_column, const T* right, int64_t right_row, int64_t right_column, const T* bias, T* out) {
  for (int64_t j = columns.begin; j < columns.end; j += WIDEST * LANES) {
    const int64_t here = std::min<int64_t>(columns.end - j, WIDEST * LANES);
    const int64_t vectors = (here + LANES - 1) / LANES, padded = vectors * LANES;
    const T* source = right + j * right_column;
    int64_t source_row = right_row;
    const bool scattered = rows.end - rows.begin >= 64 && depth * right_row * sizeof(T) > MANY_PAGES;
    if (right_column != 1 || here < padded || scattered) {
      pack(depth, source, right_row, right_column, here, padded, packing);
      source = packing;
      source_row = padded;
    }
    T first[WIDEST * LANES] = {};
    if (bias) std::memcpy(first, bias + j, here * sizeof(T));
    const auto run = [&](auto panel_of_vectors) {
      panel_of_vectors(rows, depth, left, left_row, left_column, source, source_row, first, out + j, width, here);
    };
    if (vectors == 1) run(panel<1>);
    else if (vectors == 2) run(panel<2>);
    else if (vectors == 3) run(panel<std::min(3, WIDEST)>);
    else run(panel<std::min(4, WIDEST)>);
  }
}

// out[rows, columns] = left[rows, depth] @ right[depth, columns] + bias[columns], out in row-major order. Columns
// are shared out where the right is the largest of the three, so that each thread packs its own part. Else rows:
// the gradient of a large weight is then made by the thread that sums its squares and takes Adam's step on it.
inline void product(Team team, T* packing, int64_t rows, int64_t columns, int64_t depth, const T* left,
                    int64_t left_row, int64_t left_column, const T* right, int64_t right_row, int64_t right_column,
                    const T* bias, T* out) {
  Range own_rows{0, rows}, own_columns{0, columns};
  if (rows * columns * depth < 65536) {
    if (team.rank > 0) return;
  } else if (columns >= rows && depth >= rows && columns >= 64 * team.size) {
    const int64_t grain = WIDEST * LANES, grains = (columns + grain - 1) / grain;
    own_columns = {std::min(columns, grains * team.rank / team.size * grain),
                   std::min(columns, grains * (team.rank + 1) / team.size * grain)};
  } else {
    own_rows = {rows * team.rank / team.size, rows * (team.rank + 1) / team.size};
  }
  T* own_packing = packing + team.rank * DEEPEST * WIDEST * LANES;
  block(own_rows, own_columns, own_packing, columns, depth, left, left_row, left_column, right, right_row,
        right_column, bias, out);
}

// out[outer, inner] = the sum over `count` of source[outer, count, inner]
inline void sum(Team team, const T* source, int64_t outer, int64_t outer_stride, int64_t count, int64_t stride,
                int64_t inner, int64_t inner_stride, T* out) {
  if (inner == 1) {
    const Range rows = team.share(outer, count);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const T* row = source + i * outer_stride;
      T total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t k = 0; k < count; ++k) total += row[k * stride];
      out[i] = total;
    }
    return;
  }
  const Range columns = team.share(inner, outer * count);
  for (int64_t i = 0; i < outer; ++i) {
    T* row = out + i * inner;
    for (int64_t j = columns.begin; j < columns.end; ++j) row[j] = 0;
    for (int64_t k = 0; k < count; ++k) {
      const T* other = source + i * outer_stride + k * stride;
#pragma omp simd
      for (int64_t j = columns.begin; j < columns.end; ++j) row[j] += other[j * inner_stride];
    }
  }
}
