//! Attention against f64 loops over the same bf16 numbers, and its promises about bits.

use super::{ARCHS, Gpu, SEEDS, noise};
use crate::device::cuda::layout::{Batch, Counts, Group};
use crate::device::cuda::ops::attention::{AttentionBuffers, AttentionOp};
use crate::device::cuda::plan::{AttentionPlan, PlanLimits, plan_attention};
use crate::device::{Mask, RaggedBatch, RowGroup, Shape, Span};
use crate::ids::{PageId, TokenId};
use gpu_emulator::launch::Counters;
use half::bf16;

const LAYERS: usize = 2;
const LAYER: usize = 1;
/// Every row in one item a split.
const CUT: PlanLimits = PlanLimits { partials: 1 << 12, concurrent_ctas: 1 << 20 };
/// Every row in one item.
const WHOLE: PlanLimits = PlanLimits { partials: 0, concurrent_ctas: 1 };

/// One group of rows: its prefix, its own keys before the pass, its rows or the tree's masks.
#[derive(Clone)]
struct Rows {
    prefix: usize,
    own: usize,
    rows: usize,
    tree: Option<Vec<u64>>,
}

fn causal(prefix: usize, own: usize, rows: usize) -> Rows {
    Rows { prefix, own, rows, tree: None }
}

fn tree(prefix: usize, bits: &[u64]) -> Rows {
    Rows { prefix, own: 0, rows: bits.len(), tree: Some(bits.to_vec()) }
}

/// A pool, queries and a batch.
struct Case {
    shape: Shape,
    batch: RaggedBatch,
    q: Vec<bf16>,
    pool: Vec<bf16>,
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
    let page_tokens = 16;
    Shape {
        hidden: heads * head_dim,
        heads,
        kv_heads,
        head_dim,
        ffn: 1,
        vocab: 1,
        rms_eps: 1e-6,
        layers: LAYERS,
        page_tokens,
        // Pages of a shared pool are larger than what one model fills.
        page_bytes: LAYERS * 2 * kv_heads * page_tokens * head_dim * 2 + 64,
    }
}

impl Case {
    /// Pages are handed out in a scattered order; whatever no row sees is NaN.
    fn new(shape: Shape, groups: &[Rows]) -> Self {
        let pages_of = |tokens: usize| tokens.div_ceil(shape.page_tokens);
        let total: usize =
            groups.iter().map(|g| pages_of(g.prefix) + pages_of(g.own + g.rows)).sum();
        let mut batch = RaggedBatch::default();
        let modulus = (total + 3..).find(|n| (2..*n).all(|d| n % d != 0)).unwrap();
        batch.pages = (1..=total).map(|i| PageId((i * 7 % modulus) as u32)).collect();
        let mut page = 0;
        for group in groups {
            let mut span = |filled: usize, room: usize| {
                let pages = page..page + pages_of(room);
                page = pages.end;
                Span { pages, len: filled }
            };
            let start = batch.tokens.len();
            batch.groups.push(RowGroup {
                rows: start..start + group.rows,
                prefix: span(group.prefix, group.prefix),
                own: span(group.own, group.own + group.rows),
                mask: group.tree.clone().map_or(Mask::Causal, Mask::Tree),
            });
            batch.tokens.resize(start + group.rows, TokenId(0));
            batch.positions.resize(start + group.rows, 0);
        }
        batch.validate(1, shape.page_tokens, 1).unwrap();
        let mut pool = vec![bf16::NAN; modulus * shape.page_bytes / 2];
        let mut seed = 10;
        for group in &batch.groups {
            let own = Span { len: group.own.len + group.rows.len(), ..group.own.clone() };
            for span in [&group.prefix, &own] {
                for token in 0..span.len {
                    let (page, slot) = batch.place(span, token, shape.page_tokens);
                    for which in 0..2 {
                        for kv_head in 0..shape.kv_heads {
                            seed += 1;
                            let at = page.index() * shape.page_bytes / 2
                                + shape.plane(LAYER, which, kv_head)
                                + slot * shape.head_dim;
                            let row = noise(seed, shape.head_dim);
                            let to = pool[at..].iter_mut().zip(row);
                            to.for_each(|(to, x)| *to = bf16::from_f32(2.0 * x));
                        }
                    }
                }
            }
        }
        let q = noise(1, batch.rows() * shape.heads * shape.head_dim);
        let q = q.into_iter().map(|x| bf16::from_f32(2.0 * x)).collect();
        Self { shape, batch, q, pool }
    }

