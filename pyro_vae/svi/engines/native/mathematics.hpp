// Elementary functions without branches, so that loops over them become vector instructions on any machine.
// In float each is right to a few units in the last place, NaN and infinities included; in double the C
// library does it.
#include <cmath>
#include <cstdint>
#include <cstring>

// A call that the compiler leaves in a loop makes it one of single numbers: three times slower, with gelu.
#define IN_LOOPS __attribute__((always_inline)) inline

constexpr T infinity = T(INFINITY), not_a_number = T(NAN);

namespace math {

IN_LOOPS uint32_t bits(float x) { uint32_t b; std::memcpy(&b, &x, 4); return b; }
IN_LOOPS float from_bits(uint32_t b) { float x; std::memcpy(&x, &b, 4); return x; }

// The k of x = k log 2 + r, |r| <= log(2) / 2, plus a number so large that k stands in the last bits.
constexpr float SHIFT = 12582912.f;
IN_LOOPS float shifted_exponent(float x) { return x * 1.44269504088896341f + SHIFT; }
IN_LOOPS float remainder(float x, float k) { return (x - k * 0.693359375f) - k * -2.12194440e-4f; }
IN_LOOPS float power_of_two(int32_t k) { return from_bits(uint32_t(k + 127) << 23); }
IN_LOOPS int32_t exponent(float shifted) { return int32_t(bits(shifted) - bits(SHIFT)); }

// exp(r) - 1 for |r| <= log(2) / 2 (Moshier, Cephes)
IN_LOOPS float small_expm1(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * r * r + r;
}

IN_LOOPS float exp(float x) {
  x = x < -104.f ? -104.f : x;
  x = x > 89.f ? 89.f : x;
  const float shifted = shifted_exponent(x);
  const float r = remainder(x, shifted - SHIFT);
  const int32_t k = exponent(shifted), half = k >> 1;  // in two factors: 2^k alone may not be a float
  return (small_expm1(r) + 1.f) * power_of_two(half) * power_of_two(k - half);
}

IN_LOOPS float expm1(float x) {
  const float given = x;
  x = x < -18.f ? -18.f : x;
  x = x > 88.f ? 88.f : x;
  const float shifted = shifted_exponent(x);
  const float r = remainder(x, shifted - SHIFT);
  const int32_t k = exponent(shifted);
  const float value = (small_expm1(r) + (1.f - power_of_two(-k))) * power_of_two(k);
  return given > 88.f ? math::exp(given) : value;
}

// Moshier, Cephes
IN_LOOPS float log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float scaled = tiny ? x * 8388608.f : x;
  const uint32_t above = bits(scaled) - 0x3f3504f3u;  // relative to sqrt(1/2)
  const float k = float(int32_t(above) >> 23) - (tiny ? 23.f : 0.f);
  const float m = from_bits((above & 0x007fffffu) + 0x3f3504f3u) - 1.f;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const float z = m * m;
  float y = p * m * z + k * -2.12194440e-4f;
  y = (m + (y - 0.5f * z)) + k * 0.693359375f;
  y = x < infinity ? y : x;
  y = x < 0.f ? not_a_number : y;
  return x == 0.f ? -infinity : y;
}

IN_LOOPS float log1p(float x) {
  const float u = 1.f + x;
  const float y = math::log(u) - ((u - 1.f) - x) * (1.f / u);  // the second term is what rounding took from u
  return u > 0.f && u < infinity ? y : math::log(u);
}

IN_LOOPS float tanh(float x) {
  const float size = std::fabs(x), most = size > 10.f ? 10.f : size;
  const float e = math::expm1(2.f * most);
  return std::copysign(e / (e + 2.f), x);
}

// Fits in the sense of least maximum error: of erf(x) / x in x^2 below 1, of -log(erfc(x)) / x above
IN_LOOPS float erf(float x) {
  const float size = std::fabs(x), z = x * x;
  float p = 7.853857662e-5f;
  p = p * z - 8.010192506e-4f;
  p = p * z + 5.188327559e-3f;
  p = p * z - 2.685381187e-2f;
  p = p * z + 1.128358515e-1f;
  p = p * z - 3.761262582e-1f;
  p = p * z + 1.128379166f;
  const float t = size > 4.f ? 4.f : size;
  float q = 3.557007368e-6f;
  q = q * t - 2.843538028e-5f;
  q = q * t - 1.387496178e-4f;
  q = q * t + 3.182015396e-3f;
  q = q * t - 2.309164171e-2f;
  q = q * t + 1.056690607e-1f;
  q = q * t + 6.354101189e-1f;
  q = q * t + 1.128599585f;
  return size < 1.f ? p * x : std::copysign(1.f - math::exp(-q * t), x);
}

