//! Launches of `kernels/sample.cu`, and the tables it reads.
//!
//! [`SampleTable`] turns [`SamplingParams`] and histories into what a kernel can look up: numbers
//! of one width, and one edit a token, ascending by id. The kernels repeat [`crate::sample`] on
//! integers, so they draw the CPU's token. Read next: `kernels/common/sample.cuh`.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch, SampleOut};
use crate::ids::TokenId;
use crate::sample::{History, Key, MASS_ONE, SamplingParams};
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// CTAs that read one row.
const PARTS: u32 = 32;
/// Threads of each.
const PART_THREADS: u32 = 256;
/// Threads of the CTA that draws.
const DRAW_THREADS: u32 = 512;
/// Bytes of scratch memory a sample.
pub(crate) const SCRATCH_BYTES: usize = 26_896;

/// How one row of logits becomes one token.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Sample {
    seed: u64,
    /// Masses below stay out; at least 1.
    mass_min: u64,
    /// What truncation leaves has more mass than this; 0 with top-k.
    mass_bar: u64,
    logits_row: i32,
    branch: u32,
    position: u32,
    role: u32,
    /// 0: the likeliest token.
    inverse_temperature: f32,
    /// 0: all.
    top_k: i32,
    top_p: f32,
    repetition: f32,
    frequency: f32,
    presence: f32,
    first_edit: i32,
    edits: i32,
    /// First word of the bitmask, or -1: every id.
    allowed: i32,
    /// The row's first ids that are looked at: `V`, or fewer.
    ids: i32,
}

/// A token whose logit changes before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SampleEdit {
    id: i32,
    bias: f32,
    /// 1: the repetition penalty applies.
    seen: i32,
    /// Occurrences in the output: frequency and presence penalty.
    count: i32,
}

/// What sampling left of a row, kept for `accept.cu`; only kernels look inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Cut {
    words: [u64; 7],
}

/// The buffers that samples point into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SampleSource {
    /// [`Sample`]s.
    pub(crate) samples: Address,
    /// [`SampleEdit`]s.
    pub(crate) edits: Address,
    /// Words of 32 ids.
    pub(crate) allowed: Address,
    /// f32 `[rows, V]`.
    pub(crate) logits: Address,
    /// `V`.
    pub(crate) vocab: i32,
    pub(crate) reserved: i32,
}

/// What `sample.cu` takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SampleParams {
    batch: Batch,
    source: SampleSource,
    scratch: Address,
    results: Address,
    cuts: Address,
}

impl SampleParams {
    /// Sizes and offsets, as `forerun_sample_layout` lists them.
    pub(crate) const fn layout() -> &'static [u32] {
        &[
            size_of::<Self>() as u32,
            offset_of!(Self, batch) as u32,
            offset_of!(Self, source) as u32,
            offset_of!(Self, scratch) as u32,
            offset_of!(Self, results) as u32,
            offset_of!(Self, cuts) as u32,
            size_of::<SampleSource>() as u32,
            offset_of!(SampleSource, samples) as u32,
            offset_of!(SampleSource, edits) as u32,
            offset_of!(SampleSource, allowed) as u32,
            offset_of!(SampleSource, logits) as u32,
            offset_of!(SampleSource, vocab) as u32,
            offset_of!(SampleSource, reserved) as u32,
            size_of::<Sample>() as u32,
            offset_of!(Sample, seed) as u32,
            offset_of!(Sample, mass_min) as u32,
            offset_of!(Sample, mass_bar) as u32,
            offset_of!(Sample, logits_row) as u32,
            offset_of!(Sample, branch) as u32,
            offset_of!(Sample, position) as u32,
            offset_of!(Sample, role) as u32,
            offset_of!(Sample, inverse_temperature) as u32,
            offset_of!(Sample, top_k) as u32,
            offset_of!(Sample, top_p) as u32,
            offset_of!(Sample, repetition) as u32,
            offset_of!(Sample, frequency) as u32,
            offset_of!(Sample, presence) as u32,
            offset_of!(Sample, first_edit) as u32,
            offset_of!(Sample, edits) as u32,
            offset_of!(Sample, allowed) as u32,
            offset_of!(Sample, ids) as u32,
            size_of::<SampleEdit>() as u32,
            offset_of!(SampleEdit, id) as u32,
            offset_of!(SampleEdit, bias) as u32,
            offset_of!(SampleEdit, seen) as u32,
            offset_of!(SampleEdit, count) as u32,
            size_of::<Cut>() as u32,
            SCRATCH_BYTES as u32,
            size_of::<SampleOut>() as u32,
        ]
    }
}

