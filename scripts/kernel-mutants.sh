#!/usr/bin/env bash
# Puts one fault at a time into the kernels' source and expects the emulated suite
# to fail. Each fault takes a build and a run: some minutes on two cores.
# Barriers and waits are covered by kernels/tests/mutants.rs.
#
#   scripts/kernel-mutants.sh [word]      only faults whose description contains the word; default: all
#   scripts/kernel-mutants.sh --check     only check that every substitution changes its file
#
# Works on a copy of the sources; the working tree is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."

# description | file | Perl substitution, which has to change the file
faults=$(cat <<'FAULTS'
down writes zeros (tensor cores)|kernels/forward_tensor_core.cu|s/\{p\.keep_scale \* sum\[t\]\[2 \* half\], .*\}/{0.0f, 0.0f}/
a longer slice loses its last stage (tensor cores)|kernels/forward_tensor_core.cu|s/width = p\.t_slice \+ longer \* COLS/width = p.t_slice/
slices behind longer ones start too early (tensor cores)|kernels/forward_tensor_core.cu|s/\(longer \? slice : p\.t_longer\) \* COLS/0/
T's parts are not added up for the backward pass (tensor cores)|kernels/forward_tensor_core.cu|s/load_sum4\(p\.t_parts \+ first \+ e, p\.t_splits/load_sum4(p.t_parts + first + e, 1/
up adds zeros (tensor cores)|kernels/forward_tensor_core.cu|s/out\[half\]\[c\] \*= p\.scale/out[half][c] = 0/
s is applied twice (tensor cores)|kernels/forward_tensor_core.cu|s/out\[half\]\[c\] \*= p\.scale/out[half][c] *= p.scale * p.scale/
dy writes no dT (tensor cores)|kernels/backward_dy_tensor_core.cu|s/const float s = p\.scale \* p\.keep_scale/const float s = 0/
dT keeps the sum of the tile before (tensor cores)|kernels/backward_dy_tensor_core.cu|s/, dt = \{\};/;/
dA loses a lane (tensor cores)|kernels/backward_dy_tensor_core.cu|s/LANES, 1, 0\)/LANES - 1, 1, 0)/
U leaves out a column of A (tensor cores)|kernels/backward_dy_tensor_core.cu|s/a\[j\], v\.x, u\.x/j ? 0.0f : a[j], v.x, u.x/
T past the last token is not zero (tensor cores)|kernels/backward_dy_tensor_core.cu|s/at < rows \* \(ROW \/ 4\)/true/
a chunk loses its longer tile (tensor cores)|tile/tensor_core.cuh|s/ \+ \(chunk < longer \? 1 : 0\)//
a row has another token (tensor cores)|tile/row_tiles.cuh|s/row \* inverse >> 16/row * inverse >> 17/
the last of four parts is left out (tensor cores)|tile/sum.cuh|s/s \+ i < splits/s + i < splits - 1/
reduce leaves out a lane|kernels/backward_simt.cu|s/LANES, WIDTH, 0\)/LANES - 1, WIDTH, 0)/
dx sums zeros into dC (tensor cores)|kernels/backward_dx_tensor_core.cu|s/\*at \+ dc\[t\]\[e\] : dc\[t\]\[e\]/*at : 0.0f/
up adds zeros (SIMT)|kernels/forward_simt.cu|s/p\.scale \* sum, p\.accumulate/0.0f, p.accumulate/
merge adds zeros|kernels/merge.cu|s/factor \* bc\[e\]/0.0f/
A's indices are swapped|tile/operands.cuh|s/p\.a\[int64_t\(i\) \* p\.a_in \+ j\]/p.a[int64_t(j) * p.a_out + i]/
A is assumed to be square|tile/operands.cuh|s/p\.a\[int64_t\(i\) \* p\.a_in \+ j\]/p.a[int64_t(i) * p.a_out % (p.a_out * p.a_in) + j]/
B's indices are swapped (up, tensor cores)|kernels/forward_tensor_core.cu|s/p\.b\[\(b0 \+ n\) \* R \+ q\]/p.b[(int64_t(q) * p.b_out + b0 + n) % (int64_t(p.b_out) * R)]/
dC is stored transposed (tensor cores)|kernels/backward_dx_tensor_core.cu|s/out \+ int64_t\(q\) \* p\.c_in \+ k/out + int64_t(k) * R + q/
a fragment's rows are swapped|tile/tensor_core.cuh|s/out\[0\]\[2 \* t\] = d\[t\]\[0\]/out[0][2 * t] = d[t][2]/
the swizzle of a read is off|tile/tensor_core.cuh|s/swizzled<COLS>\(m0 \+ lane % 16, chunk \+ lane \/ 16\)/swizzled<COLS>(m0 + lane % 16, chunk + lane \/ 16 * 0)/
s is missing from dA and dB (small m)|tile/operands.cuh|s/\+= p\.scale \* load_ab/+= load_ab/
s is missing from dA and dB|kernels/backward_simt.cu|s/at < c_begin \? p\.scale : 1\.0f/1.0f/
κ is missing from dT|kernels/backward_simt.cu|s/p\.scale \* p\.keep_scale \* sum/p.scale * sum/
dropout uses the mask of the next column|tile/dropout.cuh|s/\(keep_mask\(p, token, col \/ 8\) >> \(col % 8\)/(keep_mask(p, token, col \/ 8) >> ((col + 1) % 8)/
the offset in memory is not added|tile/dropout.cuh|s/offset \+= p\.key\[1\]/offset += 0/
Philox has nine rounds|tile/dropout.cuh|s/round < 10/round < 9/
the last part of a sum is left out|tile/sum.cuh|s/s < splits/s < splits - 1/
the last token is left out (dB, dC, SIMT)|kernels/backward_simt.cu|s/p\.rows - begin < p\.chunk_rows \? p\.rows - begin/p.rows - begin < p.chunk_rows ? p.rows - begin - 1/
dT is zero (small m)|kernels/backward_small_m.cu|s/sum \*= p\.scale \* p\.keep_scale;/sum = 0;/
κ is missing from dT (small m)|kernels/backward_small_m.cu|s/sum \*= p\.scale \* p\.keep_scale/sum *= p.scale/
dT loses the rows of A of the step before (small m)|kernels/backward_small_m.cu|s/i0 == group\.begin \? sum/true ? sum/
dA loses a tile of q (small m)|kernels/backward_small_m.cu|s/rows \* width; e \+= 32/(q0 ? 0 : rows * width); e += 32/
the last token is left out of dB (small m)|kernels/backward_small_m.cu|s/\(i\.end - i\.begin\) \* p\.rows,/(i.end - i.begin) * p.rows - 1,/
the last part of a shared sum is left out (small m)|tile/sum.cuh|s/\(splits - lane\.index \+/(splits - 1 - lane.index +/
the sums of a warp's lanes are not added (small m)|tile/sum.cuh|s/mask >= width;/mask > width;/
a warp's sum is left out (small m)|tile/sum.cuh|s/for \(int at = thread; at < threads/for (int at = thread + width; at < threads/
a narrow block of up also has its neighbour's columns|kernels/forward_tensor_core.cu|s/p\.b_out - first < p\.cols \? p\.b_out : first \+ p\.cols/p.b_out/
a narrow block of dy also has its neighbour's columns|kernels/backward_dy_tensor_core.cu|s/p\.b_out - b0 < p\.cols \? p\.b_out : b0 \+ p\.cols/p.b_out/
a narrow block of dx also has its neighbour's columns|kernels/backward_dx_tensor_core.cu|s/p\.c_in - k0 < p\.cols \? p\.c_in : k0 \+ p\.cols/p.c_in/
dC is stored transposed (small m)|kernels/backward_small_m.cu|s/out\[q \* p\.c_in \+ k\] \+= sum/out[k * p.rank + q] += sum/
dX's second tile of rows is the first again (small m)|kernels/backward_small_m.cu|s/m0 = row - q_end/m0 = 0 * (row - q_end)/
a row of a higher slot comes first|kernels/segments.cu|s/entry >= 0 && entry < slot/entry >= 0 \&\& entry > slot/
the sort loses the rows of the warps before|kernels/segments.cu|s/if \(w < warp\) next \+= at\[1\];//
rows of a slot change places|kernels/segments.cu|s/mine & \(\(1u << lane\) - 1\)/mine >> lane >> 1/
a hostile index is not counted|kernels/segments.cu|s/entry < -1 \|\| entry >= p\.slots/entry >= p.slots/
a hostile index is the last slot's|kernels/segments.cu|s/p\.table\[row0 \+ 32 \* i \+ lane\] : -1/(p.table[row0 + 32 * i + lane] < p.slots ? p.table[row0 + 32 * i + lane] : p.slots - 1) : -1/
a tile takes a row of the next|kernels/segments.cu|s/total - int\(row\) < p\.tile_rows \? total - int\(row\) : p\.tile_rows/p.tile_rows/
a segment begins anew in each tile|kernels/segments.cu|s/row == 0 \? total : 0/total/
κ is missing from T (segments)|kernels/segments.cu|s/= p\.keep_scale \* sum/= sum/
dT has the scale of the op alone (segments)|kernels/segments.cu|s/= slot\.scale \* p\.keep_scale/= p.scale * p.keep_scale/
dA loses a lane's terms (segments)|kernels/segments.cu|s/mask = 16; mask > 0;/mask = 8; mask > 0;/
every slot has the first one's factors|tile/segments.cuh|s/at = slot \* p\.slot_stride/at = 0 * p.slot_stride/
a warp's lanes are summed by halves alone|tile/segments.cuh|s/return v\[0\] \+ __shfl_xor_sync\(0xffffffffu, v\[0\], 1\)/return v[0]/
a slice's sum takes the place of those before|tile/segments.cuh|s/slice == warp % ways \? sum : \*own \+ sum/sum/
the other warps' rows are left out of a gradient (segments)|tile/segments.cuh|s/\+= of_pair\[32 \* n\]/+= 0 * of_pair[32 * n]/
the mask of X is that of the next column (segments)|tile/segments.cuh|s/keeps\(p, row, col\(\) \+ k \+ 32/keeps(p, row, col() + k + 1 + 32/
dX keeps what the mask drops (segments)|tile/segments.cuh|s/kept >> e & 1 \? acc/true ? acc/
the stack's C starts at its first rank (groups)|kernels/group.cu|s/int64_t\(term\.first \+ q\) \* p\.c_in \+ k/int64_t(q) * p.c_in + k/
a term has T of the first (groups)|kernels/group.cu|s/m \* p\.rank \+ term\.first \+ q\)\;/m * p.rank + q);/
a term's parts of dT beyond the first are left out (groups)|kernels/group.cu|s/load_sum\(term\.dt_parts, term\.dt_splits/load_sum(term.dt_parts, term.dt_splits ? 1 : 0/
parts of T beyond the first are left out (groups)|kernels/group.cu|s/load_sum\(parts, p\.t_splits/load_sum(parts, 1/
a block's last rows are left out (groups)|kernels/group.cu|s/e < rows \* term\.rank/e < (rows - 1) * term.rank/
the padding keeps what the scratch held (groups)|kernels/group.cu|s/p\.stack\[int64_t\(term\.first/if (term.c) p.stack[int64_t(term.first/
dC's parts lie a term's length apart (groups)|kernels/backward_simt.cu|s/p\.dc_splits, p\.dc_stride/p.dc_splits, int64_t(p.rank) * p.c_in/
B = identity is shifted (segments)|tile/segments.cuh|s/k \+ 32 \* e == q0 \+ i/k + 32 * e == q0 + i + 1/
FAULTS
)
check=
[[ ${1:-} != --check ]] || { check=1 && shift; }
# A target folder of its own, because cargo gives a copy's outputs the same names as the original's.
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/mutants
export CARGO_TARGET_DIR=$target
copy=$target/source
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do [ ! -e "$file" ] || cp -p --parents "$file" "$copy"; done
find "$copy/kernels/cuda" -type f -exec touch {} + # newer than objects of the last run's last fault

suite=(cargo test -q --locked -p kron-kernels --test conformance --test segments --test group)
if [[ ! $check ]] && ! (cd "$copy" && "${suite[@]}" fifo) > "$copy/log" 2>&1; then
  tail -n 20 "$copy/log"
  echo "the suite fails without a fault" >&2
  exit 1
fi
failed=0
while IFS='|' read -r what file change; do
  [[ $what == *"${1:-}"* ]] || continue
  path=kernels/cuda/$file
  perl -CSD -pe "$change" "$path" > "$copy/$path"
  if cmp -s "$path" "$copy/$path"; then
    echo "changes nothing: $what" && failed=1
  elif [[ $check ]]; then
    echo "applies: $what"
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