    fn plane_row(&self, which: usize, kv_head: usize, page: PageId, slot: usize) -> &[bf16] {
        let Shape { head_dim, page_bytes, .. } = self.shape;
        let at = page.index() * page_bytes / 2 + self.shape.plane(LAYER, which, kv_head);
        &self.pool[at + slot * head_dim..][..head_dim]
    }

    /// Output and, for each element, how far from it the kernel may be.
    fn expected(&self) -> Vec<(f64, f64)> {
        let Shape { heads, kv_heads, head_dim, page_tokens, .. } = self.shape;
        let mut out = Vec::new();
        for group in &self.batch.groups {
            for (i, row) in group.rows.clone().enumerate() {
                for head in 0..heads {
                    let kv_head = head / (heads / kv_heads);
                    let q = &self.q[(row * heads + head) * head_dim..][..head_dim];
                    let keys = (0..group.visible(i))
                        .map(|j| self.batch.key(group, i, j, page_tokens))
                        .collect::<Vec<_>>();
                    let scores = keys.iter().map(|(page, slot)| {
                        let key = self.plane_row(0, kv_head, *page, *slot);
                        let dot: f64 =
                            q.iter().zip(key).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
                        dot / (head_dim as f64).sqrt()
                    });
                    let scores = scores.collect::<Vec<_>>();
                    let max = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights = scores.iter().map(|s| (s - max).exp()).collect::<Vec<_>>();
                    let sum: f64 = weights.iter().sum();
                    let (mut values, mut largest) = (vec![0.0; head_dim], 0.0_f64);
                    for ((page, slot), weight) in keys.iter().zip(&weights) {
                        let value = self.plane_row(1, kv_head, *page, *slot);
                        for (sum, v) in values.iter_mut().zip(value) {
                            *sum += weight * v.to_f64();
                            largest = largest.max(v.to_f64().abs());
                        }
                    }
                    // Weights are rounded to bf16 (2^-9 each way, numerator and sum alike), then
                    // the quotient is.
                    let values = values.into_iter().map(|v| v / sum);
                    out.extend(values.map(|v| (v, largest / 256.0 + v.abs() / 256.0)));
                }
            }
        }
        out
    }

    /// The bits of the output, the counts of the attention launch, and the plan.
    fn run(
        &self,
        arch: &str,
        seed: u64,
        limits: &PlanLimits,
    ) -> (Vec<u16>, Counters, AttentionPlan) {
        let gpu = Gpu::new(&["attention"], arch, seed);
        let op = AttentionOp::new(&self.shape).unwrap();
        let plan = plan_attention(&self.batch, self.shape.heads, self.shape.kv_heads, limits);
        let out_count = self.q.len();
        let arrivals = vec![0_i32; self.batch.rows() * self.shape.kv_heads];
        let buffers = AttentionBuffers {
            batch: stage(&gpu, &self.batch, &plan),
            q: gpu.upload(&self.q, "q"),
            pool: gpu.upload(&self.pool, "pool"),
            out: gpu.unwritten(out_count * 2, "out"),
            partials: gpu
                .unwritten(AttentionOp::partial_bytes(&self.shape, plan.partials), "partials"),
            arrivals: gpu.upload(&arrivals, "arrivals"),
        };
        // A bucketed grid is larger than the work.
        let items = plan.work.len() as u32 + 3;
        let counters = gpu.run(&op.launch(LAYER, &buffers, plan.partials, items));
        assert_eq!(gpu.read::<i32>(buffers.arrivals, arrivals.len()), arrivals, "zeros are left");
        (gpu.read(buffers.out, out_count), counters, plan)
    }

