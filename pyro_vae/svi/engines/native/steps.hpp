// The loop over steps around the generated `step`: rows gathered, loss and gradients, guard, clip, Adam.
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

// Every part of the sum of squares has this many elements, whatever the number of threads, so that the norm is
// the same for any of them.
constexpr int64_t BLOCK = 4096;

constexpr int64_t count_blocks() {
  int64_t count = 0;
  for (const int64_t size : PARAMETER_SIZES) count += (size + BLOCK - 1) / BLOCK;
  return count;
}

// What the caller must provide: elements of `arena`, of `packing` for each thread, and of `squares`.
extern "C" {
extern const int64_t arena_size, packing_size, squares_size;
const int64_t arena_size = RESULTS, packing_size = DEEPEST * WIDEST * LANES, squares_size = count_blocks();
}

inline T sum_of_squares(const T* x, int64_t begin, int64_t end) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = begin; i < end; ++i) total += x[i] * x[i];
  return total;
}

// Infinite where the sum of squares is, though the norm itself may not be: so it is to torch, and so would be
// Adam's second moments, for ever. A finite one is not rounded to T: clipping divides by it.
inline double norm_of_gradients(const Call& call, Team team) {
  int64_t part = 0;
  for (int64_t p = 0; p < PARAMETERS; ++p) {
    const int64_t size = PARAMETER_SIZES[p], blocks = (size + BLOCK - 1) / BLOCK;
    const Range own{blocks * team.rank / team.size, blocks * (team.rank + 1) / team.size};
    for (int64_t i = own.begin; i < own.end; ++i)
      call.squares[part + i] =
          sum_of_squares(call.arena + GRADIENT_OFFSETS[p], i * BLOCK, std::min((i + 1) * BLOCK, size));
    part += blocks;
  }
  team.wait();
  double total = 0;
  for (int64_t i = 0; i < part; ++i) total += call.squares[i];
  return std::sqrt(std::isfinite(T(total)) ? total : double(T(total)));
}

// Numbers below the normal range are zero while this lives, on this thread. The moments of a parameter without
// gradients (a dead relu's) decay into that range and stay there for ever, and a processor may take a hundred
// times as long for each of them.
struct TinyIsZero {
#if defined(__SSE2__)
  const unsigned before = _mm_getcsr();
  TinyIsZero() { _mm_setcsr(before | 0x8040); }
  ~TinyIsZero() { _mm_setcsr(before); }
#endif
};

// Kingma and Ba (2015), as torch.optim.Adam does it
__attribute__((noinline)) static void adam(const Call& call, Team team, double clip) {
  [[maybe_unused]] const TinyIsZero guard;
  const int64_t taken = *call.taken;
  const T beta1 = T(call.beta1), beta2 = T(call.beta2), rest1 = T(1 - call.beta1), rest2 = T(1 - call.beta2);
  for (int64_t p = 0; p < PARAMETERS; ++p) {
    const double step = call.steps_before[p] + taken + 1;
    const T rate = T(call.lr[taken * PARAMETERS + p] / (1 - std::pow(call.beta1, step)));
    const T root = T(1 / std::sqrt(1 - std::pow(call.beta2, step))), eps = T(call.eps[p]), scale = T(clip);
    T* parameter = call.parameters[p];
    T* first = call.first_moments[p];
    T* second = call.second_moments[p];
    const T* gradient = call.arena + GRADIENT_OFFSETS[p];
    const Range part = team.share(PARAMETER_SIZES[p]);
#pragma omp simd
    for (int64_t i = part.begin; i < part.end; ++i) {
      const T g = gradient[i] * scale;
      const T m = first[i] + (g - first[i]) * rest1;
      const T v = second[i] * beta2 + g * g * rest2;
      first[i] = m;
      second[i] = v;
      parameter[i] -= rate * m / (std::sqrt(v) * root + eps);
    }
  }
}

inline void gather(const Call& call, int64_t k, Team team) {
  for (int64_t part = 0; part < PARTS; ++part) {
    const int64_t size = ROW_SIZES[part];
    const Range rows = team.share(BATCH, size);
    for (int64_t i = rows.begin; i < rows.end; ++i)
      std::memcpy(call.arena + DATA_OFFSETS[part] + i * size, call.data[part] + call.index[k * BATCH + i] * size,
                  size * sizeof(T));
  }
}

// Takes `steps` steps, or fewer where `most_bad` in a row were not finite; returns how many.
extern "C" int64_t run(const Call* given) {
  const Call& call = *given;
  int64_t done = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
#endif
  {
#ifdef _OPENMP
    const Team team{omp_get_thread_num(), omp_get_num_threads()};
#else
    const Team team{0, 1};
#endif
    int64_t bad_in_a_row = call.bad_before, k = 0;
    while (k < call.steps && bad_in_a_row < call.most_bad) {
      gather(call, k, team);
      team.wait();
      step(call, k, team);
      const double norm = norm_of_gradients(call, team);  // waits, so every thread sees the loss
      const bool bad = !std::isfinite(T(norm)) || !std::isfinite(call.loss[k]);
      if (!bad) adam(call, team, norm > call.max_norm ? call.max_norm / norm : 1.0);
      bad_in_a_row = bad ? bad_in_a_row + 1 : 0;
      team.wait();
      if (team.rank == 0) {
        call.norm[k] = T(norm);
        call.bad[k] = bad;
        *call.taken += !bad;
        done = k + 1;
      }
      ++k;
    }
  }
  return done;
}
