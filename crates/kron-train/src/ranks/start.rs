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

/// Variables with a rank's number among those of its host, in the same order.
const LOCAL_RANKS: [&str; 4] =
    ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "LOCAL_RANK"];

/// Returns this rank's number among those of its host, 0 where no launcher says it.
pub fn local_rank() -> usize {
    LOCAL_RANKS.iter().find_map(|name| number(name)).unwrap_or(0)
}

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
/// Several ranks are announced, but the program was built without MPI or NCCL, whichever starts them, or there is
/// another number of them.
pub fn start(timeout: Duration, report: fn(&str)) -> Result<World> {
    let announced = SIZES.iter().find_map(|name| Some((*name, number(name)?)));
    let Some((name, size)) = announced.filter(|(_, size)| *size > 1) else { return Ok(World::alone()) };
    // torchrun starts no MPI; a step of Slurm may have one, and has to name rank 0's host where NCCL is meant.
    let is_named = cfg!(feature = "nccl") && name.starts_with("SLURM") && var("MASTER_ADDR").is_ok();
    let has_mpi = name != "WORLD_SIZE" && !is_named;
    let world =
        if has_mpi { by_mpi(name, size, timeout, report) } else { by_nccl(name, size, timeout, report) }?;
    match world.count() {
        count if count == size => Ok(world),
        count => Err(invalid(format!(
            "{name} announces {size} ranks, but there are {count}: start the program by mpirun, by srun with --mpi, or, \
             with the feature nccl, by torchrun"
        ))),
    }
}

#[cfg(any(feature = "mpi", feature = "nccl"))]
fn world(link: impl super::link::Link + 'static) -> World {
    if link.count() == 1 { World::alone() } else { World::new(Box::new(link)) }
}

#[cfg(feature = "mpi")]
fn by_mpi(_name: &str, _size: usize, timeout: Duration, report: fn(&str)) -> Result<World> {
    Ok(world(super::mpi::Mpi::start(timeout, report)?))
}

#[cfg(not(feature = "mpi"))]
fn by_mpi(name: &str, size: usize, _timeout: Duration, _report: fn(&str)) -> Result<World> {
    Err(invalid(format!(
        "{name} announces {size} ranks, but this program was built without MPI, which is the feature mpi"
    )))
}

#[cfg(feature = "nccl")]
fn by_nccl(_name: &str, _size: usize, timeout: Duration, report: fn(&str)) -> Result<World> {
    let place = super::place::Place::announced(|name| var(name).ok())?;
    let gpu = crate::compute::Device::Cuda(0).of_rank(local_rank())?;
    let crate::compute::Device::Cuda(gpu) = gpu else { return Ok(World::alone()) };
    Ok(world(super::nccl::Nccl::start(&place, gpu, timeout, report)?))
}

#[cfg(not(feature = "nccl"))]
fn by_nccl(name: &str, size: usize, _timeout: Duration, _report: fn(&str)) -> Result<World> {
    Err(invalid(format!(
        "{name} announces {size} ranks, but this program was built without NCCL, which is the feature nccl: \
         start it by mpirun, or by srun with --mpi"
    )))
}

/// Returns the number that a variable begins with: Slurm's may be `2(x3)`.
fn number(name: &str) -> Option<usize> {
    let text = var(name).ok()?;
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}
