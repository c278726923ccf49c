#include "preprocess.h"

#include <string.h>

#include "window.h"

#define CHECK_ROWS 256

/* The resize of one axis: for each output the first input and `taps` fixed-point coefficients. */
typedef struct axis {
    uint32_t n_in;
    uint32_t n_out;
    uint32_t taps;
    int32_t bits;
    uint32_t *first;
    int32_t *coefficients; /* (n_out, taps) */
} axis;

static int64_t weight_of(const axis *a, int64_t reach, int64_t index, int64_t centre)
{
    int64_t distance = (2 * index + 1) * a->n_out - centre;
    int64_t weight = reach - (distance < 0 ? -distance : distance);
    return weight > 0 && index < a->n_in ? weight : 0;
}

static void axis_free(axis *a, const umd_allocator *allocator)
{
    umdi_delete(allocator, a->first);
    umdi_delete(allocator, a->coefficients);
}

static umd_status axis_init(axis *a, const umd_allocator *allocator, uint32_t n_in, uint32_t n_out,
                            int32_t bits)
{
    int64_t reach = 2 * (int64_t)(n_in > n_out ? n_in : n_out);
    memset(a, 0, sizeof *a);
    a->n_in = n_in;
    a->n_out = n_out;
    a->bits = bits;
    if (n_in == n_out)
        return UMD_OK;
    a->taps = (uint32_t)(reach / n_out) + 2;
    a->first = umdi_new(allocator, n_out, sizeof *a->first);
    a->coefficients = umdi_new(allocator, (size_t)n_out * a->taps, sizeof *a->coefficients);
    if (a->first == NULL || a->coefficients == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (uint32_t x = 0; x < n_out; x++) {
        int64_t centre = (2 * (int64_t)x + 1) * n_in, total = 0;
        /* |(2 i + 1) n_out - centre| < reach holds from here on; the quotient is rounded up. */
        int64_t below = centre - reach - n_out, step = 2 * (int64_t)n_out;
        int64_t first = below <= 0 ? 0 : (below + step - 1) / step;
        a->first[x] = (uint32_t)first;
        for (uint32_t tap = 0; tap < a->taps; tap++)
            total += weight_of(a, reach, first + tap, centre);
        for (uint32_t tap = 0; tap < a->taps; tap++) {
            int64_t weight = weight_of(a, reach, first + tap, centre) * ((int64_t)1 << bits);
            a->coefficients[(size_t)x * a->taps + tap] =
                (int32_t)((2 * weight + total) / (2 * total));
        }
    }
    return UMD_OK;
}

static uint8_t to_byte(int64_t total, int32_t bits)
{
    total >>= bits;
    return (uint8_t)(total > 255 ? 255 : total);
}

/* One row of `channels` interleaved values to n_out pixels. */
static void resize_columns(const axis *a, uint32_t channels, const uint8_t *row, uint8_t *out)
{
    if (a->first == NULL) {
        memcpy(out, row, (size_t)a->n_out * channels);
        return;
    }
    for (uint32_t x = 0; x < a->n_out; x++) {
        const int32_t *coefficients = a->coefficients + (size_t)x * a->taps;
        uint32_t taps = a->n_in - a->first[x] < a->taps ? a->n_in - a->first[x] : a->taps;
        for (uint32_t c = 0; c < channels; c++) {
            const uint8_t *pixel = row + (size_t)a->first[x] * channels + c;
            int64_t total = (int64_t)1 << (a->bits - 1);
            for (uint32_t tap = 0; tap < taps; tap++, pixel += channels)
                total += (int64_t)coefficients[tap] * *pixel;
            out[x * channels + c] = to_byte(total, a->bits);
        }
    }
}

/* Row `y` of the output from all rows of `width` values each. */
static void resize_rows(const axis *a, size_t width, const uint8_t *rows, uint32_t y,
                        int64_t *totals, uint8_t *out)
{
    const int32_t *coefficients;
    if (a->first == NULL) {
        memcpy(out, rows + y * width, width);
        return;
    }
    coefficients = a->coefficients + (size_t)y * a->taps;
    for (size_t i = 0; i < width; i++)
        totals[i] = (int64_t)1 << (a->bits - 1);
    for (uint32_t tap = 0; tap < a->taps && a->first[y] + tap < a->n_in; tap++) {
        const uint8_t *row = rows + (a->first[y] + tap) * width;
        for (size_t i = 0; i < width; i++)
            totals[i] += (int64_t)coefficients[tap] * row[i];
    }
    for (size_t i = 0; i < width; i++)
        out[i] = to_byte(totals[i], a->bits);
}

static void make_tables(const umdi_preprocessing *spec, float tables[3][256])
{
    for (int32_t c = 0; c < spec->channels; c++)
        for (int level = 0; level < 256; level++)
            tables[c][level] = (float)(((double)level / 255.0 - spec->mean[c]) / spec->std[c]);
}

/* One row of the resized image into its place in each channel's plane. */
static void normalise_row(const umdi_preprocessing *spec, uint32_t channels, const uint8_t *row,
                          float tables[3][256], float *values)
{
    size_t plane = (size_t)spec->height * (size_t)spec->width;
    for (int32_t x = 0; x < spec->width; x++) {
        const uint8_t *pixel = row + (size_t)x * channels;
        uint8_t grey = pixel[0];
        if (channels == 3 && spec->channels == 1)
            grey = (uint8_t)((77 * pixel[0] + 150 * pixel[1] + 29 * pixel[2] + 128) >> 8);
        for (int32_t c = 0; c < spec->channels; c++) {
            uint8_t level = channels == 3 && spec->channels == 3 ? pixel[c] : grey;
            values[(size_t)c * plane + (size_t)x] = tables[c][level];
        }
    }
}

typedef struct work {
    umdi_window window;
    axis columns;
    axis rows;
    uint8_t *narrow; /* all rows, with their final width */
    uint8_t *row;
    int64_t *totals;
} work;

static umd_status prepare(work *w, const umdi_preprocessing *spec, const umd_allocator *allocator)
{
    const umd_pixels *p = &w->window.pixels;
    size_t width = (size_t)spec->width * w->window.channels;
    size_t longest = w->window.row_values > width ? w->window.row_values : width;
    UMDI_TRY(axis_init(&w->columns, allocator, p->width, (uint32_t)spec->width, spec->bits));
    UMDI_TRY(axis_init(&w->rows, allocator, p->height, (uint32_t)spec->height, spec->bits));
    w->narrow = umdi_new(allocator, p->height, width);
    w->row = umdi_new(allocator, longest, 1);
    w->totals = umdi_new(allocator, width, sizeof *w->totals);
    if (w->narrow == NULL || w->row == NULL || w->totals == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    return UMD_OK;
}

static umd_status run(work *w, const umdi_preprocessing *spec, umdi_check_function check,
                      void *context, umdi_picture *picture, float *values)
{
    float tables[3][256];
    uint32_t channels = w->window.channels;
    size_t width = (size_t)spec->width * channels;
    make_tables(spec, tables);
    if (picture != NULL)
        picture->channels = channels;
    for (uint32_t y = 0; y < w->window.pixels.height; y++) {
        if (y % CHECK_ROWS == 0)
            UMDI_TRY(check(context));
        resize_columns(&w->columns, channels, umdi_window_row(&w->window, y, w->row),
                       w->narrow + y * width);
    }
    for (uint32_t y = 0; y < (uint32_t)spec->height; y++) {
        resize_rows(&w->rows, width, w->narrow, y, w->totals, w->row);
        if (picture != NULL)
            memcpy(picture->levels + y * width, w->row, width);
        normalise_row(spec, channels, w->row, tables, values + (size_t)y * (size_t)spec->width);
    }
    return UMD_OK;
}

umd_status umdi_preprocess(const umdi_preprocessing *spec, const umd_allocator *allocator,
                           const umd_pixels *pixels, umdi_check_function check, void *context,
                           umdi_picture *picture, float *values)
{
    work w;
    umd_status status;
    memset(&w, 0, sizeof w);
    UMDI_TRY(umdi_window_init(&w.window, pixels));
    status = prepare(&w, spec, allocator);
    if (status == UMD_OK)
        status = run(&w, spec, check, context, picture, values);
    axis_free(&w.columns, allocator);
    axis_free(&w.rows, allocator);
    umdi_delete(allocator, w.narrow);
    umdi_delete(allocator, w.row);
    umdi_delete(allocator, w.totals);
    return status;
}
