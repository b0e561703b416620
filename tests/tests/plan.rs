//! The planner against the counts that the paper and PEFT arrive at.

use kron_adapter::plan::{
    AdapterPlan, Budget, Family, LayerSide, Linear, MAX_DIM, Method, Model, Note, PRESETS, divisors,
    fit_split, legal_splits, multiply_adds, paper_split, peft_factorization, preset, saved_elements, search,
};
use kron_core::{Inner, KronShape, LayerDims, Split};
use serde::Deserialize;

fn model(name: &str) -> Model {
    preset(name).unwrap()
}

fn plan(name: &str, method: Method) -> AdapterPlan {
    AdapterPlan::new(&model(name), method).unwrap()
}

fn kron(split: Split, rank: usize) -> Method {
    Method::Kron { split, rank }
}

/// Adapter parameters of the rows whose name passes the filter.
fn params_of(plan: &AdapterPlan, keep: impl Fn(&str) -> bool) -> u64 {
    let rows = plan.rows.iter().filter(|row| keep(row.linear.name()));
    rows.map(|row| u64::from(row.linear.count()) * row.shape.params() as u64).sum()
}

#[test]
fn the_papers_counts_come_out_to_the_unit() {
    struct Golden {
        model: &'static str,
        split: Split,
        body: u64,
        head: u64,
        kron: u128,
        lora_rank: usize,
        lora: u128,
    }
    let table = [
        Golden {
            model: "Mistral-7B",
            split: Split { a_out: 16, a_in: 2 },
            body: 5_676_032,
            head: 32_416,
            kron: 5_708_448,
            lora_rank: 8,
            lora: 21_260_288,
        },
        Golden {
            model: "LLaMA-2-7B",
            split: Split { a_out: 16, a_in: 2 },
            body: 5_241_856,
            head: 32_416,
            kron: 5_274_272,
            lora_rank: 8,
            lora: 20_277_248,
        },
        Golden {
            model: "LLaMA-3-8B",
            split: Split { a_out: 16, a_in: 2 },
            body: 5_676_032,
            head: 80_544,
            kron: 5_756_576,
            lora_rank: 8,
            lora: 22_030_336,
        },
        Golden {
            model: "DistilBERT",
            split: Split { a_out: 4, a_in: 2 },
            body: 249_120,
            head: 0,
            kron: 840_481,
            lora_rank: 16,
            lora: 1_918_465,
        },
    ];
    assert_eq!(table.len(), PRESETS.len());
    for row in table {
        let model = model(row.model);
        assert_eq!(Method::paper(&model, 8), kron(row.split, 8), "{}", row.model);

        let kron = plan(row.model, Method::paper(&model, 8));
        assert!(kron.is_exact(), "{}", row.model);
        assert_eq!(params_of(&kron, |name| name != "lm_head"), row.body, "{}", row.model);
        assert_eq!(params_of(&kron, |name| name == "lm_head"), row.head, "{}", row.model);
        assert_eq!(kron.trained_params(), row.kron, "{}", row.model);

        let lora = plan(row.model, Method::Lora { rank: row.lora_rank });
        assert_eq!(lora.trained_params(), row.lora, "{}", row.model);
    }
    let lora = plan("Mistral-7B", Method::Lora { rank: 8 });
    assert_eq!(params_of(&lora, |name| name != "lm_head"), 20_971_520);
    assert_eq!(params_of(&lora, |name| name == "lm_head"), 288_768);
    assert_eq!(plan("DistilBERT", Method::Lora { rank: 16 }).adapter_params(), 1_327_104);
    assert_eq!(model("DistilBERT").also_trained(), 591_361);
}

