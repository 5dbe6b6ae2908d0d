#!/bin/bash
# The NEON build on a machine that is no Arm: a cross build, the tests of kernels, formats, gradients and training under
# qemu, and one training run in both builds, whose adapters must be the same file. Closes with "N passed, N failed".
#
#   scripts/test-neon.sh        JOBS, CROSS_CC (aarch64-linux-gnu-gcc) and TEST_TIMEOUT (seconds a test) as for make
set -eu
cd "$(dirname "$0")/.."
build=build/aarch64
sysroot=$PWD/$build/sysroot
libraries=$sysroot/usr/lib/aarch64-linux-gnu
tests="test_core test_formats test_reference test_kernels test_gemm test_int8 test_ops test_optim test_train"
scripts/sysroot-arm64.sh "$sysroot"
# shellcheck disable=SC2086
env -u MAKEFLAGS -u MFLAGS make -s -j"${JOBS:-$(nproc)}" ARCH=aarch64 LINE=plain BUILD=$build CC="${CROSS_CC:-aarch64-linux-gnu-gcc}" \
    EXTRA_CFLAGS="-isystem $sysroot/usr/include" EXTRA_LDFLAGS="-L$libraries -Wl,-rpath-link,$libraries" \
    $build/bin/train $(printf "$build/tests/%s " $tests)

export RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=$libraries"
rc=0
scripts/run-tests.sh $build | tee $build/tests.log | grep -v ' passed, [0-9]* failed$' || true
read -r passed _ failed _ <<<"$(tail -n 1 $build/tests.log)"

run=$build/run
rm -rf $run && mkdir -p $run
cat >$run/train.yaml <<'YAML'
base_model: tests/golden/tiny_llama
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.1
lora_target_linear: true
datasets: [{path: tests/golden/tiny_train/rows.jsonl, type: tokenized}]
sequence_len: 64
sample_packing: true
micro_batch_size: 2
learning_rate: 1e-3
max_steps: 6
YAML
./train $run/train.yaml --output_dir=$run/native >$run/native.log 2>&1 || rc=1
$RUNNER $build/bin/train $run/train.yaml --output_dir=$run/neon >$run/neon.log 2>&1 || rc=1
if [ $rc = 0 ] && grep -q '(.*neon,' $run/neon.log && cmp $run/native/adapter_model.safetensors $run/neon/adapter_model.safetensors; then
    passed=$((passed + 1))
    echo "  ok    the adapter of NEON is that of this machine: $(sha256sum <$run/neon/adapter_model.safetensors | cut -c1-16)"
else
    failed=$((failed + 1))
    echo "  FAIL  the adapter of NEON is not that of this machine; logs: $run/*.log"
    tail -n 3 $run/native.log $run/neon.log
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
