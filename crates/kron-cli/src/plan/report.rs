//! Plan of one method on one model: costs layer by layer, and compared with other methods.

use kron_adapter::OutputFormat;
use kron_adapter::plan::{
    AdapterPlan, Budget, Family, Method, Model, Row, multiply_adds, saved_elements, search,
};
use kron_adapter::text::one_line;
use kron_core::{KronShape, Split};
use serde::Serialize;

use super::columns::{Column, csv, table};
use crate::count::{grouped, saturated};
use crate::{Error, Result};

/// Reason of the planned method itself.
const PLANNED: &str = "planned";
/// Bytes of a float32 gradient.
const GRADIENT: u128 = 4;

/// The plan and the methods it is compared with.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Name of the model.
    pub model: String,
    /// Hidden size of the model.
    pub hidden: usize,
    /// Planned method, in words.
    pub method: String,
    /// One row per kind of layer.
    pub layers: Vec<Layer>,
    /// The planned method first.
    pub methods: Vec<Costs>,
    /// Remarks on the layers, one sentence each.
    pub notes: Vec<String>,
}

/// One kind of layer, with the costs of one such layer.
#[derive(Debug, Serialize)]
pub struct Layer {
    /// `q_proj`.
    pub name: String,
    /// Number of such layers in the model.
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
    /// Rank r; null where the inner factor is full.
    pub rank: Option<usize>,
    /// Trained parameters.
    pub params: u64,
    /// Largest rank that ΔW can have.
    pub max_rank: usize,
    /// Multiply-adds of forward, per token.
    pub multiply_adds: u64,
    /// Bytes kept for backward, per token.
    pub saved_bytes: u64,
    /// Formats of LoKr that hold this layer; null unless they were asked for.
    pub formats: Option<Formats>,
    /// Reductions of the method on this layer, one sentence each.
    pub notes: Vec<String>,
}

/// Formats of LoKr that hold a layer.
#[derive(Debug, Serialize)]
pub struct Formats {
    /// True if a PEFT folder does.
    pub peft_lokr: bool,
    /// True if a LyCORIS file does.
    pub lycoris: bool,
}

/// One method over the whole model.
#[derive(Debug, Serialize)]
pub struct Costs {
    /// Reason of the comparison.
    pub why: &'static str,
    /// `lora r 8`.
    pub method: String,
    /// All trained parameters.
    pub trained_params: u64,
    /// Largest rank that ΔW can have on any layer.
    pub max_rank: usize,
    /// Multiply-adds of forward, per token.
    pub multiply_adds: u64,
    /// Bytes kept for backward, per token.
    pub saved_bytes: u64,
    /// Bytes of Adam's moments.
    pub optimizer_bytes: u64,
    /// Bytes of the gradient, float32.
    pub gradient_bytes: u64,
    /// Bytes of the adapter, float32.
    pub adapter_bytes: u64,
    /// True if every layer has exactly the split and rank that the method names.
    pub exact: bool,
}

impl Report {
    /// Plans `method` and the methods it is compared with.
    ///
    /// # Errors
    /// A layer cannot have the split or the rank.
    pub fn new(model: &Model, method: Method, mut notes: Vec<String>, with_formats: bool) -> Result<Self> {
        let plan = AdapterPlan::new(model, method).map_err(Error::into_usage)?;
        let methods = rivals(model, &plan)?.into_iter().map(|(why, method)| {
            Ok(Costs::new(why, &AdapterPlan::new(model, method).map_err(Error::into_usage)?))
        });
        let mut layers: Vec<Layer> = plan.rows.iter().map(Layer::new).collect();
        if with_formats {
            notes.extend(formats(&plan, &mut layers));
        }
        Ok(Self {
            model: model.name().into(),
            hidden: model.hidden(),
            method: method.to_string(),
            methods: methods.collect::<Result<_>>()?,
            layers,
            notes,
        })
    }