#[test]
fn the_same_budget_table_of_mistral() {
    // Millions of parameters to the third decimal, and the largest rank of q_proj's ΔW.
    let table = [
        (kron(Split { a_out: 16, a_in: 2 }, 8), 5.708, 16),
        (Method::Lora { rank: 2 }, 5.315, 2),
        (Method::Lokr { factor: Some(4), rank: 8 }, 5.319, 32),
        (Method::Lokr { factor: Some(8), rank: 16 }, 5.329, 128),
        (Method::Krona { split: None }, 2.284, 4096),
        (kron(Split { a_out: 32, a_in: 4 }, 16), 5.730, 64),
        (kron(Split { a_out: 16, a_in: 8 }, 24), 5.889, 192),
        (kron(Split { a_out: 64, a_in: 8 }, 32), 5.816, 256),
    ];
    for (method, millions, max_rank) in table {
        let plan = plan("Mistral-7B", method);
        assert!(plan.is_exact(), "{method}");
        let got = (plan.trained_params() as f64 / 1e3).round() / 1e3;
        assert_eq!(got, millions, "{method}: {}", plan.trained_params());
        assert_eq!(plan.rows[0].shape.max_rank(), max_rank, "{method}");
    }
}

#[test]
fn the_cost_of_q_proj() {
    let kron =
        KronShape::kron(LayerDims { d_out: 4096, d_in: 4096 }, Split { a_out: 16, a_in: 2 }, 8).unwrap();
    assert_eq!(multiply_adds(&kron), 65_792);
    assert_eq!(saved_elements(&kron), 16);
    assert_eq!(multiply_adds(&KronShape::lora(LayerDims { d_out: 4096, d_in: 4096 }, 8).unwrap()), 65_536);
    // M·x per block, then A across the blocks: no third product.
    let full = KronShape::krona(LayerDims { d_out: 15, d_in: 14 }, Split { a_out: 5, a_in: 7 }).unwrap();
    assert_eq!(multiply_adds(&full), 7 * 3 * 2 + 5 * 7 * 3);
    assert_eq!(saved_elements(&full), 7 * 3);
}

#[test]
fn totals_follow_from_the_rows() {
    let plan = plan("DistilBERT", kron(Split { a_out: 4, a_in: 2 }, 8));
    assert_eq!(plan.adapter_bytes(), 4 * 249_120);
    assert_eq!(plan.optimizer_bytes(), 8 * 840_481);
    // T of 36 layers: a_in·r = 16 float32 numbers each.
    assert_eq!(plan.saved_bytes(), 36 * 16 * 4);
    // r·(d_in + d_out) and a_in·a_out·r per layer: four square layers and two wide ones in six blocks.
    let wide = 8 * (768 + 3072) + 2 * 4 * 8;
    let square = 8 * (768 + 768) + 2 * 4 * 8;
    assert_eq!(plan.multiply_adds(), 24 * square + 12 * wide);
    assert_eq!(plan.rank_sum(), 36 * 16);
}

#[test]
fn divisors_are_all_of_them() {
    for n in 1..=3000usize {
        let by_trial: Vec<_> = (1..=n).filter(|d| n % d == 0).collect();
        assert_eq!(divisors(n), by_trial, "{n}");
    }
    assert!(divisors(0).is_empty());
    assert_eq!(divisors(50257), [1, 29, 1733, 50257]);
}

