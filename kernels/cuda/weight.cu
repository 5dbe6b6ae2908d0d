/* Products with a weight of any format: y += x W^T, dx += dy W, dW += dy^T x, and groups of projections.
 *
 * In fp32 (F32 operands, kctx.products F32) every output is the one chain of backend.h, so the bits are ref's.
 * Otherwise all operands are rounded to bf16 and multiplied on tensor cores with sums in fp32, in one of the ways of
 * choice.cuh. But for the library's a row of y or dx then follows from that row alone, as long as its batch goes the
 * same way: pieces of k are cut by the shape of W and by the size of the scratch, never by the number of rows (STORED:
 * up to 64 rows and more than 64 are two ways). A weight gradient's pieces are cut by its own shape and the number of
 * rows.
 *
 * What must be made first, a weight's dense rows or a mat's rows in bf16, is made a panel at a time in kctx.scratch:
 * half of it for W, a quarter for rows of x or dy, the rest for what is small and for pieces of sums. */
#include "kernels/cuda/choice.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_quant.cuh"
#include "kernels/cuda/gemv.cuh"

/* forward: c = start + a W^T + a2 w2^T (y, x, h, B); back: c = start + a W + a2 w2 (dx, dy, dh, A) */
typedef struct linear {
    bool back, add;
    mat c, a;
    const weight *w;
    const float *bias;
    mat a2, w2; /* data NULL: none; w2 F32 without gaps */
    int pieces; /* of k, in the way that it goes; of the whole call's rows, which may come in parts */
    bool rounds; /* back: c may be of bf16, which is rounded here once more */
} linear;

static int64_t outputs(const linear *l) { return l->back ? l->w->cols : l->w->rows; }
static int64_t depth(const linear *l) { return l->back ? l->w->rows : l->w->cols; }
static int64_t rank_of(const linear *l) { return l->a2.data ? l->a2.cols : 0; }

static weight weight_of_mat(mat m) {
    CHECK(m.type == F32 && m.ld == m.cols, "an adapter's %ldx%ld with gaps", (long)m.rows, (long)m.cols);
    weight w = {&weight_formats[FMT_F32], m.rows, m.cols, 1, m.data, NULL};
    return w;
}

static void take_pieces(product *p, room *r, int splits) {
    p->splits = splits;
    if (splits > 1) p->part = static_cast<float *>(room_take(r, (size_t)(splits * p->m * p->n) * sizeof(float)));
}

/* the product but for its operands: C's columns [at, at + n) */
static product product_of(const linear *l, int64_t at, int64_t n) {
    product p = {};
    p.m = l->c.rows, p.n = n, p.c = static_cast<char *>(l->c.data) + at * mat_bytes(l->c.type);
    p.type = l->c.type, p.cs = l->c.ld, p.add = l->add, p.bias = l->bias ? l->bias + at : NULL;
    return p;
}

/* ---- by panels ---- */

/* Few outputs and a long k (an adapter's A): there would be too few tiles, so k is cut, by the shape of W alone. */
static int panel_pieces(const linear *l, dtype t) {
    const bool cut = t == BF16 && outputs(l) <= 64 && depth(l) >= 1024 && !l->a2.data;
    return cut ? (int)smaller(depth(l) / 512, 16) : 1;
}

/* rows [row, row + rows) of W: outputs, or, back, a piece of k whose last one w2 follows */
static void panel_rows(kctx *c, const linear *l, room r, side a, side a2, int64_t row, int64_t rows, dtype t) {
    product p = l->back ? product_of(l, 0, outputs(l)) : product_of(l, row, rows);
    p.a[0] = l->back ? from_offset(a, row, t) : a, p.k[0] = l->back ? rows : l->w->cols;
    p.b[0] = weight_side(c, &r, l->w, row, rows, t), p.b[0].across = l->back;
    if (l->back && row) p.add = true;
    if (l->a2.data && (!l->back || row + rows == l->w->rows)) {
        const weight w2 = weight_of_mat(l->w2);
        p.k[1] = l->a2.cols, p.a[1] = a2;
        p.b[1] = weight_side(c, &r, &w2, l->back ? 0 : row, l->back ? w2.rows : rows, t), p.b[1].across = l->back;
    }
    take_pieces(&p, &r, l->pieces);
    multiply(c, &p, t);
}