// Stirling's series above 8, the recurrence below, the reflection below 0
IN_LOOPS float lgamma(float x) {
  const float a = x <= 0.f ? 1.f - x : x;
  const bool low = a < 8.f;
  const float y = low ? a + 8.f : a;
  const float product = a * (a + 1.f) * (a + 2.f) * (a + 3.f) * (a + 4.f) * (a + 5.f) * (a + 6.f) * (a + 7.f);
  const float w = 1.f / y;
  const float series = w * (8.3333333333e-2f - w * w * (2.7777777778e-3f - w * w * 7.9365079365e-4f));
  const float stirling = (y - 0.5f) * math::log(y) - y + 0.91893853320f + series;
  const float positive = stirling - math::log(low ? product : 1.f);
  const float r = 3.14159265359f * (x - std::rint(x)), z = r * r;
  float sine = -2.5052108e-8f;
  sine = sine * z + 2.7557319e-6f;
  sine = sine * z - 1.9841270e-4f;
  sine = sine * z + 8.3333333e-3f;
  sine = sine * z - 1.6666667e-1f;
  sine = std::fabs(sine * z * r + r);
  const float negative = math::log(3.14159265359f / sine) - positive;
  const bool pole = x <= 0.f && sine == 0.f;
  return pole || std::fabs(x) == infinity ? infinity : x <= 0.f ? negative : positive;
}

IN_LOOPS double exp(double x) { return std::exp(x); }
IN_LOOPS double expm1(double x) { return std::expm1(x); }
IN_LOOPS double log(double x) { return std::log(x); }
IN_LOOPS double log1p(double x) { return std::log1p(x); }
IN_LOOPS double tanh(double x) { return std::tanh(x); }
IN_LOOPS double erf(double x) { return std::erf(x); }
IN_LOOPS double lgamma(double x) { return std::lgamma(x); }

}  // namespace math

// These have exp(-|x|) and 1 / (1 + exp(-|x|)) in common: a loop that holds several computes them once.

IN_LOOPS T sigmoid(T x) {
  const T e = math::exp(-std::fabs(x));
  return (x < 0 ? e : T(1)) * (1 / (1 + e));
}
IN_LOOPS T log1p_exp(T x) { return (x < 0 ? T(0) : x) + math::log1p(math::exp(-std::fabs(x))); }
IN_LOOPS T softplus(T x, T beta = 1, T threshold = infinity) {
  return x * beta > threshold ? x : log1p_exp(x * beta) / beta;
}
IN_LOOPS T binary_cross_entropy(T logit, T target) { return log1p_exp(logit) - logit * target; }
IN_LOOPS T logaddexp(T a, T b) {
  const T larger = a > b ? a : b;
  return a == b && std::fabs(a) == infinity ? a : larger + math::log1p(math::exp(-std::fabs(a - b)));
}
IN_LOOPS T silu_backward(T gradient, T x) {
  const T s = sigmoid(x);
  return gradient * s * (1 + x * (1 - s));
}

// Comparisons are such that NaN passes.
IN_LOOPS T clamp(T x, T low, T high) {
  const T above = x < low ? low : x;
  return above > high ? high : above;
}
IN_LOOPS T maximum(T a, T b) { return a > b || a != a ? a : b; }

IN_LOOPS T elu(T x, T alpha, T scale, T input_scale) {
  return x < 0 ? math::expm1(x * input_scale) * alpha * scale : x * scale;
}
IN_LOOPS T elu_backward(T gradient, T alpha, T scale, T input_scale, bool is_result, T x) {
  const T slope = is_result ? x + alpha * scale : alpha * scale * math::exp(x * input_scale);
  return gradient * (x < 0 ? input_scale * slope : scale);
}
IN_LOOPS T gelu(T x) { return T(0.5) * x * (1 + math::erf(x * T(M_SQRT1_2))); }
IN_LOOPS T gelu_backward(T gradient, T x) {
  const T cdf = T(0.5) * (1 + math::erf(x * T(M_SQRT1_2)));
  return gradient * (cdf + x * T(0.3989422804014327) * math::exp(T(-0.5) * x * x));
}
