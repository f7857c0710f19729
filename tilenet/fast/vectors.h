/* Everything that is compiled for vectors of LANES floats.

Included once for each instruction set, with LANES, ROWS (squares or pixels whose sums fit the registers), TARGET and
SUFFIX defined.
*/
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, SUFFIX)
#define INLINE TARGET static inline __attribute__((always_inline))

typedef float NAME(vector) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int NAME(whole) __attribute__((vector_size(4 * LANES)));
typedef unsigned char NAME(bytes) __attribute__((vector_size(LANES)));
#define vector NAME(vector)
#define LOAD(p) (*(const vector *)(p))
#define STORE(p, v) (*(vector *)(p) = (v))
#define FETCH(p) __builtin_prefetch(p)

/* Return `yes` where a mask has ones, `no` where it has zeros. */
INLINE vector NAME(choose)(NAME(whole) mask, vector yes, vector no) {
    return (vector)((mask & (NAME(whole))yes) | (~mask & (NAME(whole))no));
}

/* A NaN is not less than zero, and stays. */
INLINE vector NAME(relu)(vector x) { return NAME(choose)(x < 0, (vector){0}, x); }

#include "winograd_kernel.h"
#include "direct_kernel.h"

#undef vector
#undef LOAD
#undef STORE
#undef FETCH
#undef INLINE
#undef NAME
#undef JOIN
#undef JOIN_
#undef LANES
#undef ROWS
#undef TARGET
#undef SUFFIX
