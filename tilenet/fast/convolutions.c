/* Convolutions for float32 tensors, channels last, and the ReLU after them.

3x3 convolutions use Winograd's F(4x4, 3x3) (see winograd.py). An upsampling that is merged with the 3x3 convolution after
it is four 2x2 convolutions, for which F(5x5, 2x2) needs as many input pixels and products. The first convolution of a
network and its last are computed directly, tap by tap.

A few squares at a time go all the way: transform, products, and transform back, so that all intermediate results stay in
a core's cache. Each square is computed by itself in a fixed order: its bits depend neither on threads nor on neighbours.
Threads are those of the OpenMP that PyTorch has loaded; nothing else is linked.
*/
#include <string.h>

/* Output pixels of a square along an axis, for three or two taps, and the input pixels that it needs. PART: pixels that a
thread takes at a time where each pixel is computed by itself. */
enum { MADE_3X3 = 4, MADE_2X2 = 5, NEEDED = 6, SQUARE = NEEDED * NEEDED, PART = 1024 };
#define LESS 0.70710678118654752f
#define MORE 1.41421356237309505f

/* Some rows of a source, above those of the next piece; images and rows are `image` and `row` floats apart. */
struct piece { const float *first; long image, row, rows; };
struct source { const struct piece *pieces; long count, channels; };
/* Where a square writes: its first output pixel and its first pooled one (or NULL), the floats between rows of both and
between pixels, how many of its pixels are in the image, and the first channel. */
struct pixels { float *first, *pooled; long row, pooled_row, pixel, high, wide, channel; };
struct convolution {
    struct source sources[2]; /* concatenated along the channels; the second may be empty */
    const float *weights;     /* (36, K / panel, C, panel); tap by tap (K / panel, 3, 3, C, panel) */
    const float *bias;        /* (K) */
    const float *scale;       /* (K), after ReLU; NULL for neither scale nor shift */
    const float *shift;       /* (K) */
    float *out;               /* (N, height, width, K) */
    float *pooled;            /* (N, height / 2, width / 2, K), the largest of two by two, or NULL */
    float *work;              /* work_size floats of each thread */
    long made;                /* MADE_3X3, or MADE_2X2: outputs are the 2x2 finer pixels in one, and `out` is finer */
    long adds;                /* whether to add the contents of `out` before ReLU */
    long outputs, images, height, width;
    long padding, above;      /* columns of zeros on either side; rows of zeros above (those below follow from height) */
    long squares, work_size, next;
};
struct classification {
    const float *x;       /* (N, pixels, C) */
    const float *weights; /* (K, C) */
    const float *bias;    /* (K) */
    float *out;           /* (N, K, pixels); NULL if mask values are written instead */
    unsigned char *mask;  /* (N, pixels): the value of the largest output; the first wins a tie */
    const unsigned char *values;    /* (K) */
    long x_image, out_image, plane; /* floats between images, and between outputs */
    long images, pixels, channels, outputs, next;
    long not_finite;      /* set to 1 if an output that decides a mask value is not finite */
};

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
extern int omp_get_thread_num(void);

static long count_squares(const struct convolution *q, long length) { return (length + q->made - 1) / q->made; }

/* The first output pixel of a square. */
struct spot { long image, y, x; };

static struct spot find_spot(const struct convolution *q, long square) {
    long wide = count_squares(q, q->width), high = count_squares(q, q->height);
    return (struct spot){square / (wide * high), square / wide % high * q->made, square % wide * q->made};
}

/* Advance to the next square; return whether it lies to the right of the previous one. */
static int advance(const struct convolution *q, struct spot *spot) {
    if ((spot->x += q->made) < q->width) return 1;
    spot->x = 0;
    if ((spot->y += q->made) < q->height) return 0;
    spot->y = 0;
    spot->image++;
    return 0;
}

/* Find the six rows of a source that a row of squares needs; NULL for rows above and below the image. */
static void find_rows(const struct convolution *q, const struct source *source, struct spot spot, const float **rows) {
    for (int i = 0; i < NEEDED; i++) {
        long y = spot.y - q->above + i, piece = 0;
        while (piece < source->count && y >= source->pieces[piece].rows) y -= source->pieces[piece++].rows;
        const struct piece *found = source->pieces + piece;
        rows[i] = y < 0 || piece == source->count ? NULL : found->first + spot.image * found->image + y * found->row;
    }
}

