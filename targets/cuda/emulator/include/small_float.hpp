// 16-bit floating-point numbers as CUDA's headers have them: a class, converted to and from every number type by itself;
// arithmetic is done in f32 and rounded (exact: 24 bits are more than twice 11 and two).
#pragma once

#include "device.hpp"

#define EMULATED_SMALL_FLOAT(NAME, FROM_FLOAT, TO_FLOAT)                                          \
    struct NAME {                                                                                 \
        uint16_t bits;                                                                            \
        NAME() = default;                                                                         \
        template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>>                \
        NAME(T value) : bits(FROM_FLOAT(float(value))) {}                                         \
        operator float() const { return TO_FLOAT(bits); }                                         \
        NAME& operator+=(const NAME& b) { return *this = NAME(float(*this) + float(b)); }         \
        NAME& operator-=(const NAME& b) { return *this = NAME(float(*this) - float(b)); }         \
        NAME& operator*=(const NAME& b) { return *this = NAME(float(*this) * float(b)); }         \
        NAME& operator/=(const NAME& b) { return *this = NAME(float(*this) / float(b)); }         \
    };                                                                                            \
    inline NAME operator+(const NAME& a, const NAME& b) { return NAME(float(a) + float(b)); }     \
    inline NAME operator-(const NAME& a, const NAME& b) { return NAME(float(a) - float(b)); }     \
    inline NAME operator*(const NAME& a, const NAME& b) { return NAME(float(a) * float(b)); }     \
    inline NAME operator/(const NAME& a, const NAME& b) { return NAME(float(a) / float(b)); }     \
    inline NAME operator-(const NAME& a) { return NAME(-float(a)); }                              \
    inline bool operator<(const NAME& a, const NAME& b) { return float(a) < float(b); }           \
    inline bool operator>(const NAME& a, const NAME& b) { return float(a) > float(b); }           \
    inline bool operator<=(const NAME& a, const NAME& b) { return float(a) <= float(b); }         \
    inline bool operator>=(const NAME& a, const NAME& b) { return float(a) >= float(b); }         \
    inline bool operator==(const NAME& a, const NAME& b) { return float(a) == float(b); }         \
    inline bool operator!=(const NAME& a, const NAME& b) { return float(a) != float(b); }         \
    inline bool __hisnan(NAME a) { return std::isnan(float(a)); }                                 \
    inline NAME __habs(NAME a) { return NAME(fabsf(a)); }                                         \
    inline NAME __hmax(NAME a, NAME b) { return NAME(fmaxf(a, b)); }                              \
    inline NAME __hmin(NAME a, NAME b) { return NAME(fminf(a, b)); }                              \
    inline NAME __hmax_nan(NAME a, NAME b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmax(a, b); } \
    inline NAME __hmin_nan(NAME a, NAME b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmin(a, b); } \
    inline NAME __hadd(NAME a, NAME b) { return a + b; }                                          \
    inline NAME __hsub(NAME a, NAME b) { return a - b; }                                          \
    inline NAME __hmul(NAME a, NAME b) { return a * b; }                                          \
    inline NAME __hdiv(NAME a, NAME b) { return a / b; }                                          \
    inline NAME __hfma(NAME a, NAME b, NAME c) { return NAME(float(double(a) * double(b) + double(c))); } \
    inline NAME hsqrt(NAME a) { return NAME(sqrtf(a)); }                                          \
    inline NAME hcos(NAME a) { return NAME(cosf(a)); }                                            \
    inline NAME hsin(NAME a) { return NAME(sinf(a)); }                                            \
    inline NAME hlog(NAME a) { return NAME(logf(a)); }                                            \
    inline NAME hexp(NAME a) { return NAME(expf(a)); }                                            \
    inline NAME hrcp(NAME a) { return NAME(1.0f / float(a)); }

// A pair; both at once
#define EMULATED_SMALL_PAIR(NAME, ONE)                                                            \
    struct alignas(4) NAME {                                                                      \
        ONE x, y;                                                                                 \
    };                                                                                            \
    inline NAME __hadd2(NAME a, NAME b) { return {a.x + b.x, a.y + b.y}; }                        \
    inline NAME __hsub2(NAME a, NAME b) { return {a.x - b.x, a.y - b.y}; }                        \
    inline NAME __hmul2(NAME a, NAME b) { return {a.x * b.x, a.y * b.y}; }                        \
    inline NAME __hdiv2(NAME a, NAME b) { return {a.x / b.x, a.y / b.y}; }                        \
    inline NAME __hfma2(NAME a, NAME b, NAME c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
    inline NAME operator+(NAME a, NAME b) { return __hadd2(a, b); }                               \
    inline NAME operator-(NAME a, NAME b) { return __hsub2(a, b); }                               \
    inline NAME operator*(NAME a, NAME b) { return __hmul2(a, b); }                               \
    inline float __low2float(NAME a) { return a.x; }                                              \
    inline float __high2float(NAME a) { return a.y; }
