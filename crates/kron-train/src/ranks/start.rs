//! Start of the ranks that the environment asks for.

use std::env::var;
use std::time::Duration;

use super::World;
use crate::error::{Result, invalid};

/// Variables with the number of ranks: of Open MPI, of MPICH and its relatives, of a step of Slurm, of torchrun.
const SIZES: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "WORLD_SIZE"];
/// Variables with the number of ranks on this host.
const LOCAL_SIZES: [&str; 4] =
    ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE", "LOCAL_WORLD_SIZE"];

/// Returns the number of ranks that share this process's processors: all of its host, or this one alone if a launcher
/// bound it to some processors.
pub fn sharers() -> usize {
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online");
    let is_bound = allowed.zip(online.as_deref().ok()).is_some_and(|(own, all)| own.trim() != all.trim());
    if is_bound { 1 } else { LOCAL_SIZES.iter().find_map(|name| number(name)).unwrap_or(1).max(1) }
}

/// Starts the ranks that a launcher announces in the environment; without one, the single rank.
///
/// A rank that waits for another one longer than `timeout` fails; `report` gets the sentence where no error can be
/// returned.
///
/// # Errors
/// Several ranks are announced, but the program was built without MPI, or MPI has another number of them.
pub fn start(timeout: Duration, report: fn(&str)) -> Result<World> {
    let announced = SIZES.iter().find_map(|name| Some((*name, number(name)?)));
    let Some((name, size)) = announced.filter(|(_, size)| *size > 1) else { return Ok(World::alone()) };
    let world = connect(name, size, timeout, report)?;
    match world.count() {
        count if count == size => Ok(world),
        count => Err(invalid(format!(
            "{name} announces {size} ranks, but MPI has {count}: start the program by mpirun, or by srun with --mpi"
        ))),
    }
}

#[cfg(feature = "mpi")]
fn connect(_name: &str, _size: usize, timeout: Duration, report: fn(&str)) -> Result<World> {
    let link = super::mpi::Mpi::start(timeout, report)?;
    Ok(if super::link::Link::count(&link) == 1 { World::alone() } else { World::new(Box::new(link)) })
}

#[cfg(not(feature = "mpi"))]
fn connect(name: &str, size: usize, _timeout: Duration, _report: fn(&str)) -> Result<World> {
    Err(invalid(format!(
        "{name} announces {size} ranks, but this program was built without MPI, which is the feature mpi"
    )))
}

/// Returns the number that a variable begins with: Slurm's may be `2(x3)`.
fn number(name: &str) -> Option<usize> {
    let text = var(name).ok()?;
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}
