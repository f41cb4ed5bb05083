//! The efficient selection against a full sort, and drawn tokens against closed-form laws.

use super::*;
use crate::ids::{BranchId, Role};
use crate::sample::chi_square::{assert_law, assert_not_law};
use crate::sample::philox::Purpose;
use proptest::prelude::*;

const DRAWS: u32 = 100_000;
const NONE: History<'static> = History { prompt: &[], generated: &[] };

fn key(position: u32) -> Key {
    Key { seed: 42, branch: BranchId(0), position, role: Role::Base, purpose: Purpose::Draw }
}

fn plain() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::greedy() }
}

/// The same rules by sorting everything, one rule a line.
fn by_full_sort(logits: &[f32], params: &SamplingParams) -> Vec<Entry> {
    let clean: Vec<f32> = logits.iter().map(|&l| cleaned(l)).collect();
    let max = clean.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut order: Vec<usize> = (0..clean.len()).collect();
    order.sort_by(|&a, &b| clean[b].partial_cmp(&clean[a]).unwrap().then(a.cmp(&b)));
    if params.is_greedy() || max == f32::NEG_INFINITY {
        return vec![Entry { id: TokenId(order[0] as u32), mass: MASS_ONE }];
    }
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let weight = |l: f32| exp_nonpositive((l - max) * (1.0 / params.temperature));
    let mut entries: Vec<Entry> = order
        .iter()
        .map(|&i| Entry { id: TokenId(i as u32), mass: mass(weight(clean[i])) })
        .filter(|e| e.mass > 0)
        .collect();
    if params.top_p < 1.0 {
        entries.sort_by_key(|e| (std::cmp::Reverse(e.mass), e.id));
        let total: u64 = entries.iter().map(|e| e.mass).sum();
        let mut before = 0;
        entries.retain(|e| {
            let keep = before == 0 || (before as f64) < f64::from(params.top_p) * total as f64;
            before += e.mass;
            keep
        });
    }
    entries.retain(|e| e.mass as f64 >= f64::from(params.min_p) * MASS_ONE as f64);
    entries.sort_by_key(|e| e.id);
    entries
}

/// Closed form in double precision: softmax, then truncation by descending probability.
fn law(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let weights: Vec<f64> =
        logits.iter().map(|&l| (f64::from(l) / f64::from(params.temperature)).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let k = if params.top_k == 0 { logits.len() } else { params.top_k as usize };
    order.truncate(k);
    let total: f64 = order.iter().map(|&i| weights[i]).sum();
    let mut sum = 0.0;
    let mut kept = vec![0.0; logits.len()];
    for &i in &order {
        if sum < f64::from(params.top_p) * total {
            kept[i] = weights[i];
        }
        sum += weights[i];
    }
    let top = weights[order[0]];
    kept.iter_mut().for_each(|w| *w = if *w < f64::from(params.min_p) * top { 0.0 } else { *w });
    let total: f64 = kept.iter().sum();
    kept.iter().map(|w| w / total).collect()
}

fn counts(logits: &[f32], params: &SamplingParams) -> Vec<u64> {
    let mut scratch = Scratch::default();
    let mut counts = vec![0; logits.len()];
    for position in 0..DRAWS {
        counts[sample(logits, params, &NONE, &key(position), &mut scratch).id.index()] += 1;
    }
    counts
}

/// Forty logits without ties, spread over about eight nats, in no order.
fn forty_logits() -> Vec<f32> {
    (0..40_u32).map(|i| (i * 17 % 40) as f32 * 0.2 + 0.01 * i as f32 - 3.0).collect()
}

fn settings() -> Vec<SamplingParams> {
    let mut all = Vec::new();
    for temperature in [0.6, 1.0, 1.7] {
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (7, 1.0, 0.0),
            (0, 0.8, 0.0),
            (0, 1.0, 0.1),
            (20, 0.9, 0.0),
            (0, 0.95, 0.05),
            (15, 0.85, 0.02),
        ] {
            all.push(SamplingParams { temperature, top_k, top_p, min_p, ..plain() });
        }
    }
    all
}

#[test]
fn drawn_tokens_follow_the_closed_form_under_every_mix_of_truncations() {
    let logits = forty_logits();
    for params in settings() {
        assert_law(&counts(&logits, &params), &law(&logits, &params));
    }
}

#[test]
fn a_wrong_temperature_or_a_skipped_truncation_fails_the_same_test() {
    let logits = forty_logits();
    let asked = SamplingParams { temperature: 0.8, top_k: 12, top_p: 0.9, min_p: 0.03, ..plain() };
    let expected = law(&logits, &asked);
    for wrong in [
        SamplingParams { temperature: 0.85, ..asked.clone() },
        SamplingParams { top_k: 4, ..asked.clone() },
        SamplingParams { top_p: 1.0, min_p: 0.0, ..asked.clone() },
    ] {
        assert_not_law(&counts(&logits, &wrong), &expected);
    }
}

