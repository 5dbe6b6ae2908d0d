/* The one symbol of the shared object: the table of all rows of kernels.def. DEVICE_NAME: "cuda" or "emu", from the
 * build. */
#include "kernels/cuda/device.cuh"

extern "C" {
#include "kernels/plugin.h"

extern const plugin peft_plugin __attribute__((visibility("default")));
}

static const backend here = {
    DEVICE_NAME,
    device_open,
    device_close,
#define K(name, args) name##_cuda,
#include "kernels/kernels.def"
#undef K
};

const plugin peft_plugin = {plugin_rows, plugin_sizes, sizeof plugin_sizes / sizeof *plugin_sizes, &here};
