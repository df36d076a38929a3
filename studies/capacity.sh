#!/usr/bin/env bash
# The study of docs/capacity.md, into studies/capacity.csv; it goes on from the rows that are there. About an hour and a
# half on two cores.
set -euo pipefail
cd "$(dirname "$0")"

capacity() {
    fwm-py capacity --out capacity.csv "$@"
}

loads=0.5,0.75,1,1.5,2
seeds=1,2,3,4,5
for writes in '--rule sum,delta' '--rule delta --replace'; do
    capacity $writes --feature_map elu1,dpfp1 --hidden_size 8,16,32,64 --load $loads,4 --seed $seeds
    capacity $writes --feature_map dpfp2 --hidden_size 8,16,32 --load $loads,4 --seed $seeds
    capacity $writes --feature_map dpfp3 --hidden_size 8,16 --load $loads,4 --seed $seeds
done
capacity --rule sum,delta --feature_map favor16,favor64 --hidden_size 16 --load $loads --seed $seeds
capacity --rule sum,delta --feature_map favor16,favor64 --hidden_size 16 --load $loads --seed $seeds --redraw never
capacity --rule softmax --hidden_size 4,8,16 --n_keys 32,64,128,256 --seed $seeds
capacity --rule fwm --feature_map elu1,dpfp1,dpfp2,dpfp3 --hidden_size 16 --load $loads --seed $seeds
for writes in '--rule sum,delta' '--rule delta --replace'; do # 192, 256 and 384 features
    capacity $writes --feature_map dpfp3 --hidden_size 32 --load $loads --seed $seeds
    capacity $writes --feature_map dpfp2,dpfp3 --hidden_size 64 --load $loads --seed 1,2,3
done
