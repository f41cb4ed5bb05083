//! Queues and budgets to a plan for the next engine step. Pure: no device, no clock, no threads.
//!
//! Every engine step the engine lists what each request wants from one model; [`plan`] says how
//! many rows each gets. Short work (decode rows) goes first, so a long prompt never stalls decoding
//! by more than one chunk; the rest is served in order of arrival. Invariant: the plan never
//! exceeds a budget, and the oldest waiting work always gets at least one row when there is room.

/// What one task wants of a model in the next pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Rows the task still has to feed; at least 1.
    pub rows: usize,
    /// Rows of full logits: one for each of its last so many rows.
    pub full_rows: usize,
    /// Order of arrival; lower came first.
    pub arrival: u64,
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
/// A task that is granted a row is also granted its row of full logits; where these run out, it
/// gets no more rows.
#[must_use]
pub fn plan(work: &[Work], budget: Budget) -> Vec<usize> {
    let mut order: Vec<usize> = (0..work.len()).collect();
    order.sort_by_key(|&i| (work[i].rows > 1, work[i].arrival, i));
    let mut left = budget;
    let mut grants = vec![0; work.len()];
    for i in order {
        let w = work[i];
        let mut rows = w.rows.min(left.rows);
        let without = w.rows - w.full_rows;
        rows = rows.min(without + left.full_rows);
        left.full_rows -= rows.saturating_sub(without);
        left.rows -= rows;
        grants[i] = rows;
    }
    grants
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_prompt_never_delays_a_decode() {
        let work = [
            Work { rows: 5000, full_rows: 1, arrival: 0 },
            Work { rows: 1, full_rows: 1, arrival: 1 },
        ];
        assert_eq!(plan(&work, Budget { rows: 512, full_rows: 4 }), [511, 1]);
    }

    #[test]
    fn a_task_without_room_for_its_logits_waits_at_its_last_row() {
        let work = [
            Work { rows: 1, full_rows: 1, arrival: 0 },
            Work { rows: 7, full_rows: 1, arrival: 1 },
        ];
        assert_eq!(plan(&work, Budget { rows: 512, full_rows: 1 }), [1, 6]);
    }

    #[test]
    fn a_window_is_cut_to_the_logits_there_are_room_for() {
        let work = [
            Work { rows: 1, full_rows: 1, arrival: 1 },
            Work { rows: 12, full_rows: 9, arrival: 0 },
            Work { rows: 5, full_rows: 5, arrival: 2 },
        ];
        assert_eq!(plan(&work, Budget { rows: 512, full_rows: 8 }), [1, 10, 0]);
    }

    proptest! {
        #[test]
        fn no_plan_exceeds_a_budget_and_the_oldest_moves(
            sizes in prop::collection::vec((9usize..700, 0usize..10), 1..40),
            rows in 1usize..600, full_rows in 1usize..8,
        ) {
            let work: Vec<Work> = sizes
                .iter()
                .enumerate()
                .map(|(i, &(rows, full_rows))| Work { rows, full_rows, arrival: i as u64 })
                .collect();
            let grants = plan(&work, Budget { rows, full_rows });
            prop_assert!(grants.iter().sum::<usize>() <= rows);
            let full: usize = work
                .iter()
                .zip(&grants)
                .map(|(w, g)| (w.full_rows + g).saturating_sub(w.rows))
                .sum();
            prop_assert!(full <= full_rows);
            prop_assert!(work.iter().zip(&grants).all(|(w, g)| *g <= w.rows));
            prop_assert!(grants.iter().any(|g| *g > 0));
        }
    }
}
