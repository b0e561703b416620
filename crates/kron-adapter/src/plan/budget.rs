//! Search for the shapes nearest to a budget of parameters.

use std::cmp::Reverse;

use kron_core::{KronShape, Split};

use super::layers::AdapterPlan;
use super::method::{Method, lokr_max_rank};
use super::model::Model;
use super::split::divisors;
use crate::Result;

/// Limit on trained parameters, including those without an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Budget {
    /// No more than this.
    AtMost(u64),
    /// As near to this as possible, from either side.
    Nearest(u64),
}

/// Methods that a search may propose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Kron-LoRA over every split of the hidden size.
    Kron,
    /// LoRA.
    Lora,
    /// KronA over every split of the hidden size, and near-square.
    Krona,
    /// LoKr over every factor that divides the hidden size, and near-square,
    /// with ranks that PEFT keeps on every layer.
    Lokr,
}

/// A method and its totals; [`AdapterPlan::new`] gives its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The method, with its rank.
    pub method: Method,
    /// All trained parameters.
    pub trained_params: u128,
    /// Sum over the layers of the upper bound of rank(ΔW).
    pub rank_sum: u128,
    /// True if every layer has exactly the split that the method names.
    pub exact: bool,
}

/// Returns the methods of a family that meet a budget, nearest first: one for every
/// split (or factor), at the rank that brings it nearest.
///
/// A rank is at least 1 and at most what the smallest inner factor can hold, so
/// a choice may be far from the budget; under [`Budget::AtMost`] splits that
/// cannot get below it are left out. Of equally near choices, those that no
/// layer reduces come first, then those of higher rank sum.
///
/// # Errors
/// Fails as [`KronShape::new`] does, on dimensions whose product overflows.
pub fn search(model: &Model, family: Family, budget: Budget) -> Result<Vec<Choice>> {
    let mut choices = Vec::new();
    for method in candidates(model, family) {
        let plan = AdapterPlan::new(model, method)?;
        let Some(rank) = best_rank(&plan, budget) else { continue };
        let plan = AdapterPlan::new(model, method.with_rank(rank))?;
        if budget.allows(plan.trained_params()) {
            choices.push(Choice {
                method: plan.method,
                trained_params: plan.trained_params(),
                rank_sum: plan.rank_sum(),
                exact: plan.is_exact(),
            });
        }
    }
    choices
        .sort_by_key(|c| (c.trained_params.abs_diff(budget.target()), Reverse(c.exact), Reverse(c.rank_sum)));
    Ok(choices)
}

/// Returns every method of the family, at rank 1.
fn candidates(model: &Model, family: Family) -> Vec<Method> {
    let sides = divisors(model.hidden());
    let splits = sides.iter().flat_map(|&a_in| sides.iter().map(move |&a_out| Split { a_out, a_in }));
    match family {
        Family::Kron => splits.map(|split| Method::Kron { split, rank: 1 }).collect(),
        Family::Lora => vec![Method::Lora { rank: 1 }],
        Family::Krona => splits.map(Some).chain([None]).map(|split| Method::Krona { split }).collect(),
        Family::Lokr => {
            let factors = sides.iter().copied().map(Some).chain([None]);
            factors.map(|factor| Method::Lokr { factor, rank: 1 }).collect()
        }
    }
}

/// Returns the rank that brings a plan of rank 1 nearest to the budget. Every rank
/// adds the same number of parameters, so one division finds it.
fn best_rank(at_one: &AdapterPlan, budget: Budget) -> Option<usize> {
    let limit = |shape: &KronShape| match at_one.method {
        Method::Kron { .. } | Method::Lora { .. } => shape.b_out().min(shape.c_in()),
        Method::Krona { .. } => 1,
        Method::Lokr { .. } => lokr_max_rank(shape),
    };
    let max = at_one.rows.iter().map(|row| limit(&row.shape)).min().filter(|&max| max > 0)?;
    let per_rank = at_one.sum(|shape| (shape.b_out() + shape.c_in()) as u128);
    let remaining = budget.target().saturating_sub(at_one.trained_params());
    let more = match budget {
        Budget::AtMost(_) => remaining / per_rank,
        Budget::Nearest(_) => (remaining + per_rank / 2) / per_rank,
    };
    Some(usize::try_from(more).unwrap_or(max).saturating_add(1).min(max))
}

impl Budget {
    /// Returns the budget's number of parameters.
    pub fn target(self) -> u128 {
        match self {
            Budget::AtMost(n) | Budget::Nearest(n) => n.into(),
        }
    }

    fn allows(self, params: u128) -> bool {
        match self {
            Budget::AtMost(n) => params <= n.into(),
            Budget::Nearest(_) => true,
        }
    }
}
