/* Attention over pages of cached keys and values (Kwon et al. 2023), values in bf16: the kernels of attention_fwd.cuh with
 * tiles from pages of any type. */
#include "kernels/cuda/attention_fwd.cuh"

void flash_pages_fwd(kctx *c, const flash *f) { launch_forward<true>(c, f); }
void flash_pages_fwd_split(kctx *c, const flash *f, int64_t splits) { launch_forward_split<true>(c, f, splits); }
