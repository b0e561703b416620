//! One method on one model: layer by layer, and against the others.

use kron_adapter::plan::{Budget, Family, Method, Model, Plan, Row, multiply_adds, saved_numbers, search};
use kron_core::KronShape;
use serde::Serialize;

use super::count::grouped;
use super::text::{Column, cells, lines, table};
use super::usage;
use crate::Result;

/// Why the method is here that all is about.
const PLANNED: &str = "planned";
/// Bytes of a float32 gradient.
const GRADIENT: u128 = 4;

/// The plan and its rivals.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Its hidden size.
    pub hidden: usize,
    /// What was planned, in words.
    pub method: String,
    /// One row per kind of layer.
    pub layers: Vec<Layer>,
    /// The planned method first.
    pub methods: Vec<Costs>,
    /// What a reader must know about the layers.
    pub notes: Vec<String>,
}

/// One kind of layer, with the numbers of one such layer.
#[derive(Debug, Serialize)]
pub struct Layer {
    /// `q_proj`.
    pub name: String,
    /// How many the model has.
    pub count: u32,
    /// Output width.
    pub d_out: usize,
    /// Input width.
    pub d_in: usize,
    /// Rows of A.
    pub a_out: usize,
    /// Columns of A.
    pub a_in: usize,
    /// Rows of B.
    pub b_out: usize,
    /// Columns of C.
    pub c_in: usize,
    /// r; null where the inner factor is full.
    pub rank: Option<usize>,
    /// Trained parameters.
    pub params: u64,
    /// The largest rank of ΔW.
    pub max_rank: usize,
    /// Multiply-adds, forward, per token.
    pub multiply_adds: u64,
    /// Bytes kept for backward, per token.
    pub saved_bytes: u64,
    /// Where the method had to give way.
    pub notes: Vec<String>,
}

/// One method over the whole model.
#[derive(Debug, Serialize)]
pub struct Costs {
    /// Why it is here.
    pub why: &'static str,
    /// `lora r 8`.
    pub method: String,
    /// All trained parameters.
    pub trained_params: u64,
    /// The largest rank of ΔW on any layer.
    pub max_rank: usize,
    /// Multiply-adds, forward, per token.
    pub multiply_adds: u64,
    /// Bytes kept for backward, per token.
    pub saved_bytes: u64,
    /// Bytes of Adam's moments.
    pub optimizer_bytes: u64,
    /// Bytes of the gradient, float32.
    pub gradient_bytes: u64,
    /// Bytes of the adapter, float32.
    pub adapter_bytes: u64,
    /// Whether every layer has exactly the split and rank that the method names.
    pub exact: bool,
}

impl Report {
    /// Plans `method` and what it is compared with.
    ///
    /// # Errors
    /// A split or rank that a layer cannot have.
    pub fn new(model: &Model, method: Method, notes: Vec<String>) -> Result<Self> {
        let plan = Plan::new(model, method).map_err(usage)?;
        let methods = rivals(model, &plan)?
            .into_iter()
            .map(|(why, method)| Ok(Costs::new(why, &Plan::new(model, method).map_err(usage)?)));
        Ok(Self {
            model: model.name().into(),
            hidden: model.hidden(),
            method: method.to_string(),
            methods: methods.collect::<Result<_>>()?,
            layers: plan.rows.iter().map(Layer::new).collect(),
            notes,
        })
    }

    /// For a reader.
    pub fn table(&self) -> String {
        let mut lines = vec![
            format!("{}, hidden size {}: {}", self.model, self.hidden, self.method),
            String::new(),
            table(&LAYERS, &self.layers),
            String::new(),
            table(&METHODS, &self.methods),
            String::new(),
        ];
        let reduced = self
            .layers
            .iter()
            .flat_map(|layer| layer.notes.iter().map(move |note| format!("{}: {note}", layer.name)));
        lines.extend(reduced.chain(self.notes.iter().cloned()));
        if self.methods.iter().any(|costs| !costs.exact) {
            lines.push(
                "*: on some layer the split is reduced to a divisor, or the inner factor is full".into(),
            );
        }
        lines.join("\n").trim_end().to_string()
    }

