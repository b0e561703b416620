#!/usr/bin/env bash
# Changes the kernels' source, one fault at a time, and asks that the emulated
# suite fails. One rebuild and run a fault: some minutes on two cores. The
# barriers and the waits are not here: tests/mutants.rs drops those itself.
#
#   scripts/kernel-mutants.sh [word]      the faults whose line has the word; default: all
#
# Works on a copy of the sources; the working tree is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."

# what is wrong | file | Perl substitution, which has to change the file
faults=$(cat <<'FAULTS'
down writes zeros (tensor cores)|forward_mma.cu|s/p\.keep_scale \* sum\[t\]\[2 \* half\];/0.0f;/
up adds zeros (tensor cores)|forward_mma.cu|s/out\[half\]\[c\] \*= p\.scale/out[half][c] = 0/
s is applied twice (tensor cores)|forward_mma.cu|s/out\[half\]\[c\] \*= p\.scale/out[half][c] *= p.scale * p.scale/
dy writes no dT (tensor cores)|backward_dy_mma.cu|s/p\.scale \* p\.keep_scale \* dts\[at\]/0.0f/
dx sums zeros into dC (tensor cores)|backward_dx_mma.cu|s/\*at \+ dc\[t\]\[e\] : dc\[t\]\[e\]/*at : 0.0f/
up adds zeros (general)|forward.cu|s/p\.scale \* sum, p\.accumulate/0.0f, p.accumulate/
merge adds zeros|merge.cu|s/factor \* bc\[e\]/0.0f/
A's indices are swapped|load.cuh|s/p\.a\[int64_t\(i\) \* p\.a_in \+ j\]/p.a[int64_t(j) * p.a_out + i]/
A is taken for a square|load.cuh|s/p\.a\[int64_t\(i\) \* p\.a_in \+ j\]/p.a[int64_t(i) * p.a_out % (p.a_out * p.a_in) + j]/
B's indices are swapped (up, tensor cores)|forward_mma.cu|s/p\.b\[int64_t\(b0 \+ n\) \* R \+ q\]/p.b[(int64_t(q) * p.b_out + b0 + n) % (int64_t(p.b_out) * R)]/
dC is stored transposed (tensor cores)|backward_dx_mma.cu|s/out \+ int64_t\(q\) \* p\.c_in \+ k/out + int64_t(k) * R + q/
a fragment's rows are swapped|mma.cuh|s/out\[0\]\[2 \* t\] = d\[t\]\[0\]/out[0][2 * t] = d[t][2]/
the swizzle of a read is off|mma.cuh|s/swizzled<COLS>\(m0 \+ lane % 16, chunk \+ lane \/ 16\)/swizzled<COLS>(m0 + lane % 16, chunk + lane \/ 16 * 0)/
s is left out of dA and dB|load.cuh|s/return p\.scale \* \(at < a_len/return (at < a_len/
κ is left out of dT|backward.cu|s/p\.scale \* p\.keep_scale \* sum/p.scale * sum/
dropout looks at the next column|load.cuh|s/\(keep_mask\(p, token, col \/ 8\) >> \(col % 8\)/(keep_mask(p, token, col \/ 8) >> ((col + 1) % 8)/
Philox has nine rounds|load.cuh|s/round < 10/round < 9/
the last part of a sum is left out|load.cuh|s/s < splits/s < splits - 1/
the last token is left out (dB, dC, general)|backward.cu|s/p\.rows - begin < p\.chunk_rows \? p\.rows - begin/p.rows - begin < p.chunk_rows ? p.rows - begin - 1/
dT is zero (few rows)|backward_few.cu|s/sum \*= p\.scale \* p\.keep_scale;/sum = 0;/
κ is left out of dT (few rows)|backward_few.cu|s/sum \*= p\.scale \* p\.keep_scale/sum *= p.scale/
dT forgets the rows of A of the turn before (few rows)|backward_few.cu|s/i0 == group\.begin \? sum/true ? sum/
dA loses a tile of q (few rows)|backward_few.cu|s/rows \* width; e \+= 32/(q0 ? 0 : rows * width); e += 32/
the last token is left out of dB (few rows)|backward_few.cu|s/\(i\.end - i\.begin\) \* p\.rows,/(i.end - i.begin) * p.rows - 1,/
the last part of a shared sum is left out (few rows)|load.cuh|s/\(splits - share\.lane \+/(splits - 1 - share.lane +/
lanes of a warp do not meet over a sum's parts (few rows)|load.cuh|s/mask >= width;/mask > width;/
a warp's share of a sum is left out (few rows)|load.cuh|s/for \(int at = thread; at < threads/for (int at = thread + width; at < threads/
a narrow block of up takes its neighbour's columns|forward_mma.cu|s/p\.b_out - first < p\.cols \? p\.b_out : first \+ p\.cols/p.b_out/
a narrow block of dy takes its neighbour's columns|backward_dy_mma.cu|s/p\.b_out - b0 < p\.cols \? p\.b_out : b0 \+ p\.cols/p.b_out/
a narrow block of dx takes its neighbour's columns|backward_dx_mma.cu|s/p\.c_in - k0 < p\.cols \? p\.c_in : k0 \+ p\.cols/p.c_in/
dC is stored transposed (few rows)|backward_few.cu|s/out\[q \* p\.c_in \+ k\] \+= sum/out[k * p.rank + q] += sum/
dX's second tile of rows is the first again (few rows)|backward_few.cu|s/m0 = row - q_end/m0 = 0 * (row - q_end)/
FAULTS
)
# A target folder of its own: cargo names a copy's outputs as it names the original's.
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/mutants
export CARGO_TARGET_DIR=$target
copy=$target/source
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do [ ! -e "$file" ] || cp -p --parents "$file" "$copy"; done
touch "$copy"/kernels/cuda/* # what was compiled with the last run's last fault is older

suite=(cargo test -q --locked -p kron-kernels --test conformance)
if ! (cd "$copy" && "${suite[@]}" fifo) > "$copy/log" 2>&1; then
  tail -n 20 "$copy/log"
  echo "the suite fails without a fault" >&2
  exit 1
fi
failed=0
while IFS='|' read -r what file change; do
  [[ $what == *${1:-}* ]] || continue
  path=kernels/cuda/$file
  perl -CSD -pe "$change" "$path" > "$copy/$path"
  if cmp -s "$path" "$copy/$path"; then
    echo "changes nothing: $what" && failed=1
  elif ! (cd "$copy" && "${suite[@]}" --no-run) > "$copy/log" 2>&1; then
    tail -n 20 "$copy/log" && echo "does not build: $what" && failed=1
  elif (cd "$copy" && "${suite[@]}" fifo) > "$copy/log" 2>&1; then
    echo "SURVIVED: $what" && failed=1
  else
    echo "killed: $what"
  fi
  cp "$path" "$copy/$path"
done <<< "$faults"
exit "$failed"