#[test]
fn a_split_that_does_not_divide_is_reduced_and_says_so() {
    struct Trap {
        d_out: usize,
        d_in: usize,
        wanted: Split,
        taken: Split,
        notes: Vec<Note>,
    }
    let reduced = |side, dim, wanted, taken| Note::Reduced { side, dim, wanted, taken };
    let table = [
        // GPT-2's vocabulary, 29·1733.
        Trap {
            d_out: 50257,
            d_in: 768,
            wanted: Split { a_out: 4, a_in: 2 },
            taken: Split { a_out: 1, a_in: 2 },
            notes: vec![reduced(LayerSide::Out, 50257, 4, 1)],
        },
        Trap {
            d_out: 50257,
            d_in: 768,
            wanted: Split { a_out: 32, a_in: 2 },
            taken: Split { a_out: 29, a_in: 2 },
            notes: vec![reduced(LayerSide::Out, 50257, 32, 29)],
        },
        // BERT's, 2·3·5087.
        Trap {
            d_out: 30522,
            d_in: 768,
            wanted: Split { a_out: 4, a_in: 2 },
            taken: Split { a_out: 3, a_in: 2 },
            notes: vec![reduced(LayerSide::Out, 30522, 4, 3)],
        },
        // LLaMA-2's ffn, 2⁸·43: a power of two does divide it, three times that does not.
        Trap {
            d_out: 11008,
            d_in: 4096,
            wanted: Split { a_out: 16, a_in: 2 },
            taken: Split { a_out: 16, a_in: 2 },
            notes: vec![],
        },
        Trap {
            d_out: 4096,
            d_in: 11008,
            wanted: Split { a_out: 16, a_in: 48 },
            taken: Split { a_out: 16, a_in: 43 },
            notes: vec![reduced(LayerSide::In, 11008, 48, 43)],
        },
        Trap {
            d_out: 7,
            d_in: 9,
            wanted: Split { a_out: 16, a_in: 2 },
            taken: Split { a_out: 7, a_in: 1 },
            notes: vec![reduced(LayerSide::Out, 7, 16, 7), reduced(LayerSide::In, 9, 2, 1)],
        },
    ];
    for trap in table {
        let fitted =
            fit_split(trap.wanted, LayerDims { d_out: trap.d_out, d_in: trap.d_in }, Inner::LowRank(8))
                .unwrap();
        let taken = Split { a_out: fitted.shape.a_out(), a_in: fitted.shape.a_in() };
        assert_eq!(taken, trap.taken, "{}×{}", trap.d_out, trap.d_in);
        assert_eq!((fitted.shape.d_out(), fitted.shape.d_in()), (trap.d_out, trap.d_in));
        assert_eq!(fitted.notes, trap.notes);
    }
    assert_eq!(
        reduced(LayerSide::Out, 50257, 4, 1).to_string(),
        "a_out is 1 instead of 4, which does not divide d_out = 50257"
    );
}

#[test]
fn the_papers_rule_between_two_divisors() {
    // 5120/200 rounds to 26, as far from 20 as from 32.
    let table =
        [(1, 1), (100, 1), (300, 2), (384, 2), (768, 4), (1024, 4), (2048, 8), (4096, 16), (5120, 20)];
    for (hidden, a_out) in table {
        assert_eq!(paper_split(hidden), Split { a_in: 2, a_out }, "{hidden}");
    }
}

#[test]
fn legal_splits_are_exactly_those_that_make_a_shape() {
    let linear = Linear::new("odd", LayerDims { d_out: 30, d_in: 28 }, 1).unwrap();
    let legal: Vec<_> = legal_splits(&linear).collect();
    let by_trial: Vec<_> = (1..=28)
        .flat_map(|a_in| (1..=30).map(move |a_out| Split { a_in, a_out }))
        .filter(|s| {
            KronShape::kron(LayerDims { d_out: 30, d_in: 28 }, Split { a_out: s.a_out, a_in: s.a_in }, 1)
                .is_ok()
        })
        .collect();
    assert_eq!(legal, by_trial);
    assert_eq!(legal.len(), 8 * 6);
}

/// PEFT's own walk through the pairs, restated: while the first member is
/// smaller, step to the next divisor unless it passes the factor.
fn walk(dim: usize, factor: Option<usize>) -> (usize, usize) {
    if let Some(factor) = factor.filter(|f| dim.is_multiple_of(*f)) {
        return (factor, dim / factor);
    }
    let limit = factor.unwrap_or(dim);
    let mut pair = (1, dim);
    while pair.0 < pair.1 {
        let next = (pair.0 + 1..=dim).find(|m| dim.is_multiple_of(*m)).unwrap();
        if next > limit || next + dim / next > dim + 1 {
            break;
        }
        pair = (next, dim / next);
    }
    (pair.0.min(pair.1), pair.0.max(pair.1))
}

