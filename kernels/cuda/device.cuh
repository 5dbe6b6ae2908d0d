/* A device's state: what kctx.mem points to. One process has one device. */
#ifndef PEFT_KERNELS_CUDA_DEVICE_CUH
#define PEFT_KERNELS_CUDA_DEVICE_CUH

#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/device.h"
}

enum { STAGES = 8 };

enum { GRAPHS = 8 };

/* Work kept under a key (graph.cu). exec NULL: the key was seen once, or there is no memory for it (refused). */
typedef struct graph {
    uint64_t key;
    bool refused;
    cudaGraphExec_t exec;
    char *puts;   /* pinned, MEMORY_RECORDED bytes; where the recorded copies read */
    size_t bytes; /* that they are together */
} graph;

typedef struct device {
    memory mem; /* first: kctx.mem is this struct */
    cudaStream_t stream;
    cudaEvent_t posted[MEMORY_SLOTS];
    char *stage; /* pinned, DEVICE_STAGE bytes in STAGES parts that are filled in turn */
    cudaEvent_t staged[STAGES];
    size_t used; /* of the part that is being filled */
    int part;
    void *blas, *workspace;
    graph graphs[GRAPHS];
    int n_graphs;
    graph *now;      /* between record and play */
    memory_run mode; /* of it */
    size_t put;      /* bytes put so far */
    int capability;  /* 10 * major + minor */
    int way;         /* of products with weights, from $PEFT_CUDA_PRODUCTS; -1: by the model of choice.cu */
} device;

int device_open(kctx *c); /* backend.h's open and close */
void device_close(kctx *c);

static inline device *device_of(const kctx *c) { return reinterpret_cast<device *>(c->mem); }

memory_run graph_record(memory *m, uint64_t key); /* memory.h's record and play */
void graph_play(memory *m);
bool graph_put(device *d, void *to, const void *from, size_t bytes); /* false: no graph is recorded or replayed */
void graph_close(device *d);

int way_named(const char *name); /* choice.cu; -1 where name is NULL or no way */

/* cuBLAS (blas.cu): queues on the device's stream. Its order of summation depends on shapes: not a function of the row.
 */
int blas_open(device *d); /* -1 after fail() */
void blas_close(device *d);
/* y [m, n] (+)= A B^T: a is [m, k] (across: stored [k, m]), b is [n, k] (across: stored [k, n]), both BF16 or both F32;
 * y F32, or BF16 with BF16 operands. Sums in fp32. */
void blas_product(const kctx *c, mat y, mat a, bool a_across, mat b, bool b_across, bool add);

#endif