static void by_panels(kctx *c, const linear *l, dtype t) {
    room r = room_of(c);
    const side a = mat_side(c, &r, l->a, t), a2 = l->a2.data ? mat_side(c, &r, l->a2, t) : side{};
    const int64_t n = weight_rows_fit(l->w, t, c->scratch_bytes / 2);
    for (int64_t row = 0; row < l->w->rows; row += n) panel_rows(c, l, r, a, a2, row, smaller(n, l->w->rows - row), t);
}

/* ---- dequantised inside the product ---- */

static void by_stored(kctx *c, const linear *l, dtype t) {
    room r = room_of(c);
    product p = product_of(l, 0, outputs(l));
    p.k[0] = depth(l), p.a[0] = mat_side(c, &r, l->a, t), p.b[0].across = l->back;
    if (l->a2.data) {
        p.k[1] = l->a2.cols, p.a[1] = mat_side(c, &r, l->a2, t);
        p.b[1] = side{l->w2.data, l->w2.ld, l->back};
    }
    take_pieces(&p, &r, l->pieces);
    product_quant(c, &p, l->w);
}

/* ---- by cuBLAS ---- */

/* One product rounds once: a second piece and the bias become more of k, [a | a2 | 1 1] and [W | w2 | bias], the bias
 * as the sum of two numbers of bf16. */
static int64_t joint_width(const linear *l) { return round_up(depth(l) + rank_of(l) + (l->bias ? 2 : 0), 8); }
static bool joined(const linear *l) { return l->a2.data || l->bias; }

static mat joint_rows(kctx *c, room *r, const linear *l) {
    if (!joined(l)) {
        const side s = mat_side(c, r, l->a, BF16);
        mat m = mat_of(const_cast<void *>(s.data), BF16, l->a.rows, l->a.cols);
        m.ld = s.ld;
        return m;
    }
    const int64_t ld = joint_width(l), k = depth(l), used = k + rank_of(l);
    bf16 *p = static_cast<bf16 *>(room_take(r, (size_t)(l->a.rows * ld) * sizeof(bf16)));
    panel_of_mat(c, l->a, p, ld);
    if (l->a2.data) panel_of_mat(c, l->a2, p + k, ld);
    panel_tail(c, p + used, ld, l->a.rows, ld - used, l->bias ? PANEL_ONES : PANEL_ZEROS, NULL);
    return mat_of(p, BF16, l->a.rows, ld);
}

/* forward: rows [row, row + rows) of [W | w2 | bias] */
static mat joint_outputs(kctx *c, room *r, const linear *l, int64_t row, int64_t rows) {
    if (!joined(l)) {
        const side s = weight_side(c, r, l->w, row, rows, BF16);
        mat m = mat_of(const_cast<void *>(s.data), BF16, rows, l->w->cols);
        m.ld = s.ld;
        return m;
    }
    const int64_t ld = joint_width(l), k = l->w->cols, used = k + rank_of(l);
    bf16 *p = static_cast<bf16 *>(room_take(r, (size_t)(rows * ld) * sizeof(bf16)));
    panel_of_weight(c, l->w, row, rows, p, BF16, ld);
    if (l->a2.data) panel_of_mat(c, mat_rows(l->w2, row, rows), p + k, ld);
    panel_tail(c, p + used, ld, rows, ld - used, l->bias ? PANEL_BIAS : PANEL_ZEROS, l->bias ? l->bias + row : NULL);
    return mat_of(p, BF16, rows, ld);
}

/* back: rows [row, row + rows) of W, behind the last of which w2 and zeros follow, `all` rows in all */
static mat joint_depth(kctx *c, room *r, const linear *l, int64_t row, int64_t rows, int64_t all) {
    const int64_t n = l->w->cols;
    bf16 *p = static_cast<bf16 *>(room_take(r, (size_t)(all * n) * sizeof(bf16)));
    panel_of_weight(c, l->w, row, rows, p, BF16, n);
    if (all > rows) {
        panel_of_mat(c, l->w2, p + rows * n, n);
        panel_tail(c, p + (rows + rank_of(l)) * n, n, all - rows - rank_of(l), n, PANEL_ZEROS, NULL);
    }
    return mat_of(p, BF16, all, n);
}

