#!/bin/sh
# Make every reference again, for the default model and for the tiny one. A minute or two on two cores.
#   PYTHON=python3 tests/reference/make_all.sh          the tiny model is made only where it is missing
#   TINY=1 tests/reference/make_all.sh                  the tiny model too
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
scripts=tests/reference
fixtures=tests/fixtures
tiny=$fixtures/tiny-sd15
if [ -n "${TINY:-}" ] || [ ! -f "$tiny/model_index.json" ]; then
    "$python" $scripts/tiny_sd15.py $tiny --tokenizer models/atelier/tokenizer
fi
for folder in models/atelier $tiny; do
    model=$(basename $folder)
    "$python" $scripts/networks.py $folder $fixtures/$model-networks.safetensors \
        --intermediates build/reference/$model-intermediates.safetensors
    "$python" $scripts/paint.py $folder $fixtures/$model-paint.safetensors
    "$python" $scripts/learning_step.py $folder $fixtures/$model-learning.safetensors
done
"$python" $scripts/tokens.py models/atelier/tokenizer
"$python" $scripts/soft_edges.py
"$python" $scripts/resize.py
"$python" $scripts/controls.py
"$python" $scripts/blip.py
"$python" $scripts/multi_control.py $tiny $fixtures/tiny-sd15-controls.safetensors
for script in checkpoints ldm_names single_file loras clip_tokens; do
    "$python" $scripts/$script.py
done
"$python" $scripts/learning_options.py $tiny $fixtures/tiny-sd15-options.safetensors
"$python" $scripts/style_files.py
"$python" $scripts/solvers.py $fixtures/solvers.safetensors
"$python" $scripts/tiny_vae.py