/// The same parameters for one of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct Stage<const N: usize>(SampleParams);

impl KernelParams for Stage<0> {
    const KERNEL: &'static str = "forerun_sample_top";
}
impl KernelParams for Stage<1> {
    const KERNEL: &'static str = "forerun_sample_weigh";
}
impl KernelParams for Stage<2> {
    const KERNEL: &'static str = "forerun_sample_draw";
}

/// The samples of one pass as the kernel reads them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SampleTable {
    /// One a row to draw from.
    pub(crate) samples: Vec<Sample>,
    /// Of all rows; those of one row ascend by id.
    pub(crate) edits: Vec<SampleEdit>,
    /// Bitmasks of all rows that have one.
    pub(crate) allowed: Vec<u32>,
}

impl SampleTable {
    /// Adds a draw from the first `vocab` ids of row `logits_row`, which may hold more.
    ///
    /// `allowed` has bit `id % 32` of word `id / 32` set for every id that may be drawn; without
    /// it every id may. Others count as having a logit of minus infinity after all edits. The
    /// log-probability, entropy and top-1 probability stay those of the raw row.
    ///
    /// # Panics
    /// If `allowed` has not a word for every 32 ids.
    pub(crate) fn push(
        &mut self,
        logits_row: usize,
        params: &SamplingParams,
        history: &History<'_>,
        key: &Key,
        vocab: usize,
        allowed: Option<&[u32]>,
    ) {
        let first_edit = self.edits.len();
        self.push_edits(params, history, vocab);
        let first_word = allowed.map_or(-1, |words| {
            assert_eq!(words.len(), vocab.div_ceil(32), "words of a bitmask of {vocab} ids");
            let first = self.allowed.len() as i32;
            self.allowed.extend_from_slice(words);
            first
        });
        let top_k = if (params.top_k as usize) < vocab { params.top_k as i32 } else { 0 };
        let mass_min = (f64::from(params.min_p.min(1.0)) * MASS_ONE as f64).ceil().max(1.0) as u64;
        let mass_bar = mass_bar(params.top_p, mass_min, vocab);
        self.samples.push(Sample {
            seed: key.seed,
            mass_min,
            // With top-k, the nucleus is a share of what the k likeliest weigh, all of them.
            mass_bar: if top_k > 0 { 0 } else { mass_bar },
            logits_row: logits_row as i32,
            branch: key.branch.0,
            position: key.position,
            role: key.role.index() as u32,
            inverse_temperature: if params.is_greedy() { 0.0 } else { 1.0 / params.temperature },
            top_k,
            top_p: params.top_p,
            repetition: params.repetition_penalty,
            frequency: params.frequency_penalty,
            presence: params.presence_penalty,
            first_edit: first_edit as i32,
            edits: (self.edits.len() - first_edit) as i32,
            allowed: first_word,
            ids: vocab as i32,
        });
    }

    /// Everything that changes one token's logit, in one place: the order of application is the
    /// kernel's.
    fn push_edits(&mut self, params: &SamplingParams, history: &History<'_>, vocab: usize) {
        let first = self.edits.len();
        let mut add = |id: TokenId, bias: f32, seen: i32, count: i32| {
            if id.index() < vocab {
                self.edits.push(SampleEdit { id: id.0 as i32, bias, seen, count });
            }
        };
        for &(id, bias) in &params.logit_bias {
            add(id, bias, 0, 0);
        }
        let seen = i32::from(params.repetition_penalty != 1.0);
        let counted = params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        if seen == 1 {
            history.prompt.iter().for_each(|id| add(*id, 0.0, seen, 0));
        }
        if seen == 1 || counted {
            history.generated.iter().for_each(|id| add(*id, 0.0, seen, i32::from(counted)));
        }
        let edits = &mut self.edits;
        edits[first..].sort_unstable_by_key(|edit| edit.id);
        let mut end = first;
        for from in first..edits.len() {
            let edit = edits[from];
            if end > first && edits[end - 1].id == edit.id {
                let merged = &mut edits[end - 1];
                merged.bias += edit.bias;
                merged.seen |= edit.seen;
                merged.count += edit.count;
            } else {
                edits[end] = edit;
                end += 1;
            }
        }
        edits.truncate(end);
    }
}

