//! Rolling windows and rejected steps back, checked on the keys and values themselves.

use forerun::device::{Device, HeadKind, HeadRow};
use forerun::engine::{ModelSource, Pair};
use forerun::ids::TokenId;
use forerun::model::{Checkpoint, PassLimits, Solo};

/// Feeds a text with windows of tokens that are taken back in between, and the same text without:
/// every key and value and the logits at the tip are the same bits.
pub(crate) fn leaves_no_trace<D: Device>(device: impl Fn() -> D) {
    let ModelSource::Embedded(files) = Pair::tiny().base else { panic!("tiny is embedded") };
    let checkpoint = Checkpoint::embedded(files).expect("embedded files");
    let limits = PassLimits { rows: 64, full_rows: 16, positions: 128 };
    let load = || Solo::load(device(), &checkpoint, limits).expect("room");
    let (mut plain, mut proposed) = (load(), load());
    let ids = |from: u32, n: u32| -> Vec<TokenId> {
        (from..from + n).map(|i| TokenId(5 + i * 7 % 500)).collect()
    };
    let prompt = ids(0, 30);
    for solo in [&mut plain, &mut proposed] {
        solo.feed(&prompt, vec![]).expect("a pass");
    }
    for round in 0..6 {
        let new = ids(100 + 10 * round, 1 + round % 3);
        // As a verify pass does: the new tokens, then a window, with logits along it.
        let window = [new.clone(), ids(300 + 20 * round, 1 + 2 * round)].concat();
        let full = |row| HeadRow::new(row, HeadKind::Full);
        let heads = (new.len() - 1..window.len()).map(full).collect();
        proposed.feed(&window, heads).expect("a pass");
        proposed.truncate(proposed.len() - (window.len() - new.len()));
        for id in new {
            plain.feed(&[id], vec![]).expect("a pass");
        }
        assert_eq!(plain.len(), proposed.len());
    }
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let (want, got) = (plain.kv().expect("read"), proposed.kv().expect("read"));
    assert!(!want.is_empty() && want.iter().any(|v| *v != 0.0));
    assert_eq!(bits(&got), bits(&want));
    let tips = [&mut plain, &mut proposed].map(|s| s.logits(&[TokenId(9)]).expect("logits"));
    assert_eq!(bits(&tips[0][0]), bits(&tips[1][0]));
}

/// Three steps are scored in one pass, the second is rejected and rewritten, and so on: the scores
/// are those of one step at a time, and every key and value that stays and the logits at the tip
/// are the bits of a sequence that never saw a rejected step or a suffix.
pub(crate) fn scored_together_leave_no_trace<D: Device>(device: impl Fn() -> D) {
    let ModelSource::Embedded(files) = Pair::tiny().base else { panic!("tiny is embedded") };
    let checkpoint = Checkpoint::embedded(files).expect("embedded files");
    let limits = PassLimits { rows: 96, full_rows: 16, positions: 160 };
    let load = || Solo::load(device(), &checkpoint, limits).expect("room");
    let (mut plain, mut one_by_one, mut together) = (load(), load(), load());
    let ids = |from: u32, n: u32| -> Vec<TokenId> {
        (from..from + n).map(|i| TokenId(5 + i * 11 % 500)).collect()
    };
    let labels: Vec<TokenId> = (20..30).map(TokenId).collect();
    let prompt = ids(0, 21);
    for solo in [&mut plain, &mut one_by_one, &mut together] {
        solo.feed(&prompt, vec![]).expect("a pass");
    }
    for round in 0..4 {
        let steps = [3, 9, 5].map(|n| ids(100 * round + n, n + round));
        let suffixes = [7, 12, 7].map(|n| ids(700 + n, n));
        let mut places: Vec<(usize, &[TokenId])> = vec![];
        let mut len = together.len();
        for (step, suffix) in steps.iter().zip(&suffixes) {
            len += step.len();
            places.push((len, suffix.as_slice()));
        }
        let got = together.score(&steps.concat(), &places, &labels).expect("a pass");
        let bits = |probs: &[f32]| probs.iter().map(|p| p.to_bits()).collect::<Vec<_>>();
        for ((step, place), got) in steps.iter().zip(&places).zip(&got) {
            let want = one_by_one.score(step, &[*place], &labels).expect("a pass");
            assert_eq!(bits(got), bits(&want[0]), "round {round}, place {}", place.0);
        }
        assert_ne!(bits(&got[0]), bits(&got[2]), "the same suffix after other steps");
        let rewritten = ids(900 + 10 * round, 4);
        for solo in [&mut one_by_one, &mut together] {
            solo.truncate(places[0].0);
            solo.feed(&rewritten, vec![]).expect("a pass");
        }
        for id in steps[0].iter().chain(&rewritten) {
            plain.feed(&[*id], vec![]).expect("a pass");
        }
    }
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let want = bits(&plain.kv().expect("read"));
    for solo in [&mut one_by_one, &mut together] {
        assert_eq!(solo.len(), plain.len());
        assert!(bits(&solo.kv().expect("read")) == want, "keys or values differ");
    }
    let tip = |solo: &mut Solo<D>| bits(&solo.logits(&[TokenId(9)]).expect("logits")[0]);
    assert_eq!(tip(&mut together), tip(&mut plain));
}