    /// The layers, each as one of them costs, then every method with `all` layers together.
    pub fn csv(&self) -> String {
        // What the two kinds of rows share stands between what only one of them has.
        let (shared, own) = (&METHODS[2..6], &METHODS[6..]);
        let names = LAYERS.iter().map(|column| column.name).chain(own.iter().map(|column| column.name));
        let names: Vec<&str> = ["method", "why"].into_iter().chain(names).chain(["exact", "note"]).collect();
        let none = |count| vec![String::new(); count];
        let row = |method: &str, why: &str, cells: Vec<Vec<String>>, exact: bool, notes: &[String]| {
            let (start, end) = (vec![method.into(), why.into()], vec![exact.to_string(), notes.join("; ")]);
            [start, cells.concat(), end].concat()
        };
        let layers = self.layers.iter().map(|layer| {
            let cells = vec![cells(&LAYERS, layer), none(own.len())];
            row(&self.method, PLANNED, cells, layer.notes.is_empty(), &layer.notes)
        });
        let methods = self.methods.iter().map(|costs| {
            let all = [vec!["all".into()], none(LAYERS.len() - 1 - shared.len())].concat();
            let cells = vec![all, cells(shared, costs), cells(own, costs)];
            let notes = if costs.why == PLANNED { &self.notes[..] } else { &[] };
            row(&costs.method, costs.why, cells, costs.exact, notes)
        });
        lines(&names, layers.chain(methods))
    }
}

/// The planned method, and what it is held against.
fn rivals(model: &Model, plan: &Plan) -> Result<Vec<(&'static str, Method)>> {
    let (rank, split) = match plan.method {
        Method::Kron { rank, split } => (rank, Some(split)),
        _ => (1, None),
    };
    let budget = Budget::Nearest(number(plan.trained_params()));
    let nearest = |family| search(model, family, budget).map(|found| found.first().map(|c| c.method));
    let lora = nearest(Family::Lora).map_err(usage)?;
    let lokr = nearest(Family::Lokr).map_err(usage)?;
    let all = [
        (PLANNED, Some(plan.method)),
        ("equal rank", Some(Method::Lora { rank })),
        ("equal parameters", lora),
        ("same split", Some(Method::Krona { split })),
        ("near-square", Some(Method::Krona { split: None })),
        ("equal rank", Some(Method::Lokr { factor: None, rank })),
        ("equal parameters", lokr),
    ];
    Ok(all.into_iter().filter_map(|(why, method)| Some((why, method?))).collect())
}

impl Layer {
    fn new(row: &Row) -> Self {
        let Row { linear, shape, notes } = row;
        Self {
            name: linear.name().into(),
            count: linear.count(),
            d_out: linear.d_out(),
            d_in: linear.d_in(),
            a_out: shape.a_out(),
            a_in: shape.a_in(),
            b_out: shape.b_out(),
            c_in: shape.c_in(),
            rank: shape.rank(),
            params: shape.params() as u64,
            max_rank: shape.max_rank(),
            multiply_adds: number(multiply_adds(shape)),
            saved_bytes: number(4 * saved_numbers(shape)),
            notes: notes.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Costs {
    fn new(why: &'static str, plan: &Plan) -> Self {
        Self {
            why,
            method: plan.method.to_string(),
            trained_params: number(plan.trained_params()),
            max_rank: plan.rows.iter().map(|row| KronShape::max_rank(&row.shape)).max().unwrap_or(0),
            multiply_adds: number(plan.multiply_adds()),
            saved_bytes: number(plan.saved_bytes()),
            optimizer_bytes: number(plan.optimizer_bytes()),
            gradient_bytes: number(GRADIENT * plan.trained_params()),
            adapter_bytes: number(plan.adapter_bytes()),
            exact: plan.is_exact(),
        }
    }
}

/// A sum over a model as JSON can hold it; one that overflows belongs to no machine.
pub fn number(sum: u128) -> u64 {
    u64::try_from(sum).unwrap_or(u64::MAX)
}

macro_rules! column {
    ($head:literal, $field:ident) => {
        Column {
            head: $head,
            name: stringify!($field),
            number: true,
            show: |row| grouped(row.$field as u128),
            raw: |row| row.$field.to_string(),
        }
    };
    ($head:literal, $name:literal, $text:expr) => {
        Column { head: $head, name: $name, number: false, show: $text, raw: $text }
    };
}

const LAYERS: [Column<Layer>; 13] = [
    column!("layer", "name", |row| row.name.clone()),
    column!("×", count),
    column!("d_out", d_out),
    column!("d_in", d_in),
    column!("a_out", a_out),
    column!("a_in", a_in),
    column!("b_out", b_out),
    column!("c_in", c_in),
    column!("r", "rank", |row| row.rank.map_or("full".into(), |r| r.to_string())),
    column!("params", params),
    column!("max rank", max_rank),
    column!("multiply-adds", multiply_adds),
    column!("saved B", saved_bytes),
];

const METHODS: [Column<Costs>; 9] = [
    column!("method", "method", |row| format!("{}{}", row.method, if row.exact { "" } else { " *" })),
    column!("", "why", |row| row.why.into()),
    column!("trained", trained_params),
    column!("max rank", max_rank),
    column!("multiply-adds", multiply_adds),
    column!("saved B", saved_bytes),
    column!("optimizer B", optimizer_bytes),
    column!("gradient B", gradient_bytes),
    column!("adapter B", adapter_bytes),
];
