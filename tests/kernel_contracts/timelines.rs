//! The model of time, where its answer is known.

use crate::model::{Gpu, H100, LATENCY_US, Work, ends_us};

/// A matrix large enough to forget how it begins.
fn stream(bytes: f64) -> Work {
    Work {
        ctas: 132 * 3 * 4,
        parts: 132 * 3 * 4,
        threads: 256,
        registers: 80,
        shared_bytes: 41_408,
        bytes,
        memory_bytes: bytes,
        in_flight_bytes: 32_768.0,
        loads_ahead: true,
        lets_begin_early: false,
        barriers: 4.0,
        instructions: 0.0,
        mmas: 0.0,
    }
}

fn end(gpu: &Gpu, works: &[Work]) -> f64 {
    *ends_us(gpu, works).last().expect("a launch")
}

#[test]
fn a_large_matrix_takes_its_bytes_over_the_bandwidth_and_little_more() {
    let bytes = 1e9;
    let floor = bytes / (H100.gb_per_s * 1e3);
    let time = end(&H100, &[stream(bytes)]);
    assert!(time > floor && time < 1.03 * floor + 4.0, "{time} µs over {floor} µs");
}

#[test]
fn few_bytes_in_flight_leave_the_memory_idle() {
    let bytes = 1e9;
    let starved = Work { in_flight_bytes: 2048.0, ..stream(bytes) };
    // Three CTAs an SM with 2 KiB each.
    let floor = bytes / (132.0 * 3.0 * 2048.0 / LATENCY_US);
    let time = end(&H100, &[starved]);
    assert!(time > floor && time < 1.1 * floor, "{time} µs over {floor} µs");
}

#[test]
fn few_ctas_take_what_they_have_in_flight() {
    let few = Work { ctas: 20, parts: 20, ..stream(1e8) };
    let floor = 1e8 / (20.0 * 32_768.0 / LATENCY_US);
    assert!(end(&H100, &[few]) > floor);
}

#[test]
fn a_cta_with_two_parts_takes_twice_as_long_as_its_neighbours() {
    let work = |parts| Work { ctas: 20, parts, in_flight_bytes: 4096.0, ..stream(1e6) };
    // At the same rate each: of 21 parts one CTA has two, of 40 all have.
    let [even, uneven] = [work(40), work(21)].map(|work| end(&H100, &[work]));
    assert!(uneven > even * 1.5, "{uneven} > {even}");
}

#[test]
fn a_boundary_costs_less_where_launches_begin_early() {
    let small = Work { ctas: 132, parts: 132, ..stream(2e7) };
    let time = |gpu: &Gpu| end(gpu, &vec![small.clone(); 8]);
    let plain = Gpu { programmatic: false, ..H100 };
    let [ordinary, early] = [time(&plain), time(&H100)];
    // What is in flight before the wait is a fifth of a launch's bytes.
    assert!(ordinary > early + 7.0 * 0.5, "{ordinary} > {early}");
    assert!(early > 8.0 * 2e7 / (H100.gb_per_s * 1e3), "{early}");
}

#[test]
fn occupancy_is_what_registers_threads_and_shared_memory_leave() {
    assert_eq!(stream(1.0).ctas_per_sm(&H100), 3);
    assert_eq!(Work { registers: 128, ..stream(1.0) }.ctas_per_sm(&H100), 2);
    assert_eq!(Work { shared_bytes: 110 << 10, ..stream(1.0) }.ctas_per_sm(&H100), 2);
}