#[test]
fn peft_factorization_is_peft_s() {
    for dim in 1..=400 {
        for factor in [None, Some(1), Some(2), Some(4), Some(7), Some(8), Some(16), Some(64), Some(500)] {
            assert_eq!(peft_factorization(dim, factor), walk(dim, factor), "{dim}, {factor:?}");
        }
    }
    // Taken as it is, not sorted.
    assert_eq!(peft_factorization(100, Some(50)), (50, 2));
}

/// Shapes that PEFT built, from the index of the golden cases.
#[test]
fn lokr_shapes_are_those_of_real_checkpoints() {
    #[derive(Deserialize)]
    struct Index {
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        name: String,
        in_features: usize,
        out_features: usize,
        r: usize,
        a_out: usize,
        a_in: usize,
        w2: String,
        peft_config: Config,
        peft_loadable: bool,
    }
    #[derive(Deserialize)]
    struct Config {
        decompose_factor: i64,
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/index.json");
    let index: Index = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut compared = 0;
    for case in index.cases.iter().filter(|case| case.peft_loadable) {
        let factor = usize::try_from(case.peft_config.decompose_factor).ok();
        let fitted = Method::Lokr { factor, rank: case.r }
            .fit(LayerDims { d_out: case.out_features, d_in: case.in_features })
            .unwrap();
        let full = fitted.shape.inner() == Inner::Full;
        assert_eq!((fitted.shape.a_out(), fitted.shape.a_in()), (case.a_out, case.a_in), "{}", case.name);
        assert_eq!(full, case.w2 == "full", "{}", case.name);
        assert_eq!(full, !fitted.notes.is_empty(), "{}", case.name);
        compared += 1;
    }
    assert!(compared >= 5, "only {compared} cases were comparable");
}

#[test]
fn lokr_says_when_the_rank_is_ignored() {
    // (b_out, c_in) = (25, 15): PEFT keeps ranks below 12.5.
    let at = |rank| Method::Lokr { factor: Some(4), rank }.fit(LayerDims { d_out: 100, d_in: 60 }).unwrap();
    assert_eq!(at(12).shape.inner(), Inner::LowRank(12));
    assert_eq!(at(12).notes, []);
    assert_eq!(at(13).shape.inner(), Inner::Full);
    assert_eq!(at(13).notes, [Note::RankBecameFull { rank: 13, limit: 12 }]);
}

#[test]
fn the_budget_search_finds_what_trying_everything_finds() {
    let model = Model::new(
        "small",
        24,
        vec![
            Linear::new("q", LayerDims { d_out: 24, d_in: 24 }, 3).unwrap(),
            Linear::new("up", LayerDims { d_out: 60, d_in: 24 }, 2).unwrap(),
        ],
        50,
    )
    .unwrap();
    let mut all = Vec::new();
    for a_in in divisors(24) {
        for a_out in divisors(24) {
            for rank in 1..=24 {
                let plan = AdapterPlan::new(&model, kron(Split { a_out, a_in }, rank)).unwrap();
                let fits = plan.rows.iter().all(|r| rank <= r.shape.b_out().min(r.shape.c_in()));
                if fits {
                    all.push(plan.trained_params());
                }
            }
        }
    }
    for target in [60, 150, 333, 700, 1234, 3000, 100_000] {
        let nearest = search(&model, Family::Kron, Budget::Nearest(target)).unwrap();
        let distance = |p: u128| p.abs_diff(target.into());
        assert_eq!(
            distance(nearest[0].trained_params),
            all.iter().copied().map(distance).min().unwrap(),
            "nearest to {target}: {}",
            nearest[0].method
        );
        assert_eq!(nearest.len(), divisors(24).len().pow(2));
        assert!(nearest.is_sorted_by_key(|c| distance(c.trained_params)));

        let under = search(&model, Family::Kron, Budget::AtMost(target)).unwrap();
        let best = all.iter().copied().filter(|&p| p <= target.into()).max();
        assert_eq!(under.first().map(|c| c.trained_params), best, "under {target}");
        assert!(under.iter().all(|c| c.trained_params <= target.into()));
    }
}

#[test]
fn every_family_comes_near_the_papers_budget() {
    let mistral = model("Mistral-7B");
    for family in [Family::Kron, Family::Lora, Family::Krona, Family::Lokr] {
        let choices = search(&mistral, family, Budget::Nearest(5_710_000)).unwrap();
        for choice in &choices {
            let plan = AdapterPlan::new(&mistral, choice.method).unwrap();
            assert_eq!(plan.trained_params(), choice.trained_params, "{}", choice.method);
            assert_eq!(plan.rank_sum(), choice.rank_sum, "{}", choice.method);
            assert_eq!(plan.is_exact(), choice.exact, "{}", choice.method);
        }
        let best = choices[0].trained_params.abs_diff(5_710_000);
        let bound = match family {
            Family::Kron => 1_000,
            Family::Lokr => 10_000,
            Family::Krona => 100_000,
            Family::Lora => 400_000, // r 2 is 5.315 M, r 3 is 7.97 M.
        };
        assert!(best <= bound, "{family:?}: {} is {best} away", choices[0].method);
    }
    let lora = search(&mistral, Family::Lora, Budget::Nearest(5_710_000)).unwrap();
    assert_eq!(lora[0].method, Method::Lora { rank: 2 });
    // The paper's own shape is among the candidates, at its own rank.
    let kron_choices = search(&mistral, Family::Kron, Budget::Nearest(5_708_448)).unwrap();
    let paper = kron_choices.iter().find(|c| c.method == kron(Split { a_out: 16, a_in: 2 }, 8)).unwrap();
    assert_eq!(paper.trained_params, 5_708_448);
}

#[test]
fn bad_numbers_are_refused_with_the_rule() {
    let square = || vec![Linear::new("q", LayerDims { d_out: 8, d_in: 8 }, 1).unwrap()];
    let errors = [
        (Linear::new("q", LayerDims { d_out: 0, d_in: 8 }, 1).unwrap_err(), "d_out of q is 0"),
        (
            Linear::new("q", LayerDims { d_out: 8, d_in: MAX_DIM + 1 }, 1).unwrap_err(),
            "d_in of q is 268435457",
        ),
        (Linear::new("q", LayerDims { d_out: 8, d_in: 8 }, 0).unwrap_err(), "count of q is 0"),
        (Model::new("m", 8, vec![], 0).unwrap_err(), "m has no linear layer"),
        (Model::new("m", 0, square(), 0).unwrap_err(), "hidden size of m is 0"),
        (kron(Split { a_out: 2, a_in: 0 }, 1).fit(LayerDims { d_out: 8, d_in: 8 }).unwrap_err(), "a_in is 0"),
        (kron(Split { a_out: 2, a_in: 2 }, 0).fit(LayerDims { d_out: 8, d_in: 8 }).unwrap_err(), "rank is 0"),
        (Method::Lora { rank: 0 }.fit(LayerDims { d_out: 8, d_in: 8 }).unwrap_err(), "rank is 0"),
        (
            Method::Lokr { factor: Some(0), rank: 1 }.fit(LayerDims { d_out: 8, d_in: 8 }).unwrap_err(),
            "factor is 0",
        ),
        (
            kron(Split { a_out: 1, a_in: 1 }, usize::MAX).fit(LayerDims { d_out: 8, d_in: 8 }).unwrap_err(),
            "above the limit of",
        ),
    ];
    for (error, says) in errors {
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(preset("GPT-5").is_none());
    assert_eq!(preset("mistral-7b"), preset("Mistral-7B"));
}
