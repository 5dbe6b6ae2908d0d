/* Products with a weight of any format: y += x W^T, dx += dy W, dW += dy^T x, and groups of projections.
 *
 * In fp32 (F32 operands, kctx.products F32) every output is the one chain of backend.h, so the bits are ref's.
 * Otherwise all operands are rounded to bf16 and multiplied on tensor cores with sums in fp32. A row of y or dx then
 * follows from that row alone: pieces of k are cut by the shape of W and by the size of the scratch, never by the
 * number of rows. A weight gradient's pieces are cut by its own shape and the number of rows.
 *
 * What must be made first, a weight's dense rows or a mat's rows in bf16, is made a panel at a time in kctx.scratch:
 * half of it for W, a quarter for rows of x or dy, the rest for what is small and for pieces of sums. */
#include "kernels/cuda/gemm.cuh"

static weight weight_of_mat(mat m) {
    CHECK(m.type == F32 && m.ld == m.cols, "an adapter's %ldx%ld with gaps", (long)m.rows, (long)m.cols);
    weight w = {&weight_formats[FMT_F32], m.rows, m.cols, 1, m.data, NULL};
    return w;
}

/* ---- forward ---- */

/* y = start + x W^T + h up^T */
typedef struct forward {
    mat y, x;
    const weight *w;
    bool add;
    const float *bias;
    mat h, up; /* data NULL: none */
} forward;

/* Few outputs and a long k (an adapter's A): there would be too few tiles, so k is cut, by the shape of W alone. */
static int pieces(int64_t n, int64_t k, dtype t) {
    return t == BF16 && n <= 64 && k >= 1024 ? (int)smaller(k / 512, 16) : 1;
}

/* rows of x whose operand and pieces of n sums fit the scratch */
static int64_t rows_at_a_time(const kctx *c, mat x, int splits, int64_t n, dtype t) {
    const int64_t most = mat_rows_fit(x, t, c->scratch_bytes / 4);
    if (splits == 1) return most;
    const int64_t cut = (int64_t)c->scratch_bytes / 8 / (splits * n * 4);
    CHECK(cut > 0, "%zu bytes of scratch", c->scratch_bytes);
    return smaller(most, cut);
}

static void forward_panel(kctx *c, const forward *f, room r, side x, side h, int64_t row, int64_t rows, dtype t) {
    product p = {};
    p.m = f->x.rows, p.n = rows, p.k[0] = f->w->cols;
    p.a[0] = x, p.b[0] = weight_side(c, &r, f->w, row, rows, t);
    if (f->h.data) {
        const weight up = weight_of_mat(f->up);
        p.k[1] = up.cols, p.a[1] = h, p.b[1] = weight_side(c, &r, &up, row, rows, t);
    }
    p.c = static_cast<char *>(f->y.data) + row * mat_bytes(f->y.type), p.type = f->y.type, p.cs = f->y.ld;
    p.add = f->add, p.bias = f->bias ? f->bias + row : NULL;
    p.splits = f->h.data ? 1 : pieces(f->w->rows, f->w->cols, t);
    if (p.splits > 1) p.part = static_cast<float *>(room_take(&r, (size_t)(p.splits * p.m * p.n) * sizeof(float)));
    multiply(c, &p, t);
}

static void forward_rows(kctx *c, const forward *f, dtype t) {
    room r = room_of(c);
    const side x = mat_side(c, &r, f->x, t), h = f->h.data ? mat_side(c, &r, f->h, t) : side{};
    const int64_t n = weight_rows_fit(f->w, t, c->scratch_bytes / 2);
    for (int64_t row = 0; row < f->w->rows; row += n)
        forward_panel(c, f, r, x, h, row, smaller(n, f->w->rows - row), t);
}

