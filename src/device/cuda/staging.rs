//! A ragged batch as the device reads it: one blob, one copy, sizes rounded up.
//!
//! Every array of the blob has room for a power of two of elements, so passes of about the same
//! shape have the same layout, the same grids and the same graph. Pure host code: it writes bytes
//! and computes addresses. Read next: `kernels/common/batch.cuh`, the reader.

use super::layout::VocabHead;
use super::layout::{Address, Batch, Counts, Group, HeadOut, LabelHead, ResultsView, SampleOut};
use super::ops::feed::{FED_TOKEN, Fed};
pub(super) use super::ops::labels::LABELS_MAX;
use super::ops::sample::SampleTable;
use super::plan::{PlanLimits, plan_attention};
use crate::device::{HeadKind, HeadResult, Mask, RaggedBatch, Results, Shape};
use crate::error::DeviceError;
use crate::ids::TokenId;
use crate::sample::Sampled;
use bytemuck::Pod;

/// Arrays begin at multiples of this: the widest load of a kernel.
const ALIGNMENT: usize = 16;

/// Rounds a count up to the next size of its class; zero stays zero.
pub(super) fn bucket(count: usize) -> usize {
    if count == 0 { 0 } else { count.next_power_of_two() }
}

/// Sizes that grids are made of: counts rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Buckets {
    pub(super) rows: usize,
    pub(super) attention_work: usize,
    pub(super) vocab_heads: usize,
    /// The most ids that one of them looks at, as they are.
    pub(super) head_ids: usize,
    pub(super) label_heads: usize,
    pub(super) samples: usize,
    pub(super) fed: usize,
}

/// A staged batch: where its arrays lie, how large grids are, and how to read its results.
#[derive(Debug)]
pub struct CudaBatch {
    pub(super) view: Batch,
    pub(super) buckets: Buckets,
    pub(super) bytes: usize,
    /// Rows of the sampling penalties and biases, and words of token masks.
    pub(super) edits: Address,
    pub(super) allowed: Address,
    /// Rows the pass before feeds.
    pub(super) fed: Address,
    /// Where its rows were in the pass it was split off.
    pub(super) kept: Address,
    /// Where its results go; set by the stream.
    pub(super) results_at: Address,
    host: RaggedBatch,
    labels: usize,
}

/// Writes arrays one after another.
struct Blob<'a> {
    bytes: &'a mut [u8],
    base: Address,
    at: usize,
}

impl Blob<'_> {
    /// Appends `items`, with room for `bucket(items.len())`.
    fn array<T: Pod>(&mut self, items: &[T]) -> Result<Address, DeviceError> {
        let begin = self.at.next_multiple_of(ALIGNMENT);
        let room = bucket(items.len()) * size_of::<T>();
        let end = begin + room;
        if end > self.bytes.len() {
            return Err(DeviceError::Failed(format!(
                "a batch of more than {} staged bytes; lower the rows of a pass",
                self.bytes.len()
            )));
        }
        let source: &[u8] = bytemuck::cast_slice(items);
        self.bytes[begin..][..source.len()].copy_from_slice(source);
        self.at = end;
        Ok(self.base.offset(begin))
    }
}

fn integers(values: impl IntoIterator<Item = usize>) -> Vec<i32> {
    values.into_iter().map(|v| v as i32).collect()
}

impl CudaBatch {
    /// Writes `batch` to `bytes`, which will lie at `base` on the device.
    ///
    /// # Errors
    /// When the batch is larger than the room for it, or a label set than a kernel can take.
    pub(super) fn stage(
        batch: RaggedBatch,
        shape: &Shape,
        limits: &PlanLimits,
        bytes: &mut [u8],
        base: Address,
    ) -> Result<Self, DeviceError> {
        let p = shape.page_tokens;
        let plan = plan_attention(&batch, shape.heads, shape.kv_heads, limits);
        let (mut slots, mut groups, mut masks) = (vec![], vec![], vec![]);
        for group in &batch.groups {
            for i in 0..group.rows.len() {
                let (page, slot) = batch.place(&group.own, group.own.len + i, p);
                slots.push((page.index() * p + slot) as i32);
            }
            let mask = match &group.mask {
                Mask::Causal => -1,
                Mask::Tree(bits) => {
                    masks.extend_from_slice(bits);
                    (masks.len() - bits.len()) as i32
                }
            };
            groups.push(Group {
                row_begin: group.rows.start as i32,
                rows: group.rows.len() as i32,
                prefix_pages: group.prefix.pages.start as i32,
                prefix_len: group.prefix.len as i32,
                own_pages: group.own.pages.start as i32,
                own_len: group.own.len as i32,
                mask,
                reserved: 0,
            });
        }
        let mut tokens = integers(batch.tokens.iter().map(|t| t.index()));
        batch.fed.iter().for_each(|fed| tokens[fed.row] = FED_TOKEN);
        let heads = Heads::of(&batch, shape.vocab)?;
        let mut samples = SampleTable::default();
        let ids = batch.ids_of_full_rows(shape.vocab);
        for sample in &batch.samples {
            let (row, history) = (sample.logits_row, sample.history());
            samples.push(row, &sample.params, &history, &sample.key, ids[row], None);
        }
        let counts = Counts {
            rows: batch.rows() as i32,
            attention_work: plan.work.len() as i32,
            vocab_heads: heads.vocab.len() as i32,
            label_heads: heads.labelled.len() as i32,
            samples: batch.samples.len() as i32,
            fed: batch.fed.len() as i32,
            reserved: [0; 2],
        };
        let mut blob = Blob { bytes, base, at: 0 };
        let view = Batch {
            counts: blob.array(&[counts])?,
            tokens: blob.array(&tokens)?,
            positions: blob.array(&batch.positions)?,
            slots: blob.array(&slots)?,
            groups: blob.array(&groups)?,
            pages: blob.array(&integers(batch.pages.iter().map(|p| p.index())))?,
            masks: blob.array(&masks)?,
            work: blob.array(&plan.work)?,
            row_partials: blob.array(&plan.row_partials)?,
            vocab_heads: blob.array(&heads.vocab)?,
            label_heads: blob.array(&heads.labelled)?,
            labels: blob.array(&heads.labels)?,
            samples: blob.array(&samples.samples)?,
        };
        let (edits, allowed) = (blob.array(&samples.edits)?, blob.array(&samples.allowed)?);
        let fed: Vec<Fed> = batch.fed.iter().map(Fed::from).collect();
        let fed = blob.array(&fed)?;
        let kept = blob.array(&integers(batch.kept.iter().copied()))?;
        let buckets = Buckets {
            rows: bucket(batch.rows()),
            attention_work: bucket(plan.work.len()),
            vocab_heads: bucket(heads.vocab.len()),
            head_ids: heads.vocab.iter().map(|head| head.ids as usize).max().unwrap_or(0),
            label_heads: bucket(heads.labelled.len()),
            samples: bucket(batch.samples.len()),
            fed: bucket(batch.fed.len()),
        };
        let (bytes, labels) = (blob.at, heads.labels.len());
        let results_at = Address::default();
        Ok(Self {
            view,
            buckets,
            bytes,
            edits,
            allowed,
            fed,
            kept,
            results_at,
            host: batch,
            labels,
        })
    }

