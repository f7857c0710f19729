/* Winograd's convolution (see vectors.h). The registers hold ROWS x 2 vectors of sums. */

/* Transform six pixels along an axis; the results are `step` vectors apart. */
INLINE void NAME(transform_line)(const vector *x, vector *out, long step) {
    vector a = x[4] - 2.0f * x[2], b = x[3] - 2.0f * x[1], c = x[4] - 0.5f * x[2], d = x[3] - 0.5f * x[1];
    out[0] = x[0] - 2.5f * x[2] + x[4];
    out[1 * step] = a + LESS * b;
    out[2 * step] = a - LESS * b;
    out[3 * step] = c + MORE * d;
    out[4 * step] = c - MORE * d;
    out[5 * step] = x[1] - 2.5f * x[3] + x[5];
}

/* Transform six products back to four output pixels along an axis, or to five. */
INLINE void NAME(transform_line_back)(const vector *x, vector *out, int made) {
    vector a = x[1] + x[2], b = x[3] + x[4], c = LESS * (x[1] - x[2]), d = MORE * (x[3] - x[4]);
    out[0] = x[0] + a + b;
    out[1] = c + d;
    out[2] = 0.5f * a + 2.0f * b;
    out[3] = 0.5f * c + 2.0f * d;
    if (made == MADE_2X2) out[4] = 0.25f * a + 4.0f * b;
    out[made - 1] += x[5];
}

/* Transform a square of 6 x 6 pixels with adjacent channels; the 36 results are `place` floats apart.

Meanwhile the pixels to its right are fetched into the cache, which the next square needs. */
TARGET static void NAME(transform)(const float *const *rows, long channels, float *out, long place) {
    for (long c = 0; c < channels; c += LANES) {
        vector half[SQUARE], x[NEEDED];
        for (int j = 0; j < NEEDED; j++) {
            for (int i = 0; i < NEEDED; i++) {
                x[i] = LOAD(rows[i] + j * channels + c);
                if (j < MADE_3X3) FETCH(rows[i] + (NEEDED + j) * channels + c);
            }
            NAME(transform_line)(x, half + j, NEEDED);
        }
        for (int i = 0; i < NEEDED; i++) {
            NAME(transform_line)(half + NEEDED * i, x, 1);
            for (int j = 0; j < NEEDED; j++) STORE(out + (NEEDED * i + j) * place + c, x[j]);
        }
    }
}

