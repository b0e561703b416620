//! Faults injected into the kernels, one at a time; the suite has to detect each.

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use common::group::{self, GROUPS, Group};
use common::segments::{self, Batch, batches};
use common::{CASES, Case, Data, Sizes, case_by_name, check};
use half::bf16;
use kron_core::Result;
use kron_kernels::params::KronParams;
use kron_kernels::plan::BLOCKS;
use kron_kernels::{
    Async, Emulated, GroupPlan, LaunchPlan, Launcher, Problem, Schedule, Site, Step, StreamHandle,
};

/// Orders of threads and copies under which a fault has to change the output, the quickest first.
fn schedules() -> impl Iterator<Item = (Schedule, Async, u64)> {
    let seeds = (1..=8).flat_map(|s| [Async::Coin, Async::Eager, Async::Lazy].map(|c| (Schedule::Pct, c, s)));
    [(Schedule::Fifo, Async::Lazy, 0), (Schedule::Reverse, Async::Eager, 0)].into_iter().chain(seeds)
}

/// Lines of the kernels and their tiles with a barrier or a wait.
fn written() -> BTreeSet<(String, u32)> {
    let folders = ["kernels", "tile"].map(|folder| format!("{}/cuda/{folder}", env!("CARGO_MANIFEST_DIR")));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).expect("the sources"));
    let mut lines = BTreeSet::new();
    for file in files.map(|f| f.expect("a file").path()) {
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        if name == "primitives.cu" {
            continue;
        }
        for (i, line) in std::fs::read_to_string(&file).expect("text").lines().enumerate() {
            if line.contains("__syncthreads();") || line.contains("cp_async_wait<") {
                lines.insert((name.clone(), i as u32 + 1));
            }
        }
    }
    lines
}

/// Runs a case of the suite, or a batch, and returns its bits.
type Run = Rc<dyn Fn(&Emulated) -> Result<Vec<u32>>>;

/// Every case and every batch; true for those that end with the sort of a batch's rows. A fault in the sort makes
/// numbers of rows that do not exist, with which nothing else may run.
fn runs() -> Vec<(bool, Run)> {
    let mut runs: Vec<(bool, Run)> = Vec::new();
    for case in CASES {
        let data = Data::<bf16>::new(case);
        runs.push((false, Rc::new(move |on| Ok(data.clone().run(on)?.bits()))));
    }
    for case in batches() {
        let batch = Batch::<bf16>::new(case);
        let sorted = batch.clone();
        runs.push((false, Rc::new(move |on| Ok(batch.clone().run(on)?.bits()))));
        runs.push((true, Rc::new(move |on| sorted.clone().sort(&Sort(on)))));
    }
    runs
}

/// Runs the sort of a batch's rows alone.
struct Sort<'a>(&'a Emulated);

impl Launcher for Sort<'_> {
    fn plan_segments(&self, problem: &Problem, slots: usize) -> Result<LaunchPlan> {
        self.0.plan_segments(problem, slots)
    }

    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        if step.kernel.as_str() != "kron_sort" {
            return Ok(());
        }
        // SAFETY: the caller's promise about the pointers in `params`.
        unsafe { self.0.launch(step, params, stream) }
    }
}

#[test]
fn every_dropped_barrier_and_weakened_wait_is_noticed() {
    let clean = |(blocks, (sort, run)): (usize, (bool, Run))| {
        let on = Emulated { blocks, ..Emulated::new() };
        let bits = run(&on).expect("the suite runs");
        let mut sites = on.sites.into_inner();
        sites.retain(|site| (site.kernel == "kron_sort") == sort);
        (run, blocks, bits, sites)
    };
    let all = [1, BLOCKS].into_iter().flat_map(|blocks| runs().into_iter().map(move |run| (blocks, run)));
    let clean = all.map(clean).collect::<Vec<_>>();
    let mut cases = BTreeMap::<&Site, Vec<_>>::new();
    for (run, blocks, bits, sites) in &clean {
        sites.iter().for_each(|site| cases.entry(site).or_default().push((run, *blocks, bits)));
    }
    let met = cases.keys().map(|s| (s.file.clone(), s.line)).collect::<BTreeSet<_>>();
    assert_eq!(met, written(), "barriers and waits that the suite's cases reach, and those of the sources");
    let survives = |site: &Site| {
        schedules().all(|(schedule, copies, seed)| {
            cases[site].iter().all(|&(run, blocks, bits)| {
                let on = Emulated::with(schedule, copies, seed);
                let on = Emulated { blocks, fault: Some(site.clone()), ..on };
                let same = run(&on).is_ok_and(|done| done == *bits);
                assert!(on.faults.get() > 0, "{site:?} was met without its fault");
                same
            })
        })
    };
    println!(
        "{} barriers and waits of {} kernels",
        cases.len(),
        cases.keys().map(|s| &s.kernel).collect::<BTreeSet<_>>().len()
    );
    let survivors = cases.keys().filter(|site| survives(site)).collect::<Vec<_>>();
    assert!(survivors.is_empty(), "of {} faults these show in no bit: {survivors:#?}", cases.len());
}

