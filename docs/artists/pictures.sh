#!/bin/sh
# Makes the pictures of docs/artists.md with the program and its default model: make artists-pictures
#   docs/artists/pictures.sh PLEINAIR WORK
set -eu
pleinair=$1 work=$2 docs=$(dirname "$0")
photo=$docs/../../models/atelier/samples/content/hills4.jpg
styles=$docs/../../models/atelier/styles
glass=$styles/stained-glass.safetensors print=$styles/hiroshige.safetensors
strength=0.7
mkdir -p "$work"

paint() { # NAME STYLE [OPTION ...]
    name=$1 style=$2
    shift 2
    "$pleinair" paint --content "$photo" --style "$style" --guidance 3 --strength "$strength" --size 256 --seed 3 "$@" --out "$work/$name.png"
}

mix() { # NAME STAGE ...
    name=$1
    shift
    for stage; do set -- "$@" --stage "$stage"; shift; done
    "$pleinair" mix "$@" --out "$work/$name.safetensors"
    paint "$name" "$work/$name.safetensors"
}

# one sheet a question
sheet() { # NAME COLUMNS CELL ...
    name=$1 columns=$2
    shift 2
    for cell; do set -- "$@" --cell "$cell"; shift; done
    "$pleinair" sheet "$@" --columns "$columns" --height 192 --out "$docs/$name.jpg"
}

paint nothing painting
paint all "$glass"
mix only-5-4 "5..4=$glass" "3..0=off"
mix only-3-2 "5..4=off" "3..2=$glass" "1..0=off"
mix only-1-0 "5..2=off" "1..0=$glass"
sheet stages 3 "photograph=$photo" "no stage: the bare word=$work/nothing.png" "all six=$work/all.png" \
    "only 5 and 4=$work/only-5-4.png" "only 3 and 2=$work/only-3-2.png" "only 1 and 0=$work/only-1-0.png"

paint print "$print"
mix glass-print "5..3=$glass" "2..0=$print"
mix print-glass "5..3=$print" "2..0=$glass"
mix half "5..0=$glass*0.5+$print*0.5"
sheet mixing 5 "stained glass=$work/all.png" "layout of glass, brush of print=$work/glass-print.png" "half of each=$work/half.png" \
    "layout of print, brush of glass=$work/print-glass.png" "Hiroshige's print=$work/print.png"

for strength in 0.4 0.6 0.8 1; do paint "strength-$strength" "$glass"; done
sheet strength 5 "photograph=$photo" "0.4=$work/strength-0.4.png" "0.6=$work/strength-0.6.png" "0.8=$work/strength-0.8.png" \
    "1=$work/strength-1.png"

"$pleinair" grid --content "$photo" --style "$glass" --prompt "a painting of hills, in the style of {}" --guidance 1 --strength 0.7 \
    --size 192 --seed 3 --style-strength 0,2,5 --content-strength 0,2,5 --out "$docs/guidance.jpg"