    /// Returns the tables with their notes.
    pub fn table(&self) -> String {
        let mut lines = vec![
            format!("{}, hidden size {}: {}", one_line(&self.model), self.hidden, self.method),
            String::new(),
            table(&layer_columns(self.layers.iter().any(|layer| layer.formats.is_some())), &self.layers),
            String::new(),
            table(&METHODS, &self.methods),
            String::new(),
            "MB: what is trained, in float32; a gradient as much, Adam's moments twice that".into(),
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

    /// Returns CSV: a line for each kind of layer with the costs of one such layer, then a line for each
    /// method with the costs of all layers.
    ///
    /// # Errors
    /// Never for rows of this type.
    pub fn csv(&self) -> Result<String> {
        let layers = self.layers.iter().map(|layer| CsvRow::of_layer(&self.method, layer));
        let methods = self.methods.iter().map(|costs| {
            let notes = if costs.why == PLANNED { &self.notes[..] } else { &[] };
            CsvRow::of_method(costs, notes)
        });
        csv(layers.chain(methods))
    }
}

/// One line of CSV: a kind of layer, or a method over the whole model, which leaves the fields of a shape
/// empty. The fields' names are the header.
#[derive(Default, Serialize)]
struct CsvRow<'a> {
    method: &'a str,
    why: &'a str,
    name: &'a str,
    count: Option<u32>,
    d_out: Option<usize>,
    d_in: Option<usize>,
    a_out: Option<usize>,
    a_in: Option<usize>,
    b_out: Option<usize>,
    c_in: Option<usize>,
    rank: Option<String>,
    params: u64,
    max_rank: usize,
    multiply_adds: u64,
    saved_bytes: u64,
    optimizer_bytes: Option<u64>,
    gradient_bytes: Option<u64>,
    adapter_bytes: Option<u64>,
    exact: bool,
    note: String,
}

impl<'a> CsvRow<'a> {
    fn of_layer(method: &'a str, layer: &'a Layer) -> Self {
        Self {
            method,
            why: PLANNED,
            name: &layer.name,
            count: Some(layer.count),
            d_out: Some(layer.d_out),
            d_in: Some(layer.d_in),
            a_out: Some(layer.a_out),
            a_in: Some(layer.a_in),
            b_out: Some(layer.b_out),
            c_in: Some(layer.c_in),
            rank: Some(rank(layer.rank)),
            params: layer.params,
            max_rank: layer.max_rank,
            multiply_adds: layer.multiply_adds,
            saved_bytes: layer.saved_bytes,
            exact: layer.notes.is_empty(),
            note: layer.notes.join("; "),
            ..Self::default()
        }
    }

