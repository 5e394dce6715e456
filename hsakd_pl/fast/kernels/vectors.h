/* Vectors of float32 for AVX2 and AVX-512, in GCC's notation. */

#if defined(__AVX512F__)
enum { BYTES = 64 };
#else
enum { BYTES = 32 }; /* AVX2 */
#endif
enum { LANES = BYTES / 4 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 36")
typedef float vector __attribute__((vector_size(BYTES), aligned(4), may_alias));

INLINE vector load(const float *from) { return *(const vector *)from; }
INLINE void store(float *to, vector value) { *(vector *)to = value; }

INLINE long smaller(long a, long b) { return a < b ? a : b; }
