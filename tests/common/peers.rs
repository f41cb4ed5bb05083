//! What comparisons with other engines share: how close a choice was.

/// The gap between the two most likely tokens, in nat.
pub(crate) fn top2_gap(mut row: Vec<f32>) -> f32 {
    row.sort_unstable_by(f32::total_cmp);
    row[row.len() - 1] - row[row.len() - 2]
}