static void by_library(kctx *c, const linear *l, dtype) {
    room r = room_of(c);
    const mat a = joint_rows(c, &r, l);
    const int64_t n =
        smaller((int64_t)(c->scratch_bytes / 2) / (round_up(l->w->cols + 2, 8) + rank_of(l) + 16) / 2, l->w->rows);
    CHECK(n > 0, "%zu bytes of scratch", c->scratch_bytes);
    for (int64_t row = 0; row < l->w->rows; row += n) {
        const int64_t rows = smaller(n, l->w->rows - row);
        const bool last = row + rows == l->w->rows;
        room rest = r;
        if (!l->back) {
            const mat b = joint_outputs(c, &rest, l, row, rows);
            blas_product(c, mat_cols(l->c, row, rows), a, false, b, false, l->add);
            continue;
        }
        const int64_t all = last && l->a2.data ? a.cols - row : rows;
        const mat b = joint_depth(c, &rest, l, row, rows, all);
        blas_product(c, l->c, mat_cols(a, row, all), false, b, true, l->add || row);
    }
}

/* ---- a few rows ---- */

/* Members l[0, n) share a and the format of their weights. */
static void by_few_rows(kctx *c, const linear *l, int n) {
    room r = room_of(c);
    gemv_group q = {};
    const side a = mat_side(c, &r, l->a, BF16);
    q.x = mat_of(const_cast<void *>(a.data), BF16, l->a.rows, l->a.cols);
    q.x.ld = a.ld, q.n = n;
    for (int i = 0; i < n; i++) {
        const gemv_member m = {view_of(l[i].w), l[i].c, l[i].bias, l[i].a2, l[i].w2, l[i].add, 0};
        q.member[i] = m;
    }
    gemv_run(c, &q, l->w);
}
static void by_few(kctx *c, const linear *l, dtype) { by_few_rows(c, l, 1); }

/* ---- all of them ---- */

static void (*const ways[WAYS])(kctx *, const linear *, dtype) = {by_few, by_stored, by_panels, by_library};

static way way_for(const kctx *c, const linear *l, dtype t) {
    const way_question q = {l->w, l->a.rows, l->back};
    return t == F32 || l->w->fmt->id == FMT_F32 ? WAY_PANEL : way_of(c, &q);
}

/* rows whose operand and pieces of sums fit the scratch */
static int64_t rows_at_a_time(const kctx *c, const linear *l, way v, dtype t) {
    const size_t share = c->scratch_bytes / 4;
    int64_t most = mat_rows_fit(l->a, t, share);
    if (v == WAY_LIBRARY && joined(l)) most = smaller(l->a.rows, (int64_t)share / (joint_width(l) * 2));
    if (l->pieces > 1) most = smaller(most, (int64_t)share / (l->pieces * outputs(l) * 4));
    CHECK(most > 0, "%zu bytes of scratch for a product with %ldx%ld", c->scratch_bytes, (long)l->w->rows,
          (long)l->w->cols);
    return most;
}

static void check_shapes(const linear *l) {
    CHECK(l->a.cols == depth(l) && l->c.cols == outputs(l) && l->a.rows == l->c.rows && (!l->back || l->rounds || l->c.type == F32),
          "%ldx%ld times %s %ldx%ld into %ldx%ld of type %d", (long)l->a.rows, (long)l->a.cols, l->w->fmt->name,
          (long)l->w->rows, (long)l->w->cols, (long)l->c.rows, (long)l->c.cols, (int)l->c.type);
}

static void run(kctx *c, const linear *l) {
    check_shapes(l);
    const dtype t = product_type(c, l->a, l->c);
    const way v = way_for(c, l, t);
    linear part = *l;
    part.pieces = v == WAY_STORED ? quant_pieces(l->w, l->a.rows, l->back) : v == WAY_PANEL ? panel_pieces(l, t) : 1;
    const int64_t most = rows_at_a_time(c, &part, v, t);
    for (int64_t i = 0; i < l->a.rows; i += most) {
        const int64_t n = smaller(most, l->a.rows - i);
        part.a = mat_rows(l->a, i, n), part.c = mat_rows(l->c, i, n);
        if (l->a2.data) part.a2 = mat_rows(l->a2, i, n);
        ways[v](c, &part, t);
    }
}

extern "C" void weight_fwd_cuda(kctx *c, mat y, mat x, const weight *w) {
    linear l = {};
    l.add = true, l.c = y, l.a = x, l.w = w;
    run(c, &l);
}

extern "C" void weight_bwd_cuda(kctx *c, mat dx, mat dy, const weight *w) {
    linear l = {};
    l.back = l.add = true, l.c = dx, l.a = dy, l.w = w;
    run(c, &l);
}

/* ---- gradients of what is trained ---- */

enum { TILES_WANTED = 256, PIECE_ROWS = 256 };

