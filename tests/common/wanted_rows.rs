//! What the last layer leaves out changes nothing that anybody reads.

use forerun::device::{Device, HeadKind, HeadRow};
use forerun::engine::{ModelSource, Pair};
use forerun::ids::TokenId;
use forerun::model::{Checkpoint, PassLimits, Solo};

/// A pass of which a few rows are wanted, or none: their logits, and every key and value, have the
/// bits of a pass of which every row is wanted.
pub(crate) fn have_their_bits_alone<D: Device>(device: impl Fn() -> D) {
    let ModelSource::Embedded(files) = Pair::tiny().base else { panic!("tiny is embedded") };
    let checkpoint = Checkpoint::embedded(files).expect("embedded files");
    let limits = PassLimits { rows: 64, full_rows: 64, positions: 128 };
    let load = || Solo::load(device(), &checkpoint, limits).expect("room");
    let (mut all, mut few) = (load(), load());
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let ids: Vec<TokenId> = (0..90).map(|i| TokenId(5 + i * 13 % 500)).collect();
    for (pass, wanted) in [
        (0..20, vec![]),
        (20..50, vec![29]),
        (50..59, vec![0, 3, 4, 8]),
        (59..89, vec![17, 2, 2, 9, 10, 11, 12, 13, 14, 15, 16, 29]),
        (89..90, vec![0]),
    ] {
        let whole = all.logits(&ids[pass.clone()]).expect("a pass");
        let head = |row: &usize| HeadRow::new(*row, HeadKind::Full);
        few.feed(&ids[pass], wanted.iter().map(head).collect()).expect("a pass");
        for (i, row) in wanted.iter().enumerate() {
            let got = few.model().logits(few.device(), i).expect("a row");
            assert_eq!(bits(got), bits(whole[*row].clone()), "row {row} of {wanted:?}");
        }
        let [want, got] = [&all, &few].map(|solo| bits(solo.kv().expect("read")));
        assert_eq!(got, want);
    }
}