struct extent { int high, wide; };

/* Find where each of the needed rows of pixels begins: in the source or, if not all pixels are in the image, in a copy
that is padded with zeros. */
static void find_pixels(
    const struct convolution *q, long channels, long x, const float *const *rows, struct extent needed, float *edge,
    const float **found
) {
    long width = q->width + NEEDED - q->made - 2 * q->padding, left = x < q->padding ? q->padding - x : 0;
    long stop = width + q->padding - x < needed.wide ? width + q->padding - x : needed.wide;
    for (int i = 0; i < needed.high; i++) {
        if (rows[i] && left == 0 && stop == needed.wide) {
            found[i] = rows[i] + (x - q->padding) * channels;
            continue;
        }
        float *copy = edge + i * needed.wide * channels;
        memset(copy, 0, needed.wide * channels * sizeof(float));
        if (rows[i])
            memcpy(
                copy + left * channels, rows[i] + (x - q->padding + left) * channels,
                (stop - left) * channels * sizeof(float)
            );
        found[i] = copy;
    }
}

/* Find where a square writes its output pixels, from channel k on, and their 2x2 maxima. */
static struct pixels find_outputs(const struct convolution *q, struct spot spot, long k) {
    long down = q->height - spot.y, right = q->width - spot.x, high = q->height / 2, wide = q->width / 2;
    float *first = q->out + ((spot.image * q->height + spot.y) * q->width + spot.x) * q->outputs + k;
    long pooled = ((spot.image * high + spot.y / 2) * wide + spot.x / 2) * q->outputs + k;
    return (struct pixels){
        .first = first,
        .pooled = q->pooled ? q->pooled + pooled : NULL,
        .row = q->width * q->outputs,
        .pooled_row = wide * q->outputs,
        .pixel = q->outputs,
        .channel = k,
        .high = down < q->made ? down : q->made,
        .wide = right < q->made ? right : q->made,
    };
}

/* Find where a square writes those of its finer output pixels to which output k belongs. */
static struct pixels find_finer(const struct convolution *q, struct spot spot, long k) {
    long channels = q->outputs / 4, finer = k / channels, row = 2 * q->width * channels;
    struct pixels out = find_outputs(q, spot, 0);
    out.first = q->out + 2 * (spot.image * q->height + spot.y) * row + 2 * spot.x * channels;
    out.first += finer / 2 * row + finer % 2 * channels + k % channels;
    out.row = 2 * row;
    out.pixel = 2 * channels;
    return out;
}

/* ROWS divides UNIT of compiled.py: work space is for multiples of UNIT squares, or UNIT pixels computed directly. */
#define LANES 16
#define ROWS 12
#define TARGET __attribute__((target("avx512f,fma")))
#define SUFFIX _avx512
#include "vectors.h"

#define LANES 8
#define ROWS 6
#define TARGET __attribute__((target("avx2,fma")))
#define SUFFIX _avx2
#include "vectors.h"

/* Return which instruction set this processor has: 2 for AVX-512, 1 for AVX2, 0 for neither. */
int tilenet_instructions(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
}

/* Raise it, and FORMAT in native.py, if a field or an array gets another meaning and no structure another size. */
enum { FORMAT = 0 };

/* Return format and sizes of the structures, by which the caller detects a library of another version. */
long tilenet_structures(void) {
    return (long)FORMAT << 32 | sizeof(struct convolution) << 16 | sizeof(struct classification);
}

void tilenet_convolve(struct convolution *q, int instructions, unsigned threads) {
    q->next = 0;
    GOMP_parallel(instructions == 2 ? run_avx512 : run_avx2, q, threads, 0);
}

void tilenet_convolve_directly(struct convolution *q, int instructions, unsigned threads) {
    q->next = 0;
    GOMP_parallel(instructions == 2 ? run_direct_avx512 : run_direct_avx2, q, threads, 0);
}

void tilenet_classify(struct classification *q, int instructions, unsigned threads) {
    q->next = 0;
    GOMP_parallel(instructions == 2 ? run_classification_avx512 : run_classification_avx2, q, threads, 0);
}