    /// Where the results of this batch go.
    pub(super) fn results(&self) -> ResultsView {
        self.results_from(self.results_at).0
    }

    /// Bytes of the results.
    pub(super) fn results_bytes(&self) -> usize {
        self.results_from(Address(0)).1
    }

    fn results_from(&self, base: Address) -> (ResultsView, usize) {
        let heads = bucket(self.host.heads.len()) * size_of::<HeadOut>();
        let probabilities = bucket(self.labels) * size_of::<f32>();
        let probabilities = probabilities.next_multiple_of(ALIGNMENT);
        let samples = self.host.samples.len() * size_of::<SampleOut>();
        let view = ResultsView {
            heads: base,
            probabilities: base.offset(heads),
            samples: base.offset(heads + probabilities),
        };
        (view, heads + probabilities + samples)
    }

    /// Reads what came back: `bytes` begins with the results of this batch.
    pub(super) fn read(&self, bytes: &[u8]) -> Results {
        let (view, _) = self.results_from(Address(0));
        fn array<T: Pod>(bytes: &[u8], at: Address, count: usize) -> Vec<T> {
            let bytes = &bytes[at.0 as usize..][..count * size_of::<T>()];
            bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
        }
        let heads: Vec<HeadOut> = array(bytes, view.heads, self.host.heads.len());
        let probabilities: Vec<f32> = array(bytes, view.probabilities, self.labels);
        let samples: Vec<SampleOut> = array(bytes, view.samples, self.host.samples.len());
        let (mut full, mut label) = (0, 0);
        let results = self.host.heads.iter().zip(&heads).map(|(head, out)| match &head.kind {
            HeadKind::Argmax => HeadResult::Argmax { id: TokenId(out.id as u32), logit: out.value },
            HeadKind::LogProb(_) => HeadResult::LogProb(out.value),
            HeadKind::Labels(ids) => {
                label += ids.len();
                HeadResult::Labels(probabilities[label - ids.len()..label].to_vec())
            }
            HeadKind::Full => {
                full += 1;
                HeadResult::Full(full - 1)
            }
        });
        Results {
            heads: results.collect(),
            samples: samples
                .iter()
                .map(|s| Sampled {
                    id: TokenId(s.id as u32),
                    logprob: s.logprob,
                    entropy_nats: s.entropy_nats,
                    top1_prob: s.top1_prob,
                })
                .collect(),
            non_finite_row: self
                .host
                .heads
                .iter()
                .zip(&heads)
                .filter(|(_, out)| out.non_finite != 0)
                .map(|(head, _)| head.row)
                .min(),
        }
    }
}

/// The wanted results, by the kernel that computes them.
#[derive(Default)]
struct Heads {
    vocab: Vec<VocabHead>,
    labelled: Vec<LabelHead>,
    labels: Vec<i32>,
}

impl Heads {
    fn of(batch: &RaggedBatch, vocab: usize) -> Result<Self, DeviceError> {
        let mut heads = Self::default();
        let mut full = 0;
        for (result, head) in batch.heads.iter().enumerate() {
            let (row, result) = (head.row as i32, result as i32);
            let (kind, argument) = match &head.kind {
                HeadKind::Argmax => (0, 0),
                HeadKind::LogProb(id) => (1, id.index() as i32),
                HeadKind::Full => {
                    full += 1;
                    (2, full - 1)
                }
                HeadKind::Labels(ids) if ids.len() > LABELS_MAX => {
                    return Err(DeviceError::Failed(format!(
                        "a score of {} labels; the CUDA device takes at most {LABELS_MAX}",
                        ids.len()
                    )));
                }
                HeadKind::Labels(ids) => {
                    heads.labelled.push(LabelHead {
                        row,
                        first_label: heads.labels.len() as i32,
                        labels: ids.len() as i32,
                        result,
                    });
                    heads.labels.extend(ids.iter().map(|id| id.index() as i32));
                    continue;
                }
            };
            let ids = head.ids(vocab) as i32;
            heads.vocab.push(VocabHead { row, kind, argument, ids, result });
        }
        Ok(heads)
    }
}