/// A mass that no token of the nucleus, nor any that min-p leaves, is at or below.
///
/// Tokens at or below it sum to at most what the nucleus may leave out, whose share of the sum is
/// known before the sum is: that is at least the likeliest token's mass.
fn mass_bar(top_p: f32, mass_min: u64, vocab: usize) -> u64 {
    // Room for the rounding of the target.
    let left_out = (1.0 - f64::from(top_p) - 1e-15) * MASS_ONE as f64 - 1.0;
    let bar = (left_out / vocab as f64).max(0.0) as u64;
    bar.max(mass_min - 1)
}

/// Where one sampling reads and writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SampleBuffers {
    /// The staged pass, for its count of samples.
    pub(crate) batch: Batch,
    /// The pass's [`SampleTable`] and the logits.
    pub(crate) source: SampleSource,
    /// [`SCRATCH_BYTES`] a sample, a multiple of 8; nothing need be in it.
    pub(crate) scratch: Address,
    /// A [`SampleOut`] a sample.
    pub(crate) results: Address,
    /// A [`Cut`] a sample, or null where no chain will be accepted from these rows.
    pub(crate) cuts: Address,
}

/// Draws for `samples` rows, in this order; the grids may be larger than the staged count.
#[must_use]
pub(crate) fn launch_sample(buffers: &SampleBuffers, samples: u32) -> [Launch; 3] {
    let SampleBuffers { batch, source, scratch, results, cuts } = *buffers;
    let params = SampleParams { batch, source, scratch, results, cuts };
    let parts = [PARTS, samples, 1];
    [
        Launch::new(parts, PART_THREADS, 0, &Stage::<0>(params)),
        Launch::new(parts, PART_THREADS, 0, &Stage::<1>(params)),
        Launch::new([samples, 1, 1], DRAW_THREADS, 0, &Stage::<2>(params)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BranchId, Role};
    use crate::sample::Purpose;

    const KEY: Key = Key {
        seed: 5 << 40 | 3,
        branch: BranchId(9),
        position: 77,
        role: Role::Base,
        purpose: Purpose::Draw,
    };

    fn table(params: &SamplingParams, prompt: &[u32], generated: &[u32]) -> SampleTable {
        let ids = |ids: &[u32]| ids.iter().map(|id| TokenId(*id)).collect::<Vec<_>>();
        let (prompt, generated) = (ids(prompt), ids(generated));
        let mut table = SampleTable::default();
        let history = History { prompt: &prompt, generated: &generated };
        table.push(4, params, &history, &KEY, 100, None);
        table
    }

    #[test]
    fn greedy_rows_have_no_temperature_and_no_edits() {
        let table = table(&SamplingParams::greedy(), &[1, 2], &[3]);
        let sample = table.samples[0];
        assert_eq!((sample.inverse_temperature, sample.edits, sample.allowed), (0.0, 0, -1));
        assert_eq!(
            (sample.seed, sample.branch, sample.position, sample.role),
            (KEY.seed, 9, 77, 1)
        );
        assert_eq!((sample.logits_row, sample.mass_min), (4, 1));
        assert!(table.edits.is_empty());
    }

    #[test]
    fn a_token_has_one_edit_however_often_it_is_named() {
        let params = SamplingParams {
            logit_bias: vec![(TokenId(7), 1.5), (TokenId(200), 1.0)],
            repetition_penalty: 1.1,
            frequency_penalty: 0.5,
            ..SamplingParams::greedy()
        };
        let table = table(&params, &[9, 7, 7], &[3, 9, 3, 100]);
        let edit = |id, bias, seen, count| SampleEdit { id, bias, seen, count };
        assert_eq!(table.edits, [edit(3, 0.0, 1, 2), edit(7, 1.5, 1, 0), edit(9, 0.0, 1, 1)]);
    }

    #[test]
    fn only_the_penalties_that_are_on_look_at_the_history() {
        let params = SamplingParams { presence_penalty: 1.0, ..SamplingParams::greedy() };
        let table = table(&params, &[1, 2], &[5, 5]);
        assert_eq!(table.edits, [SampleEdit { id: 5, bias: 0.0, seen: 0, count: 2 }]);
    }

    #[test]
    fn the_least_mass_is_the_first_integer_that_passes_min_p() {
        for (min_p, mass_min) in [(0.0, 1), (1.0, MASS_ONE), (0.5, MASS_ONE / 2), (1e-20, 1)] {
            let params = SamplingParams { min_p, temperature: 1.0, ..SamplingParams::greedy() };
            assert_eq!(table(&params, &[], &[]).samples[0].mass_min, mass_min, "{min_p}");
        }
        let params = SamplingParams { min_p: 0.1, temperature: 1.0, ..SamplingParams::greedy() };
        let bar = f64::from(0.1_f32) * MASS_ONE as f64;
        let mass_min = table(&params, &[], &[]).samples[0].mass_min;
        assert!(mass_min as f64 >= bar && ((mass_min - 1) as f64) < bar);
    }

    #[test]
    fn a_top_k_that_keeps_everything_is_off() {
        for (top_k, expected) in [(0, 0), (99, 99), (100, 0), (u32::MAX, 0)] {
            let params = SamplingParams { top_k, temperature: 1.0, ..SamplingParams::greedy() };
            assert_eq!(table(&params, &[], &[]).samples[0].top_k, expected);
        }
    }

    #[test]
    fn the_bar_leaves_out_no_more_than_the_nucleus_may() {
        for (top_p, vocab) in [(0.95, 152_064), (0.5, 10), (0.999_999_94, 40_000), (1e-6, 7)] {
            let bar = mass_bar(top_p, 1, vocab);
            for total in [MASS_ONE, MASS_ONE + 12_345, MASS_ONE * vocab as u64] {
                let target = (f64::from(top_p) * total as f64).ceil() as u64;
                assert!(bar * vocab as u64 <= total - target, "{top_p} of {total}: {bar}");
            }
        }
        assert!(mass_bar(0.95, 1, 152_064) > 361_000, "a bar that leaves out nothing is no use");
        assert_eq!(mass_bar(1.0, 1, 100), 0);
        assert_eq!(mass_bar(0.95, MASS_ONE / 10, 100), MASS_ONE / 10 - 1);
        let top_k = SamplingParams { top_k: 5, top_p: 0.9, temperature: 1.0, ..Default::default() };
        assert_eq!(table(&top_k, &[], &[]).samples[0].mass_bar, 0);
    }

    #[test]
    fn a_row_is_read_by_parts_and_drawn_from_by_one_cta() {
        let buffers = SampleBuffers {
            batch: Batch::default(),
            source: SampleSource::zeroed(),
            scratch: Address(8),
            results: Address(16),
            cuts: Address(0),
        };
        let launches = launch_sample(&buffers, 5);
        let grids = launches.each_ref().map(|l| (l.kernel, l.grid, l.threads));
        assert_eq!(
            grids,
            [
                ("forerun_sample_top", [32, 5, 1], 256),
                ("forerun_sample_weigh", [32, 5, 1], 256),
                ("forerun_sample_draw", [5, 1, 1], 512),
            ]
        );
    }

    #[test]
    fn bitmasks_of_several_rows_lie_one_after_another() {
        let mut table = SampleTable::default();
        let (params, history) = (SamplingParams::greedy(), History::default());
        table.push(0, &params, &history, &KEY, 40, Some(&[1, 2]));
        table.push(1, &params, &history, &KEY, 40, None);
        table.push(2, &params, &history, &KEY, 40, Some(&[3, 4]));
        assert_eq!(table.samples.iter().map(|s| s.allowed).collect::<Vec<_>>(), [0, -1, 2]);
        assert_eq!(table.allowed, [1, 2, 3, 4]);
    }
}
