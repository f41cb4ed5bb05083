//! Claims about the pure parts: rows, records, tables.

use super::*;
use std::time::Duration;

#[test]
fn rows_are_named_as_llama_bench_names_them() {
    let names: Vec<_> = rows(&[128, 0], &[64], &[0, 1024], &[1]).iter().map(Row::name).collect();
    assert_eq!(names, ["pp128", "pp128 @ d1024", "tg64", "tg64 @ d1024"]);
}

#[test]
fn a_size_of_zero_skips_its_kind() {
    assert!(rows(&[0], &[0], &[0, 5], &[1]).is_empty());
    assert!(rows(&[0], &[8], &[0], &[1]).iter().all(|r| r.prompt == 0));
}

#[test]
fn several_sequences_count_the_tokens_of_all_and_prompts_stay_alone() {
    let rows = rows(&[16], &[32], &[5], &[1, 8]);
    let names: Vec<_> = rows.iter().map(Row::name).collect();
    assert_eq!(names, ["pp16 @ d5", "tg32 @ d5", "tg32 x8 @ d5"]);
    assert_eq!(rows.iter().map(Row::tokens).collect::<Vec<_>>(), [16, 32, 256]);
    assert_eq!(rows.iter().map(Row::len).collect::<Vec<_>>(), [21, 37, 37]);
}

#[test]
fn the_deviation_is_that_of_a_sample() {
    // numpy.std([2, 4, 4, 4, 5, 5, 7, 9], ddof=1)
    let (mean, deviation) = mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
    assert_eq!(mean, 5.0);
    assert!((deviation - 2.138_089_935_299_395).abs() < 1e-12, "{deviation}");
    assert_eq!(mean_and_deviation(&[3.0]), (3.0, 0.0));
}

#[test]
fn a_stream_is_the_same_every_time_and_inside_the_vocabulary() {
    let ids = stream(500, 100);
    assert_eq!(ids, stream(500, 100));
    assert_eq!(ids[..20], stream(20, 100));
    assert!(ids.iter().all(|id| id.0 < 50));
    assert_eq!(stream(3, 1), [TokenId(0); 3]);
}

#[test]
fn times_are_written_in_utc() {
    let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
    // date -u -d @… +%FT%TZ
    assert_eq!(at(0), "1970-01-01T00:00:00Z");
    assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
    assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
    assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
}

#[test]
fn parameters_are_counted_in_millions_or_billions() {
    assert_eq!(parameters(1_543_714_304), "1.54 B");
    assert_eq!(parameters(2_000_000), "2.00 M");
}
