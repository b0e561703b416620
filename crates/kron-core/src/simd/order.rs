//! [`RowOrder`]: the rows of a call by adapter, a counting sort of its index table.

/// Rows of a matrix by adapter, and in the matrix's order within one.
///
/// No row appears twice and each is below `n`: the grids over an order rely on both.
#[derive(Clone, Copy)]
pub(crate) struct RowOrder<'a> {
    rows: &'a [u32],
    n: usize,
    /// Position behind the last row of each adapter.
    ends: &'a [u32],
}

impl<'a> RowOrder<'a> {
    /// Elements of the scratch for a table of `rows` rows over `adapters` adapters.
    pub(crate) const fn scratch_len(adapters: usize, rows: usize) -> usize {
        adapters.saturating_add(rows)
    }

    /// Sorts a table: the adapter of each row, or a negative number for none. Panics on an index
    /// beyond the adapters, and on a scratch that is too short.
    pub(crate) fn new(table: &[i32], adapters: usize, scratch: &'a mut [f32]) -> Self {
        let scratch: &mut [u32] = bytemuck::cast_slice_mut(scratch);
        let (ends, rows) = scratch.split_at_mut(adapters);
        ends.fill(0);
        for &adapter in table {
            if let Ok(adapter) = usize::try_from(adapter) {
                ends[adapter] += 1;
            }
        }
        let mut used = 0;
        for end in &mut *ends {
            // The position of the next row, which ends as that behind the last.
            (*end, used) = (used, used + *end);
        }
        let rows = &mut rows[..used as usize];
        for (row, &adapter) in (0..).zip(table) {
            if let Ok(adapter) = usize::try_from(adapter) {
                rows[ends[adapter] as usize] = row;
                ends[adapter] += 1;
            }
        }
        Self { rows, n: table.len(), ends }
    }

    /// Number of sorted rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Number of rows of an adapter.
    pub(crate) fn count(&self, adapter: usize) -> usize {
        let start = if adapter == 0 { 0 } else { self.ends[adapter - 1] };
        (self.ends[adapter] - start) as usize
    }

    /// Position of an adapter's first row.
    pub(crate) fn start(&self, adapter: usize) -> usize {
        if adapter == 0 { 0 } else { self.ends[adapter - 1] as usize }
    }

    /// Returns the sorted rows of a matrix of `n` rows.
    pub(super) fn rows_of(&self, n: usize) -> &'a [u32] {
        assert_eq!(n, self.n, "rows of an order over {} rows", self.n);
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_adapter_and_none_twice() {
        let table = [2, -1, 0, 2, 0, -1, 3, 2];
        let mut scratch = vec![f32::NAN; RowOrder::scratch_len(5, table.len())];
        let order = RowOrder::new(&table, 5, &mut scratch);
        assert_eq!(order.rows_of(8), [2, 4, 0, 3, 7, 6]);
        let segments = [0, 1, 2, 3, 4].map(|adapter| (order.start(adapter), order.count(adapter)));
        assert_eq!(segments, [(0, 2), (2, 0), (2, 3), (5, 1), (6, 0)]);
        assert_eq!(order.len(), 6);
    }

    #[test]
    #[should_panic(expected = "out of bounds")]
    fn an_index_beyond_the_adapters_is_no_row() {
        RowOrder::new(&[0, 5], 5, &mut [0.0; 7]);
    }
}