    fn of_method(costs: &'a Costs, notes: &[String]) -> Self {
        Self {
            method: &costs.method,
            why: costs.why,
            name: "all",
            params: costs.trained_params,
            max_rank: costs.max_rank,
            multiply_adds: costs.multiply_adds,
            saved_bytes: costs.saved_bytes,
            optimizer_bytes: Some(costs.optimizer_bytes),
            gradient_bytes: Some(costs.gradient_bytes),
            adapter_bytes: Some(costs.adapter_bytes),
            exact: costs.exact,
            note: notes.join("; "),
            ..Self::default()
        }
    }
}

/// Fills in the formats of each layer, and returns the reason why one of them holds each but not all together.
fn formats(plan: &AdapterPlan, layers: &mut [Layer]) -> Option<String> {
    let shaped: Vec<_> = plan.rows.iter().map(|row| (row.linear.name(), row.shape)).collect();
    let holds = |format: OutputFormat, i: usize| format.check_shapes(&shaped[i..=i]).is_ok();
    for (i, layer) in layers.iter_mut().enumerate() {
        let (peft_lokr, lycoris) = (holds(OutputFormat::PeftLokr, i), holds(OutputFormat::Lycoris, i));
        layer.formats = Some(Formats { peft_lokr, lycoris });
    }
    let each = layers.iter().all(|layer| layer.formats.as_ref().is_some_and(|formats| formats.peft_lokr));
    let all = OutputFormat::PeftLokr.check_shapes(&shaped).err();
    all.filter(|_| each)
        .map(|error| format!("PEFT holds each layer, but not all together: {}", error.message()))
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.into()
}

/// Writes a rank, or `full` for a full inner factor.
fn rank(rank: Option<usize>) -> String {
    rank.map_or("full".into(), |r| r.to_string())
}

/// Returns the planned method and those it is compared with, each with its reason.
fn rivals(model: &Model, plan: &AdapterPlan) -> Result<Vec<(&'static str, Method)>> {
    let (rank, split) = match plan.method {
        Method::Kron { rank, split } => (rank, Some(split)),
        _ => (1, None),
    };
    let budget = Budget::Nearest(saturated(plan.trained_params()));
    let nearest = |family| search(model, family, budget).map(|found| found.first().map(|c| c.method));
    let lora = nearest(Family::Lora).map_err(Error::into_usage)?;
    let lokr = nearest(Family::Lokr).map_err(Error::into_usage)?;
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
            d_out: linear.dims().d_out,
            d_in: linear.dims().d_in,
            a_out: shape.a_out(),
            a_in: shape.a_in(),
            b_out: shape.b_out(),
            c_in: shape.c_in(),
            rank: shape.rank(),
            params: shape.params() as u64,
            max_rank: shape.max_rank(),
            multiply_adds: saturated(multiply_adds(shape)),
            saved_bytes: saturated(4 * saved_elements(shape)),
            formats: None,
            notes: notes.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Costs {
    fn new(why: &'static str, plan: &AdapterPlan) -> Self {
        Self {
            why,
            method: plan.method.to_string(),
            trained_params: saturated(plan.trained_params()),
            max_rank: plan.rows.iter().map(|row| KronShape::max_rank(&row.shape)).max().unwrap_or(0),
            multiply_adds: saturated(plan.multiply_adds()),
            saved_bytes: saturated(plan.saved_bytes()),
            optimizer_bytes: saturated(plan.optimizer_bytes()),
            gradient_bytes: saturated(GRADIENT * plan.trained_params()),
            adapter_bytes: saturated(plan.adapter_bytes()),
            exact: plan.is_exact(),
        }
    }
}

macro_rules! column {
    ($head:literal, $field:ident) => {
        Column { head: $head, number: true, cell: |row| grouped(row.$field as u128) }
    };
    ($head:literal, $text:expr) => {
        Column { head: $head, number: false, cell: $text }
    };
}

const SPLIT: Column<Layer> =
    Column { head: "A", number: true, cell: |row| Split { a_out: row.a_out, a_in: row.a_in }.to_string() };
const RANK: Column<Layer> = Column { head: "r", number: true, cell: |row| rank(row.rank) };

/// Returns the columns of the layers, the last two of which are costs, or formats that can hold a layer.
fn layer_columns(formats: bool) -> [Column<Layer>; 9] {
    let [first, second]: [Column<Layer>; 2] = match formats {
        false => [column!("max rank", max_rank), column!("mul-adds", multiply_adds)],
        true => [
            column!("PEFT LoKr", |row| row
                .formats
                .as_ref()
                .map_or(String::new(), |formats| yes(formats.peft_lokr))),
            column!("LyCORIS", |row| row
                .formats
                .as_ref()
                .map_or(String::new(), |formats| yes(formats.lycoris))),
        ],
    };
    [
        column!("layer", |row| row.name.clone()),
        column!("×", count),
        column!("d_out", d_out),
        column!("d_in", d_in),
        SPLIT,
        RANK,
        column!("params", params),
        first,
        second,
    ]
}

const METHODS: [Column<Costs>; 5] = [
    column!("method", |row| format!("{}{}", row.method, if row.exact { "" } else { " *" })),
    column!("", |row| row.why.into()),
    column!("trained", trained_params),
    column!("max rank", max_rank),
    Column { head: "MB", number: true, cell: |row| megabytes(row.gradient_bytes) },
];

/// Writes bytes as megabytes with one decimal.
fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}
