// A stand-in for libcurand.so.10: numbers of a fixed sequence, not cuRAND's.
#include <cmath>
#include <random>

#include "driver.hpp"

namespace {
struct Generator {
    std::mt19937_64 engine;
    void* stream = nullptr;
};
template <class T, class Distribution>
int fill(Generator* generator, T* out, size_t count, Distribution distribution) {
    return emulator_enqueue(generator->stream, [=]() mutable {
        for (size_t i = 0; i < count; i++) out[i] = distribution(generator->engine);
        return 0;
    });
}
}  // namespace

#define CURAND extern "C" __attribute__((visibility("default"))) int

CURAND curandCreateGenerator(Generator** out, int) { return *out = new Generator, 0; }
CURAND curandDestroyGenerator(Generator* generator) { return delete generator, 0; }
CURAND curandSetStream(Generator* generator, void* stream) { return generator->stream = stream, 0; }
CURAND curandSetPseudoRandomGeneratorSeed(Generator* generator, unsigned long long seed) { return generator->engine.seed(seed), 0; }
CURAND curandSetGeneratorOffset(Generator* generator, unsigned long long offset) { return generator->engine.discard(offset), 0; }
CURAND curandGenerateUniform(Generator* g, float* out, size_t count) {
    return fill(g, out, count, std::uniform_real_distribution<float>());
}
CURAND curandGenerateUniformDouble(Generator* g, double* out, size_t count) {
    return fill(g, out, count, std::uniform_real_distribution<double>());
}
CURAND curandGenerateNormal(Generator* g, float* out, size_t count, float mean, float deviation) {
    return fill(g, out, count, std::normal_distribution<float>(mean, deviation));
}
CURAND curandGenerateNormalDouble(Generator* g, double* out, size_t count, double mean, double deviation) {
    return fill(g, out, count, std::normal_distribution<double>(mean, deviation));
}