static void run_forward(kctx *c, const forward *f) {
    CHECK(f->x.cols == f->w->cols && f->y.cols == f->w->rows && f->x.rows == f->y.rows, "x %ldx%ld y %ldx%ld W %ldx%ld",
          (long)f->x.rows, (long)f->x.cols, (long)f->y.rows, (long)f->y.cols, (long)f->w->rows, (long)f->w->cols);
    const dtype t = product_type(c, f->x, f->y);
    const int64_t most = rows_at_a_time(c, f->x, pieces(f->w->rows, f->w->cols, t), f->w->rows, t);
    for (int64_t i = 0; i < f->x.rows; i += most) {
        const int64_t n = smaller(most, f->x.rows - i);
        forward part = *f;
        part.x = mat_rows(f->x, i, n), part.y = mat_rows(f->y, i, n);
        if (f->h.data) part.h = mat_rows(f->h, i, n);
        forward_rows(c, &part, t);
    }
}

extern "C" void weight_fwd_cuda(kctx *c, mat y, mat x, const weight *w) {
    forward f = {};
    f.y = y, f.x = x, f.w = w, f.add = true;
    run_forward(c, &f);
}

/* ---- backward ---- */

/* dx (+)= dy W */
static void backward_rows(kctx *c, mat dx, mat dy, const weight *w, bool add, dtype t) {
    room r = room_of(c);
    const side a = mat_side(c, &r, dy, t);
    const int64_t n = weight_rows_fit(w, t, c->scratch_bytes / 2);
    for (int64_t row = 0; row < w->rows; row += n) {
        room rest = r;
        product p = {};
        p.m = dx.rows, p.n = w->cols, p.k[0] = smaller(n, w->rows - row);
        p.a[0] = from_offset(a, row, t), p.b[0] = across(weight_side(c, &rest, w, row, p.k[0], t));
        p.c = dx.data, p.type = dx.type, p.cs = dx.ld, p.add = add || row;
        p.splits = pieces(p.n, p.k[0], t);
        if (p.splits > 1)
            p.part = static_cast<float *>(room_take(&rest, (size_t)(p.splits * p.m * p.n) * sizeof(float)));
        multiply(c, &p, t);
    }
}

static void run_backward(kctx *c, mat dx, mat dy, const weight *w, bool add) {
    CHECK(dx.cols == w->cols && dy.cols == w->rows && dx.rows == dy.rows && dx.type == F32,
          "dx %ldx%ld dy %ldx%ld W %ldx%ld", (long)dx.rows, (long)dx.cols, (long)dy.rows, (long)dy.cols, (long)w->rows,
          (long)w->cols);
    const dtype t = product_type(c, dx, dy);
    const int64_t most = rows_at_a_time(c, dy, pieces(w->cols, w->rows, t), w->cols, t);
    for (int64_t i = 0; i < dy.rows; i += most) {
        const int64_t n = smaller(most, dy.rows - i);
        backward_rows(c, mat_rows(dx, i, n), mat_rows(dy, i, n), w, add, t);
    }
}

extern "C" void weight_bwd_cuda(kctx *c, mat dx, mat dy, const weight *w) { run_backward(c, dx, dy, w, true); }

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
    multiply(c, &p, t);
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
    for (int i = 0; i < p->n; i++) {
        const forward f = {p->y[i], p->x, p->w[i], false, p->bias[i], p->h[i], p->up[i]};
        run_forward(c, &f);
    }
}

extern "C" void proj_bwd_cuda(kctx *c, const proj_bwd_args *p) {
    bool add = !p->fresh;
    for (int i = 0; i < p->n; i++) {
        if (!p->dy[i].data) continue;
        run_backward(c, p->dx, p->dy[i], p->w[i], add);
        add = true;
    }
    if (p->dh.data) {
        const weight down = weight_of_mat(p->down);
        run_backward(c, p->dx, p->dh, &down, add);
        add = true;
    }
    for (int64_t i = 0; !add && i < p->dx.rows; i++)
        c->be->zero(c, mat_row(p->dx, i), (size_t)p->dx.cols * sizeof(float));
}
