#!/usr/bin/env bash
# The study of docs/capacity.md, into studies/capacity.csv; it goes on from the rows that are there.
set -euo pipefail
cd "$(dirname "$0")"

capacity() {
    fwm-py capacity --out capacity.csv "$@"
}

trained() { # loads, more flags
    loads=$1
    shift
    capacity --feature_map elu1,dpfp1 --hidden_size 8,16,32,64 --load "$loads" --seed 1,2,3,4,5 "$@"
    capacity --feature_map dpfp2 --hidden_size 8,16,32 --load "$loads" --seed 1,2,3,4,5 "$@"
    capacity --feature_map dpfp3 --hidden_size 8,16 --load "$loads" --seed 1,2,3,4,5 "$@"
}

large() { # the same of 192, 256 and 384 features
    loads=$1
    shift
    capacity --feature_map dpfp3 --hidden_size 32 --load "$loads" --seed 1,2,3,4,5 "$@"
    capacity --feature_map dpfp2,dpfp3 --hidden_size 64 --load "$loads" --seed 1,2,3 "$@"
}

others() {
    capacity --rule sum,delta --feature_map favor16,favor64 --hidden_size 16 --load 0.5,0.75,1,1.5,2 --seed 1,2,3,4,5
    capacity --rule sum,delta --feature_map favor16,favor64 --hidden_size 16 --load 0.5,0.75,1,1.5,2 --seed 1,2,3,4,5 \
        --redraw never
    capacity --rule softmax --hidden_size 4,8,16 --n_keys 32,64,128,256 --seed 1,2,3,4,5
}

fwm() { # by its right answers
    capacity --rule fwm --feature_map tanh,elu1,dpfp1,dpfp2,dpfp3 --hidden_size 16 --load 0.5,0.75,1,1.5,2 --seed 1,2,3
}

trained 2 --rule sum,delta
trained 2 --rule delta --replace
large 2 --rule sum,delta
others
trained 0.5,0.75,1,1.5 --rule sum,delta
trained 0.5,0.75,1,1.5 --rule delta --replace
fwm
trained 4 --rule sum,delta
trained 4 --rule delta --replace
large 0.5,0.75,1,1.5 --rule sum,delta
large 0.5,0.75,1,1.5,2 --rule delta --replace