/// Runs all kernels except one.
struct Without<'a> {
    kernel: &'a str,
    on: Emulated,
    met: RefCell<BTreeSet<String>>,
}

impl<'a> Without<'a> {
    fn new(kernel: &'a str, blocks: usize) -> Self {
        Self { kernel, on: Emulated { blocks, ..Emulated::new() }, met: RefCell::default() }
    }
}

impl Launcher for Without<'_> {
    fn plan(&self, problem: &Problem) -> Result<LaunchPlan> {
        self.on.plan(problem)
    }

    fn plan_segments(&self, problem: &Problem, slots: usize) -> Result<LaunchPlan> {
        self.on.plan_segments(problem, slots)
    }

    fn plan_group(&self, x: &Problem, terms: &[Problem]) -> Result<Option<GroupPlan>> {
        self.on.plan_group(x, terms)
    }

    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        self.met.borrow_mut().insert(step.kernel.to_string());
        if step.kernel.as_str() == self.kernel {
            if self.kernel == "kron_sort" {
                // Scratch starts as NaN, which is no list of tiles; one of zeros has no rows.
                // SAFETY: the list has four elements for each of the tiles, and nothing else uses it.
                unsafe { std::ptr::write_bytes(params.segments, 0, 4 * params.tiles as usize) };
            }
            return Ok(());
        }
        // SAFETY: the caller's promise about the pointers in `params`.
        unsafe { self.on.launch(step, params, stream) }
    }
}

#[test]
fn the_oracle_notices_every_kernel_that_does_nothing() {
    let other = |kernel: &String| kernel.contains("_f32_") || kernel.contains("_f16_");
    let kernels = Emulated::kernels().into_iter().filter(|k| k.starts_with("kron_") && !other(k));
    let kernels = kernels.collect::<BTreeSet<_>>();
    let mut cases = BTreeMap::<String, (Case, usize)>::new();
    for (case, blocks) in CASES.into_iter().flat_map(|case| [(case, BLOCKS), (case, 1)]) {
        let on = Without::new("", blocks);
        Data::<bf16>::new(case).run(&on).expect("the suite runs");
        for kernel in on.met.take() {
            cases.entry(kernel).or_insert((case, blocks));
        }
    }
    let batch = batches().remove(0);
    let on = Without::new("", BLOCKS);
    Batch::<bf16>::new(batch.clone()).run(&on).expect("the suite runs");
    let of_segments = on.met.take();
    let on = Without::new("", 1);
    Group::<bf16>::new(GROUPS[0]).run(&on).expect("the suite runs");
    let of_group = on.met.take();
    std::panic::set_hook(Box::new(|_| {})); // the panics below are expected
    let fails = |kernel: &str, (case, blocks)| {
        catch_unwind(AssertUnwindSafe(|| check::<bf16>(case, &Without::new(kernel, blocks)))).is_err()
    };
    let mut unnoticed = cases
        .iter()
        .filter(|(kernel, case)| !fails(kernel, **case))
        .map(|(kernel, _)| kernel)
        .collect::<Vec<_>>();
    let fails = |kernel: &str| {
        let on = Without::new(kernel, BLOCKS);
        catch_unwind(AssertUnwindSafe(|| segments::check::<bf16>(batch.clone(), &on))).is_err()
    };
    unnoticed.extend(of_segments.iter().filter(|kernel| !fails(kernel)));
    let fails = |kernel: &str| {
        let on = Without::new(kernel, 1);
        catch_unwind(AssertUnwindSafe(|| group::check::<bf16>(GROUPS[0], &on))).is_err()
    };
    unnoticed.extend(of_group.iter().filter(|kernel| !fails(kernel)));
    drop(std::panic::take_hook());
    assert!(
        unnoticed.is_empty(),
        "of {} kernels: {unnoticed:?}",
        cases.len() + of_segments.len() + of_group.len()
    );
    let run = cases.into_keys().chain(of_segments).chain(of_group).collect::<BTreeSet<_>>();
    let missing = kernels.difference(&run).collect::<Vec<_>>();
    assert!(missing.is_empty(), "the suite does not run {missing:?}");
}

