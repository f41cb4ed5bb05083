#!/usr/bin/env bash
# The ablation of the pair Qwen2.5-Coder 1.5B + 0.5B on GSM8K development problems; see README.md.
# Usage: run.sh calibrate|accuracy [ROW…]|latency|table
#
# FORERUN names the program, DATA the problems, STATE the folder everything is kept in. Whatever
# was broken off goes on with the same command.
set -euo pipefail
forerun=${FORERUN:-forerun} data=${DATA:?the JSON lines of the problems} state=${STATE:?a folder}
mkdir -p "$state"
all=(--pair qwen2.5-coder --data "$data" --temperature 0 --concurrency 8)

# Rows in the order they are measured: if there is no time for all, the last ones are left out.
# First those with replies of their own; the others say what one of these says.
names=()
declare -A flags
row() { names+=("$1"); flags[$1]=$2; }
judged="--policy specreason --threshold 7 --score greedy"
sampled="--temperature 0.6 --top-p 0.95 --seed 1"
row "base" "--policy base"
row "specreason" "$judged --judge turn"
row "specreason, short judge" "$judged --judge prefix"
row "draft" "--policy draft"
row "specreason, steps merged" "$judged --judge turn --merge-tokens 32"
row "spec-decode (n-gram)" "--policy spec-decode --proposer ngram --window 8"
row "spec-decode (draft)" "--policy spec-decode --proposer draft --window 4"
row "spec-decode (draft), all ids" "--policy spec-decode --proposer draft --window 4 --draft-vocab all"
row "specreason+decode" "--policy specreason+decode --threshold 7 --score greedy --judge turn --proposer ngram --window 8"
row "specreason+decode+salvage" "${flags[specreason+decode]} --salvage"
row "specreason+decode+salvage+draft-ahead" "${flags[specreason+decode+salvage]} --draft-ahead 1"
row "base, sampled" "--policy base $sampled"
row "spec-decode (n-gram), sampled" "${flags[spec-decode (n-gram)]} $sampled"
row "specreason, sampled" "${flags[specreason]} $sampled"
tuned=$state/tuned.json
if [[ -f $tuned ]]; then
  row "calibrated" "--tuned $tuned"
fi

# Problems 101 to 200 under the named rows.
evaluate() { # FLAGS… -- ROW…
  local more=() rows=() name
  while [[ $1 != -- ]]; do more+=("$1"); shift; done
  shift
  for name in "$@"; do rows+=(--row "$name=${flags[$name]}"); done
  "$forerun" eval "${all[@]}" --token-budget 512 --offset 100 --limit 100 --out "$state/state.jsonl" "${more[@]}" "${rows[@]}"
}

case ${1:-} in
  # Problems 1 to 100 choose the last row.
  calibrate)
    "$forerun" calibrate "${all[@]}" --limit 100 --timed 8 --out "$state/calibrate.jsonl" --save "$tuned" ;;
  # Row by row, so that those that are there are complete. Times mean nothing here.
  accuracy)
    shift
    if (($#)); then names=("$@"); fi
    for name in "${names[@]}"; do evaluate -- "$name" >"$state/last.md"; done ;;
  # On a machine with nothing else to do: 25 problems alone, all greedy rows that have replies.
  latency)
    timed=()
    for name in "${names[@]}"; do
      if [[ $name != *sampled ]] && grep -qF "\"row\":\"$name\"" "$state/state.jsonl"; then timed+=("$name"); fi
    done
    evaluate --timed 25 -- "${timed[@]}" >"$state/latency.md" ;;
  # Rows that are complete, from what is there: nothing runs.
  table)
    complete=()
    for name in "${names[@]}"; do
      problems=$(grep -F "\"row\":\"$name\"" "$state/state.jsonl" | grep -o '^{"id":"[^"]*"' | sort -u | wc -l) || true
      if ((problems >= 100)); then complete+=("$name"); fi
    done
    evaluate -- "${complete[@]}" | tee "$state/table.md" ;;
  *) sed -n 's/^# Usage: //p' "$0" >&2; exit 2 ;;
esac
