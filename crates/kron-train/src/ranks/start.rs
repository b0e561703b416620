//! Start of the ranks that the environment asks for.

use std::env::var;
use std::time::Duration;

use super::World;
use super::launcher::Launcher;
use crate::error::{Result, invalid};

fn launcher() -> Option<Launcher> {
    Launcher::announced(|name| var(name).ok())
}

/// Returns this rank's number among those of its host, 0 where no launcher says it.
pub fn local_rank() -> usize {
    launcher().map_or(0, |launcher| launcher.local_rank)
}

/// Returns the number of ranks that share this process's processors: all of its host, or this one alone if a launcher
/// bound it to some processors.
pub fn sharers() -> usize {
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online");
    let is_bound = allowed.zip(online.as_deref().ok()).is_some_and(|(own, all)| own.trim() != all.trim());
    if is_bound { 1 } else { launcher().map_or(1, |launcher| launcher.local_size.max(1)) }
}

/// Starts the ranks that a launcher announces in the environment; without one, the single rank.
///
/// A rank that waits for another one longer than `timeout` fails; `report` gets the sentence where no error can be
/// returned.
///
/// # Errors
/// Several ranks are announced, but the program was built without MPI or NCCL, whichever they meet by, or it finds more
/// or fewer of them.
pub fn start(timeout: Duration, report: fn(&str)) -> Result<World> {
    let Some(launcher) = launcher().filter(|launcher| launcher.size > 1) else { return Ok(World::alone()) };
    let meet = if launcher.wants_nccl { by_nccl } else { by_mpi };
    let (world, Launcher { name, size, .. }) = (meet(&launcher, timeout, report)?, launcher);
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
fn by_mpi(_launcher: &Launcher, timeout: Duration, report: fn(&str)) -> Result<World> {
    Ok(world(super::mpi::Mpi::start(timeout, report)?))
}

#[cfg(not(feature = "mpi"))]
fn by_mpi(Launcher { name, size, .. }: &Launcher, _timeout: Duration, _report: fn(&str)) -> Result<World> {
    Err(invalid(format!(
        "{name} announces {size} ranks, but this program was built without MPI, which is the feature mpi"
    )))
}

#[cfg(feature = "nccl")]
fn by_nccl(launcher: &Launcher, timeout: Duration, report: fn(&str)) -> Result<World> {
    let meeting = super::rendezvous::Rendezvous::of(launcher, |name| var(name).ok())?;
    let gpu = crate::compute::gpu_of_rank(0, launcher.local_rank)?;
    Ok(world(super::nccl::Nccl::start(&meeting, gpu, timeout, report)?))
}

#[cfg(not(feature = "nccl"))]
fn by_nccl(Launcher { name, size, .. }: &Launcher, _timeout: Duration, _report: fn(&str)) -> Result<World> {
    Err(invalid(format!(
        "{name} announces {size} ranks, but this program was built without NCCL, which is the feature nccl: \
         start it by mpirun, or by srun with --mpi"
    )))
}
