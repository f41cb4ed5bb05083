//! Queues and budgets to a plan for the next engine step. Pure: no device, no clock, no threads.
//!
//! Every engine step the engine lists what each request wants from one model; [`plan`] says how
//! many rows each gets. Short work (decode rows) goes first, so a long prompt never stalls decoding
//! by more than one chunk; the rest is served in order of [`Rank`]. Invariant: the plan never
//! exceeds a budget, and the first in rank always gets at least one row when there is room. Read
//! next: [`seats`], which says who is worked on at all.

pub mod seats;

pub use seats::{Admission, Claim, admit, victim};

use std::ops::Range;

/// Whose turn comes first: the lower priority, then the earlier arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rank {
    /// As the request says; lower runs first, 0 unless stated.
    pub priority: i32,
    /// Order of arrival; lower came first.
    pub arrival: u64,
}

/// What one task wants of a model in the next pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Rows the task still has to feed; at least 1.
    pub rows: usize,
    /// Of these, the rows that need full logits, by index.
    pub full: Range<usize>,
    /// Whose it is.
    pub rank: Rank,
}

/// Room in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Rows.
    pub rows: usize,
    /// Rows of full logits.
    pub full_rows: usize,
}

/// Rows granted to each entry of `work`, in its order; 0 means it waits.
///
/// A task that is granted a row is also granted that row's full logits; where these run out, it
/// gets the rows before.
#[must_use]
pub fn plan(work: &[Work], budget: Budget) -> Vec<usize> {
    let mut order: Vec<usize> = (0..work.len()).collect();
    order.sort_by_key(|&i| (work[i].rows > 1, work[i].rank, i));
    let mut left = budget;
    let mut grants = vec![0; work.len()];
    for i in order {
        let full = &work[i].full;
        let mut rows = work[i].rows.min(left.rows);
        if full_rows(full, rows) > left.full_rows {
            rows = full.start + left.full_rows;
        }
        left.full_rows -= full_rows(full, rows);
        left.rows -= rows;
        grants[i] = rows;
    }
    grants
}

/// Rows of full logits among the first `rows` of a task that needs them at `full`.
fn full_rows(full: &Range<usize>, rows: usize) -> usize {
    rows.min(full.end).saturating_sub(full.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Work that draws from its last row.
    fn decode(rows: usize, arrival: u64) -> Work {
        Work { rows, full: rows - 1..rows, rank: Rank { priority: 0, arrival } }
    }

    #[test]
    fn a_long_prompt_never_delays_a_decode() {
        let work = [decode(5000, 0), decode(1, 1)];
        assert_eq!(plan(&work, Budget { rows: 512, full_rows: 4 }), [511, 1]);
    }

    #[test]
    fn a_task_without_room_for_its_logits_waits_at_its_last_row() {
        let work = [decode(1, 0), decode(7, 1)];
        assert_eq!(plan(&work, Budget { rows: 512, full_rows: 1 }), [1, 6]);
    }

    #[test]
    fn rows_whose_logits_are_all_wanted_are_fed_as_their_room_allows() {
        let scored = Work { full: 3..9, ..decode(12, 1) };
        let feed =
            |full_rows| plan(&[decode(1, 0), scored.clone()], Budget { rows: 512, full_rows });
        assert_eq!((feed(1), feed(5), feed(7)), (vec![1, 3], vec![1, 7], vec![1, 12]));
    }

    #[test]
    fn the_lower_priority_number_is_served_first() {
        let work =
            [decode(400, 0), Work { rank: Rank { priority: -1, arrival: 7 }, ..decode(400, 7) }];
        assert_eq!(plan(&work, Budget { rows: 512, full_rows: 4 }), [112, 400]);
    }

    #[test]
    fn a_window_is_cut_to_the_logits_there_are_room_for() {
        let window =
            |rows, drawn, arrival| Work { full: rows - drawn..rows, ..decode(rows, arrival) };
        let work = [window(1, 1, 1), window(12, 9, 0), window(5, 5, 2)];
        assert_eq!(plan(&work, Budget { rows: 512, full_rows: 8 }), [1, 10, 0]);
    }

    proptest! {
        #[test]
        fn no_plan_exceeds_a_budget_and_the_first_in_rank_moves(
            sizes in prop::collection::vec((1usize..700, 0usize..700, 0usize..9), 1..40),
            rows in 1usize..600, full_rows in 1usize..8,
        ) {
            let work: Vec<Work> = sizes
                .iter()
                .enumerate()
                .map(|(i, &(rows, start, n))| {
                    let start = start.min(rows);
                    Work { full: start..(start + n).min(rows), ..decode(rows, i as u64) }
                })
                .collect();
            let grants = plan(&work, Budget { rows, full_rows });
            prop_assert!(grants.iter().sum::<usize>() <= rows);
            let full = |(w, g): (&Work, &usize)| w.full.clone().filter(|row| row < g).count();
            prop_assert!(work.iter().zip(&grants).map(full).sum::<usize>() <= full_rows);
            prop_assert!(work.iter().zip(&grants).all(|(w, g)| *g <= w.rows));
            prop_assert!(grants.iter().any(|g| *g > 0));
        }
    }
}
