//! [`Launcher`]: which program started this process as one of several ranks, as its variables say.

/// Variables of a launcher: ranks and number of this one, of all and of this host.
struct Variables {
    size: &'static str,
    rank: &'static str,
    local_size: &'static str,
    local_rank: &'static str,
    starts_mpi: bool,
}

/// Variables of Open MPI.
const OPEN_MPI: Variables = Variables {
    size: "OMPI_COMM_WORLD_SIZE",
    rank: "OMPI_COMM_WORLD_RANK",
    local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    starts_mpi: true,
};
/// Variables of torchrun, which starts no MPI.
const TORCHRUN: Variables = Variables {
    size: "WORLD_SIZE",
    rank: "RANK",
    local_size: "LOCAL_WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    starts_mpi: false,
};
/// Variables of MPICH and its relatives.
const MPICH: Variables = Variables {
    size: "PMI_SIZE",
    rank: "PMI_RANK",
    local_size: "MPI_LOCALNRANKS",
    local_rank: "MPI_LOCALRANKID",
    starts_mpi: true,
};
/// Variables of a step of Slurm, which may have started an MPI.
const SLURM: Variables = Variables {
    size: "SLURM_STEP_NUM_TASKS",
    rank: "SLURM_PROCID",
    local_size: "SLURM_STEP_TASKS_PER_NODE",
    local_rank: "SLURM_LOCALID",
    starts_mpi: true,
};

/// Place of this process among the ranks that a launcher started.
#[derive(Debug, PartialEq)]
pub(super) struct Launcher {
    /// Variable with the number of ranks.
    pub name: &'static str,
    /// Number of ranks.
    pub size: usize,
    /// Number of this rank, where the launcher says it.
    pub rank: Option<usize>,
    /// Number of ranks on this host.
    pub local_size: usize,
    /// Number of this rank among those of its host.
    pub local_rank: usize,
    /// True if the ranks are to meet by NCCL: under torchrun, and in a step of Slurm that names rank 0's host.
    pub wants_nccl: bool,
}

impl Launcher {
    /// Returns the launcher nearest to this process: a step of Slurm may start torchrun, and mpirun a script with
    /// torchrun's variables.
    pub fn announced(get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| number(&get(name)?);
        let has_torchrun =
            [TORCHRUN.size, TORCHRUN.rank, TORCHRUN.local_rank].iter().all(|n| number(n).is_some());
        let order = match has_torchrun {
            true => [OPEN_MPI, TORCHRUN, MPICH, SLURM],
            false => [OPEN_MPI, MPICH, SLURM, TORCHRUN],
        };
        let own = order.into_iter().find(|own| number(own.size).is_some())?;
        let is_named = number(SLURM.rank).is_some() && get("MASTER_ADDR").is_some();
        Some(Self {
            name: own.size,
            size: number(own.size)?,
            rank: number(own.rank),
            local_size: number(own.local_size).unwrap_or(1),
            local_rank: number(own.local_rank).unwrap_or(0),
            wants_nccl: !own.starts_mpi || own.size != OPEN_MPI.size && is_named && cfg!(feature = "nccl"),
        })
    }
}

/// Returns the number that a value begins with: Slurm's may be `2(x3)`.
fn number(text: &str) -> Option<usize> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_launcher_is_found() {
        let torchrun = [("WORLD_SIZE", "16"), ("RANK", "9"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "8")];
        let slurm = [
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_PROCID", "1"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_STEP_TASKS_PER_NODE", "1(x2)"),
        ];
        let mpi = [
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "2"),
        ];
        let pmi = [("PMI_SIZE", "2"), ("PMI_RANK", "1")];
        let of = |sets: &[&[(&str, &str)]]| {
            let set = sets.concat();
            Launcher::announced(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        let found = |sets: &[&[(&str, &str)]]| {
            let one = of(sets).expect("a launcher");
            (one.name, one.size, one.rank, one.local_size, one.local_rank, one.wants_nccl)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(found(&[&torchrun]), ("WORLD_SIZE", 16, Some(9), 8, 1, true));
        assert_eq!(found(&[&torchrun, &slurm, &pmi]), ("WORLD_SIZE", 16, Some(9), 8, 1, true));
        assert_eq!(found(&[&torchrun, &mpi]), ("OMPI_COMM_WORLD_SIZE", 4, Some(3), 1, 2, false));
        assert_eq!(found(&[&slurm]), ("SLURM_STEP_NUM_TASKS", 2, Some(1), 1, 0, false));
        assert_eq!(found(&[&slurm, &pmi]), ("PMI_SIZE", 2, Some(1), 1, 0, false));
        // One variable of torchrun alone is set by other programs too.
        assert_eq!(found(&[&torchrun[..1], &slurm]).0, "SLURM_STEP_NUM_TASKS");
        let named = found(&[&slurm, &[("MASTER_ADDR", "a")]]);
        assert_eq!(named, ("SLURM_STEP_NUM_TASKS", 2, Some(1), 1, 0, cfg!(feature = "nccl")));
    }
}