/* Multiply (ROWS, channels) by (channels, vectors x LANES), with all sums in registers. */
INLINE void NAME(multiply)(const float *x, const float *weights, long channels, float *out, int vectors) {
    vector sums[ROWS][2];
#pragma GCC unroll 16
    for (int t = 0; t < ROWS; t++) sums[t][0] = sums[t][1] = (vector){0};
    for (long c = 0; c < channels; c++, weights += vectors * LANES) {
        vector first = LOAD(weights), second = vectors == 2 ? LOAD(weights + LANES) : first;
#pragma GCC unroll 16
        for (int t = 0; t < ROWS; t++) {
            sums[t][0] += x[t * channels + c] * first;
            if (vectors == 2) sums[t][1] += x[t * channels + c] * second;
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < ROWS; t++) {
        STORE(out + t * vectors * LANES, sums[t][0]);
        if (vectors == 2) STORE(out + (t * 2 + 1) * LANES, sums[t][1]);
    }
}

/* The larger of two; what is not a number is larger than any. */
INLINE vector NAME(larger)(vector x, vector y) { return NAME(choose)((y > x) | (y != y), y, x); }

/* Turn a square's products into output pixels and, with `pools`, their 2x2 maxima, as far as they are in the image.

`whole` (all pixels are in the image) and `pools` are constants in each inlined copy of this function.
*/
INLINE void NAME(finish)(
    const struct convolution *q, const float *products, long place, struct pixels out, long channels, int whole,
    int pools
) {
    for (long c = 0; c < channels; c += LANES) {
        vector half[MADE_3X3 * NEEDED], x[NEEDED], y[2 * MADE_3X3], bias = LOAD(q->bias + out.channel + c);
        vector scale = (vector){0}, shift = (vector){0};
        if (q->scale) scale = LOAD(q->scale + out.channel + c), shift = LOAD(q->shift + out.channel + c);
        for (int j = 0; j < NEEDED; j++) {
            for (int i = 0; i < NEEDED; i++) x[i] = LOAD(products + (NEEDED * i + j) * place + c);
            NAME(transform_line_back)(x, y, MADE_3X3);
            for (int i = 0; i < MADE_3X3; i++) half[NEEDED * i + j] = y[i];
        }
        for (int i = 0; i < MADE_3X3; i += 2) {
            NAME(transform_line_back)(half + NEEDED * i, y, MADE_3X3);
            NAME(transform_line_back)(half + NEEDED * (i + 1), y + MADE_3X3, MADE_3X3);
            for (int j = 0; j < 2 * MADE_3X3; j++) {
                long row = i + j / MADE_3X3, column = j % MADE_3X3;
                int inside = whole || (row < out.high && column < out.wide);
                float *pixel = out.first + row * out.row + column * out.pixel + c;
                y[j] += bias;
                if (q->adds && inside) y[j] += LOAD(pixel);
                y[j] = NAME(relu)(y[j]);
                if (q->scale) y[j] = y[j] * scale + shift;
                if (inside) STORE(pixel, y[j]);
            }
            for (int j = 0; pools && j < MADE_3X3; j += 2) {
                const vector *above = y + j, *below = above + MADE_3X3;
                vector most = NAME(larger)(NAME(larger)(above[0], above[1]), NAME(larger)(below[0], below[1]));
                if (whole || (i + 1 < out.high && j + 1 < out.wide))
                    STORE(out.pooled + (i / 2) * out.pooled_row + (j / 2) * out.pixel + c, most);
            }
        }
    }
}

TARGET static void NAME(finish_any)(
    const struct convolution *q, const float *products, long place, struct pixels out, long channels
) {
    if (out.high < MADE_3X3 || out.wide < MADE_3X3) {
        if (out.pooled) NAME(finish)(q, products, place, out, channels, 0, 1);
        else NAME(finish)(q, products, place, out, channels, 0, 0);
    } else if (out.pooled) NAME(finish)(q, products, place, out, channels, 1, 1);
    else NAME(finish)(q, products, place, out, channels, 1, 0);
}

/* Turn a square's products into the finer pixels of LANES outputs, as far as they are in the image. */
INLINE void NAME(finish_finer)(const float *products, long place, struct pixels out, int whole) {
    vector half[MADE_2X2 * NEEDED], x[NEEDED], y[MADE_2X2];
    for (int j = 0; j < NEEDED; j++) {
        for (int i = 0; i < NEEDED; i++) x[i] = LOAD(products + (NEEDED * i + j) * place);
        NAME(transform_line_back)(x, y, MADE_2X2);
        for (int i = 0; i < MADE_2X2; i++) half[NEEDED * i + j] = y[i];
    }
    for (int i = 0; i < MADE_2X2 && (whole || i < out.high); i++) {
        NAME(transform_line_back)(half + NEEDED * i, y, MADE_2X2);
        for (int j = 0; j < MADE_2X2; j++)
            if (whole || j < out.wide) STORE(out.first + i * out.row + j * out.pixel, y[j]);
    }
}

TARGET static void NAME(finish_finer_any)(const float *products, long place, struct pixels out) {
    if (out.high < MADE_2X2 || out.wide < MADE_2X2) NAME(finish_finer)(products, place, out, 0);
    else NAME(finish_finer)(products, place, out, 1);
}

/* Fetch the output pixels of a square into the cache, so that they can be written there without waiting for memory. */
INLINE void NAME(fetch)(const struct convolution *q, struct spot spot, long k, long channels) {
    for (long c = 0; c < channels; c += LANES) {
        struct pixels out = q->made == MADE_3X3 ? find_outputs(q, spot, k + c) : find_finer(q, spot, k + c);
        for (long i = 0; i < out.high; i++)
            for (long j = 0; j < out.wide; j++) FETCH(out.first + i * out.row + j * out.pixel);
    }
}

/* Convolve `count` squares from the `first` on.

`work`, which `_Compiled._work` of compiled.py measures, holds the transformed squares (36, squares, channels), their
products (36, squares, panel), and a square of padded pixels (36, channels).
While the products of a place are computed, the pixels that a few of the squares will write are fetched. */
TARGET static void NAME(convolve)(const struct convolution *q, long first, long count, float *work) {
    long channels = q->sources[0].channels + q->sources[1].channels, place = q->squares * channels;
    long panel = q->outputs % (2 * LANES) ? LANES : 2 * LANES;
    float *places = work, *products = places + SQUARE * place, *edge = products + SQUARE * q->squares * 2 * LANES;
    for (long s = 0, offset = 0; s < 2 && q->sources[s].channels; offset += q->sources[s++].channels) {
        const float *rows[NEEDED], *square[NEEDED];
        struct spot spot = find_spot(q, first);
        for (long t = 0, beside = 0; t < count; t++, beside = advance(q, &spot)) {
            if (!beside) find_rows(q, q->sources + s, spot, rows);
            find_pixels(q, q->sources[s].channels, spot.x, rows, (struct extent){NEEDED, NEEDED}, edge, square);
            NAME(transform)(square, q->sources[s].channels, places + t * channels + offset, place);
        }
    }
    for (long k = 0; k < q->outputs; k += panel) {
        struct spot next = find_spot(q, first);
        for (long p = 0, fetched = 0; p < SQUARE; p++) {
            for (; fetched * SQUARE < count * (p + 1); fetched++, advance(q, &next)) NAME(fetch)(q, next, k, panel);
            const float *weights = q->weights + (p * q->outputs + k) * channels;
            for (long t = 0; t < count; t += ROWS) {
                const float *x = places + p * place + t * channels;
                float *out = products + (p * q->squares + t) * panel;
                if (panel == 2 * LANES) NAME(multiply)(x, weights, channels, out, 2);
                else NAME(multiply)(x, weights, channels, out, 1);
            }
        }
        struct spot spot = find_spot(q, first);
        for (long t = 0; t < count; t++, advance(q, &spot)) {
            const float *made = products + t * panel;
            if (q->made == MADE_3X3) NAME(finish_any)(q, made, q->squares * panel, find_outputs(q, spot, k), panel);
            else
                for (long c = 0; c < panel; c += LANES)
                    NAME(finish_finer_any)(made + c, q->squares * panel, find_finer(q, spot, k + c));
        }
    }
}

static void NAME(run)(void *argument) {
    struct convolution *q = argument;
    float *work = q->work + omp_get_thread_num() * q->work_size;
    long total = q->images * count_squares(q, q->height) * count_squares(q, q->width), at;
    while ((at = __atomic_fetch_add(&q->next, q->squares, __ATOMIC_RELAXED)) < total)
        NAME(convolve)(q, at, total - at < q->squares ? total - at : q->squares, work);
}
