#!/bin/sh
# Learn the styles that ship with the default model, from pictures its training never saw.
#   models/styles.sh PLEINAIR OUT STAGES STEPS
# The last line of each lesson gives the validation loss with the initial word and with the learned style.
set -eu
pleinair=$1 out=$2 stages=$3 steps=$4
pictures=$(dirname "$0")/atelier/samples/style
mkdir -p "$out"

lesson() { # NAME PICTURE CONTEXT
    printf '%s, T = %s: ' "$1" "$stages"
    "$pleinair" learn --name "$1" --image "$pictures/$2" --context "$3" --stages "$stages" --steps "$steps" --lr 0.01 \
        --license Apache-2.0 --out "$out/$1.safetensors" 2>&1 | grep 'validation loss'
}

lesson stained-glass render_stained_glass_mountain2.png 'a painting of mountain, in the style of {}'
lesson hiroshige gc_8.jpg 'a painting of a house by the water, in the style of {}'
lesson cafe-terrace gcd_board6.jpg 'a painting of a street at night, in the style of {}'
