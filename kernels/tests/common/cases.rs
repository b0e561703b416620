//! The suite's cases: every kernel and every kind of problem.

/// Sizes of the factors: a_out = 0 is LoRA, rank = 0 a full inner factor.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub a_out: usize,
    pub a_in: usize,
    pub b_out: usize,
    pub c_in: usize,
    pub rank: usize,
}

/// One problem of the suite; `why` is its purpose.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub why: &'static str,
    pub sizes: Sizes,
    pub rows: usize,
    /// Elements added to every row's stride: odd ones break the alignment.
    pub pad: usize,
    /// Dropout's p in 1/65536; 0 disables it.
    pub dropout: u32,
    pub accumulate: bool,
}

const fn case(
    why: &'static str,
    [a_out, a_in, b_out, c_in, rank]: [usize; 5],
    rows: usize,
    pad: usize,
    dropout: u32,
    accumulate: bool,
) -> Case {
    let sizes = Sizes { a_out, a_in, b_out, c_in, rank };
    Case { why, sizes, rows, pad, dropout, accumulate }
}

/// The suite; its columns are the arguments of [`case`]. Sizes differ pairwise, so that a swapped index shows.
pub const CASES: [Case; 53] = [
    case("odd everything", [3, 5, 7, 11, 6], 13, 1, 0, true),
    case("rank 1, one token", [2, 3, 17, 19, 1], 1, 0, 0, true),
    case("LoRA, odd", [0, 1, 37, 53, 5], 21, 3, 0, true),
    case("full inner factor", [3, 2, 21, 26, 0], 19, 0, 13107, true),
    case("a rank above one tile, dropout, replaced", [2, 3, 70, 67, 72], 70, 1, 20000, false),
    case("no tokens", [2, 4, 24, 40, 8], 0, 0, 0, true),
    case("K slices that end ragged", [1, 1, 33, 700, 9], 66, 0, 0, false),
    case("rank 4 on tensor cores", [4, 3, 40, 72, 4], 37, 0, 0, true),
    case("rank 8, the paper's shape in small", [16, 2, 64, 128, 8], 70, 0, 0, true),
    case("rank 8, replaced, dropout", [4, 2, 168, 328, 8], 129, 8, 6554, false),
    case("rank 16", [2, 6, 48, 200, 16], 65, 0, 0, true),
    case("rank 16 LoRA, dropout", [0, 1, 264, 520, 16], 33, 0, 32768, true),
    case("rank 32", [4, 1, 72, 104, 32], 67, 0, 0, false),
    case("rank 64", [2, 2, 136, 192, 64], 40, 0, 9000, true),
    case("rank 128", [4, 2, 40, 80, 128], 34, 0, 0, true),
    case("rank 128 LoRA", [0, 1, 152, 136, 128], 35, 0, 0, false),
    case("misaligned rows of a tensor-core shape", [2, 4, 64, 72, 8], 31, 1, 0, true),
    case("θ's B and C off 16 bytes", [3, 3, 40, 64, 8], 18, 0, 0, true),
    case("one token on tensor cores", [2, 4, 320, 648, 8], 1, 0, 0, true),
    case("several chunks and groups of i", [8, 2, 264, 136, 8], 300, 0, 4000, true),
    case("rank 4, above small m", [2, 4, 72, 136, 4], 67, 8, 5000, true),
    case("rank 64, above small m", [4, 1, 40, 264, 64], 131, 0, 0, true),
    case("rank 128, above small m, replaced", [3, 4, 72, 56, 128], 97, 0, 700, false),
    case("small m, many blocks of each", [8, 6, 144, 80, 16], 61, 0, 1000, true),
    case("small m, replaced", [2, 8, 40, 144, 32], 64, 0, 0, false),
    case("small m, rank 256, odd", [2, 3, 37, 41, 256], 11, 0, 9000, true),
    case("small m, rank 3, more of A's rows than fit into a tile", [70, 3, 9, 13, 3], 5, 1, 0, false),
    case("small m, rank 1 LoRA, all 64 rows", [0, 1, 197, 45, 1], 64, 3, 700, true),
    case("small m, several parts of each sum", [5, 4, 131, 39, 33], 62, 1, 0, true),
    case("one token, a full inner factor", [3, 4, 75, 34, 0], 1, 0, 0, true),
    case("a full inner factor, above small m", [3, 2, 21, 26, 0], 71, 0, 13107, true),
    case("five tokens on tensor cores", [4, 2, 96, 200, 8], 5, 0, 3000, true),
    case("the least sizes of tensor cores", [2, 16, 8, 8, 4], 3, 8, 0, true),
    case("one token of LoRA on tensor cores, replaced", [0, 1, 104, 488, 64], 1, 0, 0, false),
    case("one token on the SIMT tile, many slices", [3, 2, 90, 333, 9], 1, 1, 500, true),
    case("LoRA, odd, above small m", [0, 1, 37, 53, 5], 130, 3, 0, false),
    case("rank 8, above small m", [4, 5, 48, 88, 8], 90, 0, 2000, true),
    case("rank 8 at small m, several tiles of dC", [4, 6, 40, 72, 8], 59, 0, 0, true),
    case("rank 16, above small m, idle rows of a tile", [4, 7, 56, 72, 16], 75, 0, 0, true),
    case("rank 32, a_in above two, above small m", [2, 4, 56, 136, 32], 81, 0, 0, true),
    case("rank 4, two columns of A, one token", [6, 2, 16, 48, 4], 1, 0, 0, false),
    case("rank 4 LoRA, above small m, dropout", [0, 1, 136, 264, 4], 69, 0, 3000, true),
    case("rank 4, above small m", [4, 3, 40, 72, 4], 71, 0, 0, false),
    case("rank 8 LoRA, several tiles of tokens", [0, 1, 264, 152, 8], 270, 0, 0, true),
    case("rank 32 LoRA, several tiles of tokens, replaced", [0, 1, 24, 40, 32], 330, 0, 0, false),
    case("two rows and columns of A, several tiles of tokens", [2, 2, 40, 72, 8], 290, 0, 0, true),
    case("rank 32 LoRA, one column of A", [4, 1, 56, 72, 32], 66, 8, 0, true),
    case("rank 32 at small m, several tiles of dC, replaced", [4, 3, 24, 72, 32], 61, 0, 0, false),
    case("rank 128, above small m", [4, 1, 40, 72, 128], 70, 0, 0, true),
    case("rank 16, two columns of A, several tiles of tokens", [2, 2, 72, 40, 16], 200, 0, 0, true),
    case("rank 32, two columns of A, several tiles of tokens", [4, 2, 40, 136, 32], 210, 0, 4000, false),
    case("LoRA, slices of c_in of which some are longer", [0, 1, 40, 440, 8], 70, 0, 3000, true),
    case("rank 128 at small m", [2, 4, 24, 72, 128], 33, 0, 0, true),
];

/// Returns the case of a purpose.
///
/// # Panics
/// Panics if the suite has no such case.
pub fn case_by_name(why: &str) -> Case {
    CASES.into_iter().find(|case| case.why == why).unwrap_or_else(|| panic!("no case {why:?}"))
}
