//! The calls of a timed graph: how often an engine runs in it, and on which sets.

/// Most rows whose calls are too short to be timed one by one.
const FEW_ROWS: usize = 64;
/// Fewest calls in a graph over few rows.
const FEW_CALLS: usize = 20;

/// The calls of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Number of calls, on one set after another.
    pub calls: usize,
    /// True if the caches are flushed between the calls, which would else find the engine's weight there.
    pub flushed: bool,
    /// True if the time of a graph without the calls is taken off, because starting one counts.
    pub net: bool,
}

impl Sweep {
    /// Chooses the sweep of an engine over `rows` rows and `sets` sets. One with a `whole` weight of its own, or a
    /// whole ΔW, uses one set: a second would find it in the caches.
    pub const fn new(rows: usize, sets: usize, whole: bool) -> Self {
        let few = rows <= FEW_ROWS;
        let calls = match (few, whole) {
            (false, true) => 1,
            (false, false) => sets,
            (true, true) => FEW_CALLS,
            (true, false) if sets > FEW_CALLS => sets,
            (true, false) => FEW_CALLS,
        };
        Self { calls, flushed: few && whole, net: few }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_run_twenty_times_in_a_graph() {
        for sets in [1, 7, 32] {
            for rows in [1, 16, 64] {
                let (own, whole) = (Sweep::new(rows, sets, false), Sweep::new(rows, sets, true));
                assert!(own.calls >= 20 && own.calls >= sets && own.net && !own.flushed, "{own:?}");
                assert_eq!(whole, Sweep { calls: 20, flushed: true, net: true });
            }
            assert_eq!(Sweep::new(65, sets, false), Sweep { calls: sets, flushed: false, net: false });
            assert_eq!(Sweep::new(4096, sets, true), Sweep { calls: 1, flushed: false, net: false });
        }
    }
}
