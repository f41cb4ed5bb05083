//! Rolling a window back, checked on the keys and values themselves.

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
        let full = |row| HeadRow { row, kind: HeadKind::Full };
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
