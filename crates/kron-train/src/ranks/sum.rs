//! Sum of vectors over all ranks, in the order of ranks, so that its bits do not depend on their number.

use super::World;
use super::link::{self, Link, PIECE};
use crate::error::Result;

impl World {
    /// Adds each rank's vectors to a sum: those of rank 0 first, each rank's in their order; `sum` begins with rank 0's,
    /// and all ranks have the whole afterwards.
    ///
    /// The sum passes through the ranks in pieces, so that they add at the same time, and comes back from the last.
    /// Numbers of bytes sent: 2·(ranks − 1) times those of the sum.
    ///
    /// # Errors
    /// An exchange fails, which is an error of a rank with vectors of another length, too.
    pub fn sum_in_order(&self, what: &str, sum: &mut [f32], parts: &[Vec<f32>]) -> Result<()> {
        let exchange = self.begin(what);
        let Some(link) = &self.link else {
            parts.iter().for_each(|part| add(sum, part));
            return Ok(());
        };
        let (link, rank, last) = (&**link, self.rank(), self.count() - 1);
        let mut bytes = Vec::new();
        // To the last rank.
        if rank > 0 {
            link::ask(link, rank - 1, &exchange)?;
        }
        if rank < last {
            link::answer(link, rank + 1, &exchange)?;
        }
        for at in (0..sum.len()).step_by(PIECE / 4) {
            let end = sum.len().min(at + PIECE / 4);
            if rank > 0 {
                receive(link, rank - 1, &exchange, &mut sum[at..end], &mut bytes)?;
            }
            parts.iter().for_each(|part| add(&mut sum[at..end], &part[at..end]));
            if rank < last {
                link::send_piece(link, rank + 1, &exchange, bytemuck::cast_slice(&sum[at..end]))?;
            }
        }
        // Back from it, through rank 0.
        let before = if rank == 0 { last } else { rank - 1 };
        let after = if rank == last { 0 } else { rank + 1 };
        let receives = rank < last;
        let sends = rank == last || after < last;
        if receives {
            link::ask(link, before, &exchange)?;
        }
        if sends {
            link::answer(link, after, &exchange)?;
        }
        for at in (0..sum.len()).step_by(PIECE / 4) {
            let end = sum.len().min(at + PIECE / 4);
            if receives {
                receive(link, before, &exchange, &mut sum[at..end], &mut bytes)?;
            }
            if sends {
                link::send_piece(link, after, &exchange, bytemuck::cast_slice(&sum[at..end]))?;
            }
        }
        Ok(())
    }
}

fn add(sum: &mut [f32], part: &[f32]) {
    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
}

fn receive(
    link: &dyn Link,
    from: usize,
    exchange: &str,
    values: &mut [f32],
    bytes: &mut Vec<u8>,
) -> Result<()> {
    link::receive_piece(link, from, exchange, size_of_val(values), bytes)?;
    bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::in_threads;
    use super::*;

    /// Values whose sum depends on the order; the vectors are longer than a piece and no multiple of it.
    fn part(index: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 31 + index * 7) % 101) as f32 * 10f32.powi((index % 5) as i32 - 2);
        (0..PIECE / 4 + 1003).map(value).collect()
    }

    #[test]
    fn the_sum_has_the_same_bits_for_any_number_of_ranks() {
        const PARTS: usize = 12;
        let summed = |count: usize| {
            let all = in_threads(count, Duration::from_secs(20), |world| {
                let mut own: Vec<Vec<f32>> = world.share(PARTS).map(part).collect();
                let mut sum = match world.is_first() {
                    true => own.remove(0),
                    false => vec![f32::NAN; part(0).len()],
                };
                world.sum_in_order("the sum", &mut sum, &own)?;
                Ok(sum)
            });
            let all: Vec<Vec<f32>> = all.into_iter().map(|sum| sum.expect("a sum")).collect();
            assert!(all.iter().all(|sum| sum == &all[0]));
            all[0].iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        };
        let one = summed(1);
        assert!((2..6).all(|count| summed(count) == one));
    }
}
