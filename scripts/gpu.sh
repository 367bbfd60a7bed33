#!/usr/bin/env bash
# A lent GPU machine, used whole: packs what must travel, then trains there (models/README.md, "A lent GPU").
#   scripts/gpu.sh pack AUDIO        here: recordings in parts that fit a transfer, their pitch, wheels, into .cache/gpu
#   scripts/gpu.sh take              there, once for each part that was carried: keeps it outside the checkout
#   scripts/gpu.sh train MINUTES     there: trains; checkpoints come back in $OUT
#   scripts/gpu.sh tokens MINUTES MINUTES   there: trains the token model and the draft of what `train` made
#   scripts/gpu.sh dry MINUTES       here: the same as `train`, on the CPU with small batches
set -euo pipefail
cd "$(dirname "$0")/.."
pack=${PACK:-.cache/gpu} # where what travels lies, here and there
there=/tmp/undertone-gpu
part_mib=${PART_MIB:-36} # with the tracked files this stays below the 64 MiB of a transfer

python() { PYTHONPATH="models${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" "$@"; }

# There: what was carried becomes a folder of recordings and an environment.
there_ready() {
  [ -d "$there/site" ] || python3 -m pip install -q --no-index --no-deps --target "$there/site" "$there"/wheels/*.whl
  export PYTHONPATH="$there/site" XDG_CACHE_HOME="$there/labels" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
  mkdir -p "$there/data" "$there/out"
  cp -ru "$there"/part* "$there/data/"
}

case "${1:-}" in
pack)
  audio=${2:?the folder of recordings to train on}
  rm -rf "$pack"
  mkdir -p "$pack"
  # The newest parts first: they hold most of the speakers, the noise and the rooms.
  find "$audio" -type f \( -name '*.opus' -o -name '*.flac' \) -printf '%h/%f\t%s\n' | sort -t/ -k1,99r |
    awk -F'\t' -v most=$((part_mib << 20)) -v parts="${PARTS:-3}" '
      { if (used + $2 > most) { part++; used = 0 } if (part < parts) { used += $2; print part + 1 "\t" $1 } }' |
    while IFS=$'\t' read -r part file; do
      mkdir -p "$pack/part$part"
      cp "$file" "$pack/part$part/"
    done
  # Some recordings to measure the token models on.
  mkdir -p "$pack/eval"
  find "$audio/../eval" -name 'speech*.flac' | sort | awk 'NR % 8 == 0' | xargs -I{} cp {} "$pack/eval/"
  # The pitch is tracked here: it takes minutes, and there every second is lent.
  XDG_CACHE_HOME="$PWD/$pack/labels" python - "$pack" <<'PY'
import sys
from pathlib import Path
from undertone_recipe.data import cache_dir, load_kind, load_pitch
for kind in ("speech", "music"):
    load_pitch(Path(sys.argv[1]), kind, load_kind(Path(sys.argv[1]), kind))
for decoded in cache_dir().glob("*.npy"):
    if not decoded.name.startswith("pitch-"):
        decoded.unlink()
PY
  # libsndfile, which reads Ogg Opus; the rest is on such machines.
  python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d "$pack/wheels" soundfile cffi pycparser
  du -sh "$pack"/*
  ;;
take)
  mkdir -p "$there"
  for part in "$pack"/*; do
    [ -e "$part" ] && cp -r "$part" "$there/"
  done
  du -sh "$there"/*
  ;;
train)
  there_ready
  python -m undertone_recipe train --config "${CONFIG:-models/configs/gpu.toml}" --data "$there/data" --from-model models/undertone-24k-v2 \
    --out "$there/out" --slim "$OUT/average.pt" --minutes "${2:?minutes}" --device cuda --workers 14 2>&1 | tee "$OUT/log.txt"
  cp "$OUT/average.pt" "$there/average.pt"
  ;;
tokens)
  there_ready
  python -m undertone_recipe export "$there/average.pt" "$there/model" 2>&1 | tee "$OUT/log.txt"
  cp "$there/model/"*.onnx "$OUT/"
  for size in target draft; do
    minutes=${2:?minutes}
    [ $size = draft ] && minutes=${3:?minutes of the draft}
    python -m undertone_recipe tokens "$there/model" --size $size --data "$there/data" --audio "$there/eval" --out "$OUT/$size.pt" \
      --minutes "$minutes" --hours "${HOURS:-6}" --device cuda --batch 64 --workers 14 2>&1 | tee -a "$OUT/log.txt"
  done
  ;;
dry)
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cp -r "$pack/labels/." "$work"
  export XDG_CACHE_HOME="$work" PYTHONUNBUFFERED=1
  sed 's/^batch = .*/batch = 4/; s/^segment_s = .*/segment_s = 0.64/; s/"bf16"/"auto"/' models/configs/gpu.toml >"$work/dry.toml"
  python -m undertone_recipe train --config "$work/dry.toml" --data "$pack" --from-model models/undertone-24k-v2 \
    --out "$pack/out" --slim "$pack/average.pt" --minutes "${2:?minutes}" --workers 1
  ;;
*)
  sed -n '2,7p' "$0" >&2
  exit 2
  ;;
esac