    /// Runs and compares with the definition; returns the bits.
    #[track_caller]
    fn check(&self, limits: &PlanLimits) -> Vec<u16> {
        let (bits, ..) = self.run("compute_80", 0, limits);
        for (i, (bits, (exact, bound))) in bits.iter().zip(self.expected()).enumerate() {
            let got = bf16::from_bits(*bits).to_f64();
            let width = self.shape.heads * self.shape.head_dim;
            assert!(
                (got - exact).abs() <= bound,
                "row {}, column {}: {got} for {exact} within {bound}",
                i / width,
                i % width
            );
        }
        bits
    }
}

/// Uploads what attention reads of a pass.
fn stage(gpu: &Gpu, batch: &RaggedBatch, plan: &AttentionPlan) -> Batch {
    let mut masks: Vec<u64> = Vec::new();
    let mut groups = Vec::new();
    for group in &batch.groups {
        groups.push(Group {
            row_begin: group.rows.start as i32,
            rows: group.rows.len() as i32,
            prefix_pages: group.prefix.pages.start as i32,
            prefix_len: group.prefix.len as i32,
            own_pages: group.own.pages.start as i32,
            own_len: group.own.len as i32,
            mask: match &group.mask {
                Mask::Causal => -1,
                Mask::Tree(bits) => {
                    masks.extend(bits);
                    (masks.len() - bits.len()) as i32
                }
            },
            reserved: 0,
        });
    }
    let counts = Counts {
        rows: batch.rows() as i32,
        attention_work: plan.work.len() as i32,
        ..Default::default()
    };
    let pages = batch.pages.iter().map(|page| page.0).collect::<Vec<_>>();
    Batch {
        counts: gpu.upload(&[counts], "counts"),
        groups: gpu.upload(&groups, "groups"),
        pages: gpu.upload(&pages, "pages"),
        masks: gpu.upload(&masks, "masks"),
        work: gpu.upload(&plan.work, "work"),
        row_partials: gpu.upload(&plan.row_partials, "row partials"),
        ..Default::default()
    }
}

const CONTEXTS: [usize; 11] = [1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000];

/// One decoding row for each context.
fn decoding() -> Vec<Rows> {
    CONTEXTS.map(|keys| causal(0, keys - 1, 1)).to_vec()
}

#[test]
fn decoding_rows_equal_the_definition_at_every_ratio_and_head_dimension() {
    for head_dim in [32, 64, 128] {
        for ratio in 1..=8 {
            let case = Case::new(shape(ratio, 1, head_dim), &decoding());
            let cut = case.check(&CUT);
            let (whole, ..) = case.run("compute_80", 0, &WHOLE);
            assert_eq!(cut, whole, "D {head_dim}, {ratio} heads: folding changed bits");
        }
    }
}

#[test]
fn head_dimensions_between_the_kernels_are_padded() {
    for head_dim in [8, 16, 40, 80, 96, 120] {
        Case::new(shape(6, 2, head_dim), &decoding()).check(&CUT);
    }
}

#[test]
fn chunks_suffixes_and_trees_equal_the_definition_in_one_pass() {
    let groups = [
        causal(0, 0, 70),
        causal(300, 0, 20),
        causal(5, 122, 9),
        causal(0, 1000, 3),
        tree(300, &[0b1, 0b11, 0b101, 0b1011, 0b10101, 0b100101]),
        tree(0, &[0b1, 0b10, 0b101]),
        tree(127, &[0b1, 0b11]),
        tree(254, &[0b1, 0b11, 0b111, 0b1001]),
    ];
    for (heads, kv_heads, head_dim) in
        [(6, 2, 32), (9, 3, 64), (4, 4, 64), (14, 2, 128), (12, 1, 96)]
    {
        let case = Case::new(shape(heads, kv_heads, head_dim), &groups);
        let cut = case.check(&CUT);
        for partials in [0, 10, 60] {
            let (other, ..) = case.run("compute_80", 0, &PlanLimits { partials, ..CUT });
            assert_eq!(cut, other, "{heads} heads of {head_dim}, {partials} partial states");
        }
    }
}