/// Accessor of a factor in a launch's parameters.
type Field = fn(&mut KronParams) -> &mut *const f32;

/// Passes one kernel a factor with swapped indices.
struct Swapped<'a> {
    kernel: &'a str,
    /// The factor's rows and columns.
    dims: (usize, usize),
    factor: Field,
    on: Emulated,
}

impl Launcher for Swapped<'_> {
    fn plan(&self, problem: &Problem) -> Result<LaunchPlan> {
        self.on.plan(problem)
    }

    fn plan_segments(&self, problem: &Problem, slots: usize) -> Result<LaunchPlan> {
        self.on.plan_segments(problem, slots)
    }

    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        let (mut params, (rows, cols), mut swapped) = (*params, self.dims, Vec::new());
        let pointer = (self.factor)(&mut params);
        if step.kernel.as_str() == self.kernel {
            // SAFETY: the factor has rows·cols elements, because θ was checked against the problem.
            let factor = unsafe { std::slice::from_raw_parts(*pointer, rows * cols) };
            swapped.extend((0..rows * cols).map(|at| factor[at % rows * cols + at / rows]));
            *pointer = swapped.as_ptr();
        }
        // SAFETY: the caller's promise about the pointers in `params`, and `swapped` outlives the launch, which
        // the emulator has run when it returns.
        unsafe { self.on.launch(step, &params, stream) }
    }
}

#[test]
fn the_oracle_notices_swapped_indices_of_every_factor() {
    let tensor_cores = (
        case_by_name("five tokens on tensor cores"),
        ["down_bf16_r8", "up_bf16_s8", "dy_bf16_n8", "dx_bf16_s8"],
    );
    let many_rows =
        (case_by_name("rank 8, above small m"), ["down_bf16_r8", "up_bf16_r8", "dy_bf16_r8", "dx_bf16_r8"]);
    let simt =
        (case_by_name("odd everything"), ["down_bf16_t16", "up_bf16_t64", "dy_bf16_t32", "dx_bf16_t32"]);
    std::panic::set_hook(Box::new(|_| {})); // the panics below are expected
    let mut unnoticed = Vec::new();
    for (case, [down, up, dy, dx]) in [tensor_cores, many_rows, simt] {
        let (Sizes { a_out, a_in, b_out, c_in, rank }, merge) = (case.sizes, "merge_bf16_t64");
        let factors: [(_, _, Field, _); 3] = [
            ("A", (a_out, a_in), |p| &mut p.a, [up, dy, merge]),
            ("B", (b_out, rank), |p| &mut p.b, [up, dy, merge]),
            ("C", (rank, c_in), |p| &mut p.c, [down, dx, merge]),
        ];
        for (name, dims, factor, kernels) in factors {
            for kernel in kernels.map(|kernel| format!("kron_{kernel}")) {
                let on =
                    Swapped { kernel: &kernel, dims, factor, on: Emulated { blocks: 1, ..Emulated::new() } };
                if catch_unwind(AssertUnwindSafe(|| check::<bf16>(case, &on))).is_ok() {
                    unnoticed.push(format!("{name} in {kernel}, {}", case.why));
                }
            }
        }
    }
    // One slot, because the pointer of a factor is that of the first.
    let batch = batches().into_iter().find(|batch| batch.slots == 1).expect("a batch of one slot");
    let Sizes { a_out, a_in, b_out, c_in, rank } = batch.case.sizes;
    let factors: [(_, _, Field, _); 3] = [
        ("A", (a_out, a_in), |p| &mut p.a, ["down", "dy"]),
        ("B", (b_out, rank), |p| &mut p.b, ["up", "dy"]),
        ("C", (rank, c_in), |p| &mut p.c, ["down", "dx"]),
    ];
    for (name, dims, factor, kernels) in factors {
        for kernel in kernels.map(|kernel| format!("kron_{kernel}_bf16_segments")) {
            let on = Swapped { kernel: &kernel, dims, factor, on: Emulated::new() };
            let check = || segments::check::<bf16>(batch.clone(), &on);
            if catch_unwind(AssertUnwindSafe(check)).is_ok() {
                unnoticed.push(format!("{name} in {kernel}"));
            }
        }
    }
    drop(std::panic::take_hook());
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}