/* dW += dy^T x over rows that fit the scratch as operands */
static void grad_rows(kctx *c, mat dw, mat dy, mat x, dtype t) {
    room r = room_of(c);
    product p = {};
    p.m = dw.rows, p.n = dw.cols, p.k[0] = x.rows;
    p.a[0] = across(mat_side(c, &r, dy, t)), p.b[0] = across(mat_side(c, &r, x, t));
    p.c = dw.data, p.type = dw.type, p.cs = dw.ld, p.add = true;
    if (t == BF16) {
        const int64_t tiles = ceil_div(p.m, 128) * ceil_div(p.n, 128), fit = (int64_t)room_left(&r) / (p.m * p.n * 4);
        const int64_t wanted = smaller(ceil_div(TILES_WANTED, tiles), p.k[0] / PIECE_ROWS);
        p.splits = (int)smaller(smaller(wanted, fit), 32);
    }
    if (p.splits > 1) p.part = static_cast<float *>(room_take(&r, (size_t)(p.splits * p.m * p.n) * sizeof(float)));
    multiply_large(c, &p, t);
}

extern "C" void weight_grad_cuda(kctx *c, mat dw, mat dy, mat x) {
    CHECK(dw.rows == dy.cols && dw.cols == x.cols && dy.rows == x.rows && dw.type == F32,
          "dW %ldx%ld dy %ldx%ld x %ldx%ld", (long)dw.rows, (long)dw.cols, (long)dy.rows, (long)dy.cols, (long)x.rows,
          (long)x.cols);
    const dtype t = product_type(c, x, dy);
    const int64_t most = smaller(mat_rows_fit(dy, t, c->scratch_bytes / 4), mat_rows_fit(x, t, c->scratch_bytes / 4));
    for (int64_t i = 0; i < x.rows; i += most) {
        const int64_t n = smaller(most, x.rows - i);
        grad_rows(c, dw, mat_rows(dy, i, n), mat_rows(x, i, n), t);
    }
}

/* ---- groups of projections ---- */

extern "C" void proj_fwd_cuda(kctx *c, const proj_fwd_args *p) {
    linear l[PROJ_MAX];
    for (int i = 0; i < p->n; i++) {
        l[i] = linear{false, false, p->y[i], p->x, p->w[i], p->bias[i], p->h[i], p->up[i], 1};
        check_shapes(&l[i]);
    }
    for (int i = 0, n; i < p->n; i += n) { /* neighbours of one format that go the way of few rows go it together */
        const dtype t = product_type(c, p->x, p->y[i]);
        const bool few = way_for(c, &l[i], t) == WAY_FEW;
        for (n = 1; few && i + n < p->n && l[i + n].w->fmt == l[i].w->fmt && way_for(c, &l[i + n], t) == WAY_FEW;) n++;
        if (few)
            by_few_rows(c, l + i, n);
        else
            run(c, &l[i]);
    }
}

void lora_product(kctx *c, const lora_fwd_args *a, const lora_item *it) {
    const lora_part *p = it->part;
    const mat h = mat_f32(it->h, it->rows, p->down.cols);
    linear l = {};
    l.back = true, l.c = h, l.a = mat_rows(a->x, it->row, it->rows), l.w = &p->down;
    run(c, &l);
    c->be->scale(c, h, h, it->scale);
    l.add = l.rounds = true;
    for (int i = 0; i < a->n; i++) {
        if (!p->up[i].rows || !a->y[i].data) continue;
        l.c = mat_rows(a->y[i], it->row, it->rows), l.a = mat_cols(h, p->at[i], p->up[i].rows), l.w = &p->up[i];
        run(c, &l);
    }
}

extern "C" void proj_bwd_cuda(kctx *c, const proj_bwd_args *p) {
    linear l = {};
    int last = -1;
    for (int i = 0; i < p->n; i++)
        if (p->dy[i].data) last = i;
    l.back = true, l.add = !p->fresh, l.c = p->dx;
    for (int i = 0; i <= last; i++) {
        if (!p->dy[i].data) continue;
        l.a = p->dy[i], l.w = p->w[i];
        if (i == last) l.a2 = p->dh, l.w2 = p->down;
        run(c, &l);
        l.add = true;
    }
    if (last < 0 && p->dh.data) {
        const weight down = weight_of_mat(p->down);
        l.a = p->dh, l.w = &down;
        run(c, &l);
        return;
    }
    for (int64_t i = 0; !l.add && i < p->dx.rows; i++)
        c->be->zero(c, mat_row(p->dx, i), (size_t)p->dx.cols * sizeof(float));
}