/// The rows of a sequence, cut into chunks: the same keys, queries and pages.
fn rechunked(case: &Case, chunks: &[usize]) -> Case {
    let [group] = &case.batch.groups[..] else { panic!("one group is cut") };
    let mut batch = RaggedBatch { groups: Vec::new(), ..case.batch.clone() };
    let mut start = 0;
    for chunk in chunks {
        let rows = start..(start + chunk).min(batch.rows());
        batch.groups.push(RowGroup {
            rows: rows.clone(),
            own: Span { len: group.own.len + start, ..group.own.clone() },
            ..group.clone()
        });
        start = rows.end;
    }
    assert_eq!(start, batch.rows());
    Case { shape: case.shape, batch, q: case.q.clone(), pool: case.pool.clone() }
}

#[test]
fn a_row_has_the_same_bits_however_the_pass_is_cut() {
    for (shape, own) in [(shape(5, 1, 64), 110), (shape(4, 2, 32), 0), (shape(7, 1, 128), 500)] {
        let case = Case::new(shape, &[causal(0, own, 300)]);
        let bits = case.check(&WHOLE);
        for chunks in [
            vec![1; 300],
            [2, 3, 16, 17, 64, 65, 100, 33].to_vec(),
            [100, 100, 100].to_vec(),
            [7, 293].to_vec(),
        ] {
            let other = rechunked(&case, &chunks);
            for limits in [CUT, WHOLE, PlanLimits { partials: 300, concurrent_ctas: 40 }] {
                assert_eq!(other.run("compute_80", 0, &limits).0, bits, "{chunks:?} {limits:?}");
            }
        }
    }
}

#[test]
fn a_chain_as_a_tree_has_the_bits_of_the_chain() {
    let shape = shape(6, 2, 64);
    let bits = (0..20).map(|i| (2_u64 << i) - 1).collect::<Vec<_>>();
    let chain = Case::new(shape, &[causal(300, 0, 20)]);
    let mut tree = Case::new(shape, &[tree(300, &bits)]);
    assert_eq!((&chain.q, chain.pool.len()), (&tree.q, tree.pool.len()));
    tree.pool.clone_from(&chain.pool);
    for limits in [CUT, WHOLE] {
        assert_eq!(chain.run("compute_80", 0, &CUT).0, tree.run("compute_80", 0, &limits).0);
    }
}

#[test]
fn a_tree_of_64_rows_reaches_every_mask_bit() {
    let bits = (0..64_u64).map(|i| 1 << i | 0x9249_2492_4924_9249 & ((1 << i) - 1));
    let case = Case::new(shape(4, 2, 32), &[tree(40, &bits.collect::<Vec<_>>())]);
    case.check(&CUT);
}

#[test]
fn interleaving_and_architecture_change_no_bit() {
    let groups = [causal(0, 0, 40), causal(290, 3, 6), tree(280, &[0b1, 0b11, 0b101])];
    for head_dim in [32, 128] {
        let case = Case::new(shape(8, 2, head_dim), &groups);
        let bits = case.check(&CUT);
        for arch in ARCHS {
            for seed in SEEDS {
                assert_eq!(case.run(arch, seed, &CUT).0, bits, "{arch}, seed {seed}");
            }
        }
    }
}

#[test]
fn shared_memory_has_no_bank_conflicts_and_keys_are_read_once() {
    for head_dim in [32, 64, 96, 128] {
        for rows in [1, 5, 10] {
            let shape = shape(6, 1, head_dim);
            let case = Case::new(shape, &[causal(0, 1024 - rows, rows)]);
            let (_, counters, _) = case.run("compute_80", 0, &CUT);
            assert_eq!(counters.shared_replays, 0, "D {head_dim}, {rows} rows");
            assert_eq!(counters.local_bytes, 0);
            let sectors: u64 = counters.sectors_loaded.values().copied().max().unwrap();
            let floor = (1024 * 2 * head_dim * 2 / 32) as u64;
            assert_eq!(sectors, floor, "D {head_dim}, {rows} rows: sectors of the pool");
        }
    }
}