/// Logits with many ties and some that are not numbers, as `(logits, params)`.
fn cases() -> impl Strategy<Value = (Vec<f32>, SamplingParams)> {
    let logit = prop_oneof![
        8 => (-40..40_i32).prop_map(|i| i as f32 * 0.25),
        4 => -12.0_f32..12.0,
        1 => Just(f32::NAN),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::INFINITY),
    ];
    let temperature = prop_oneof![Just(0.0_f32), Just(1.0), 0.05_f32..3.0];
    let top_k = prop_oneof![Just(0_u32), 1..12_u32, 1..3000_u32];
    let top_p = prop_oneof![Just(1.0_f32), 0.01_f32..1.0, Just(1e-6), Just(0.999_999_9)];
    let min_p = prop_oneof![Just(0.0_f32), 0.0_f32..=1.0];
    let logits = prop_oneof![
        prop::collection::vec(logit.clone(), 1..40),
        prop::collection::vec(logit, 500..3000),
    ];
    (logits, temperature, top_k, top_p, min_p).prop_map(
        |(logits, temperature, top_k, top_p, min_p)| {
            (logits, SamplingParams { temperature, top_k, top_p, min_p, ..plain() })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_efficient_selection_equals_a_full_sort((logits, params) in cases()) {
        let mut scratch = Scratch::default();
        let distribution = process(&logits, &params, &NONE, &mut scratch);
        let naive = by_full_sort(&logits, &params);
        prop_assert_eq!(distribution.entries(), naive.as_slice());
        let sum: f32 = distribution.iter().map(|(_, p)| p).sum();
        prop_assert!((sum - 1.0).abs() < 1e-4);
    }

    #[test]
    fn a_scan_over_the_vocabulary_in_any_grouping_draws_the_same_token(
        (logits, params) in cases(), u in 0.0_f32..1.0, width in 1..300_usize,
    ) {
        let mut scratch = Scratch::default();
        let distribution = process(&logits, &params, &NONE, &mut scratch);
        // As a kernel does it: a dense masked row, sums per block, then a scan inside one block.
        let mut dense = vec![0_u64; logits.len()];
        distribution.entries().iter().for_each(|e| dense[e.id.index()] = e.mass);
        let blocks: Vec<u64> = dense.chunks(width).map(|b| b.iter().sum()).collect();
        let total: u64 = blocks.iter().rev().sum();
        let n = u128::from((u * 16_777_216.0) as u64);
        let mut target = ((n * u128::from(total)) >> 24) as u64;
        let mut block = 0;
        while target >= blocks[block] {
            target -= blocks[block];
            block += 1;
        }
        let mut index = block * width;
        while target >= dense[index] {
            target -= dense[index];
            index += 1;
        }
        prop_assert_eq!(draw(&distribution, u), TokenId(index as u32));
    }
}

#[test]
fn ties_at_the_boundary_of_top_k_keep_the_lower_ids() {
    let logits = [1.0, 2.0, 1.0, 1.0, 0.0];
    let mut scratch = Scratch::default();
    let params = SamplingParams { top_k: 3, ..plain() };
    let kept: Vec<u32> =
        process(&logits, &params, &NONE, &mut scratch).iter().map(|(id, _)| id.0).collect();
    assert_eq!(kept, [0, 1, 2]);
}

#[test]
fn equal_probabilities_at_the_boundary_of_top_p_keep_the_lower_ids() {
    let mut scratch = Scratch::default();
    let params = SamplingParams { top_p: 0.5, ..plain() };
    let distribution = process(&[0.0; 8], &params, &NONE, &mut scratch);
    let kept: Vec<(u32, f32)> = distribution.iter().map(|(id, p)| (id.0, p)).collect();
    assert_eq!(kept, [(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]);
}

#[test]
fn the_likeliest_token_survives_the_tightest_truncation() {
    let logits = forty_logits();
    let mut scratch = Scratch::default();
    for params in [
        SamplingParams { top_p: f32::MIN_POSITIVE, ..plain() },
        SamplingParams { min_p: 1.0, ..plain() },
        SamplingParams { top_k: 1, ..plain() },
        SamplingParams { temperature: 1e-5, ..plain() },
    ] {
        let distribution = process(&logits, &params, &NONE, &mut scratch).into_owned();
        assert_eq!(distribution, Distribution::point(argmax(&logits)), "{params:?}");
    }
}

#[test]
fn penalties_act_before_truncation_and_on_greedy_requests() {
    let history = History { prompt: &[], generated: &[TokenId(1)] };
    let params = SamplingParams { presence_penalty: 1.5, ..SamplingParams::greedy() };
    let mut scratch = Scratch::default();
    let sampled = sample(&[0.0, 2.0, 1.0], &params, &history, &key(0), &mut scratch);
    assert_eq!(sampled.id, TokenId(2));
    let z = 1.0 + 1_f32.exp() + 2_f32.exp();
    assert!((sampled.logprob - (1.0 - z.ln())).abs() < 1e-6, "raw, not penalised");
    assert!((sampled.top1_prob - 2_f32.exp() / z).abs() < 1e-6);
}

#[test]
fn the_token_depends_on_key_and_logits_only() {
    let logits = forty_logits();
    let params = SamplingParams { temperature: 1.3, top_p: 0.97, ..plain() };
    let draw_at = |position, scratch: &mut Scratch| {
        sample(&logits, &params, &NONE, &key(position), scratch).id
    };
    let mut fresh = Scratch::default();
    let forwards: Vec<TokenId> = (0..100).map(|p| draw_at(p, &mut fresh)).collect();
    let mut used = Scratch::default();
    let other = SamplingParams { top_k: 3, repetition_penalty: 1.2, ..plain() };
    let _ = process(&vec![0.5; 5000], &other, &NONE, &mut used);
    let backwards: Vec<TokenId> = (0..100).rev().map(|p| draw_at(p, &mut used)).collect();
    assert!(forwards.iter().eq(backwards.iter().rev()));
}

#[test]
fn no_logits_panic() {
    let mut scratch = Scratch::default();
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for logits in [&[][..], &[nan], &[nan, nan, -inf], &[inf, inf, 1.0], &[f32::MAX, f32::MIN]] {
        for params in settings() {
            let biased =
                SamplingParams { logit_bias: vec![(TokenId(0), f32::MAX)], ..params.clone() };
            for params in [params, biased] {
                let distribution = process(logits, &params, &NONE, &mut scratch);
                let _ = draw(&distribution, 0.9);
                let _ = sample(logits, &params, &NONE, &key(0), &mut scratch);
            }
        }
    }
}
