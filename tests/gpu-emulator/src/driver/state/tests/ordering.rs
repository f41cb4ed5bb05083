//! Streams, events and the default stream: what is ordered, and what is free to go wrong.

use super::*;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// One stream makes a word, another reads it; with or without the event between them.
fn produce_and_consume(bench: &mut Bench, with_wait: bool) -> Outcome<u32> {
    let (a, b) = (bench.stream(), bench.stream());
    let (made, read) = (bench.word(), bench.word());
    let event = bench.driver.create_event(0)?;
    bench.set_word(a, made, 40);
    bench.add_word(a, made, 2)?;
    bench.record(event, a);
    if with_wait {
        bench.wait(b, event);
    }
    bench.copy_word(b, read, made)?;
    bench.synchronize()?;
    Ok(bench.peek(read))
}

#[test]
fn an_event_orders_two_streams_under_every_seed() {
    assert_eq!(seeds_that_differ(42, |bench| produce_and_consume(bench, true)), 0);
}

#[test]
fn a_dropped_event_wait_is_seen_under_some_seed() {
    let seen = seeds_that_differ(42, |bench| produce_and_consume(bench, false));
    assert!(seen >= SEEDS.count() / 4, "{seen} of the seeds show it");
}

/// A buffer is read by one stream and then overwritten by another.
fn read_and_overwrite(bench: &mut Bench, with_wait: bool) -> Outcome<u32> {
    let (a, b) = (bench.stream(), bench.stream());
    let (buffer, copy) = (bench.word(), bench.word());
    let event = bench.driver.create_event(0)?;
    bench.set_word(a, buffer, 42);
    bench.synchronize()?;
    bench.copy_word(a, copy, buffer)?;
    bench.record(event, a);
    if with_wait {
        bench.wait(b, event);
    }
    bench.set_word(b, buffer, 7);
    bench.synchronize_stream(a)?;
    bench.synchronize()?;
    Ok(bench.peek(copy))
}

#[test]
fn a_buffer_overwritten_too_early_is_seen_under_some_seed() {
    assert_eq!(seeds_that_differ(42, |bench| read_and_overwrite(bench, true)), 0);
    assert!(seeds_that_differ(42, |bench| read_and_overwrite(bench, false)) >= 4);
}

#[test]
fn work_in_one_stream_runs_in_order_under_every_seed() {
    let differ = seeds_that_differ(10, |bench| {
        let stream = bench.stream();
        let word = bench.word();
        bench.set_word(stream, word, 1);
        for value in [2, 3, 4] {
            bench.add_word(stream, word, value)?;
        }
        bench.synchronize_stream(stream)?;
        Ok(bench.peek(word))
    });
    assert_eq!(differ, 0);
}

/// The default stream makes a word, a stream with these flags reads it.
fn default_then_made(bench: &mut Bench, flags: u32) -> Outcome<u32> {
    let default = bench.driver.stream(Handle::NULL)?;
    let made = bench.driver.create_stream(flags, 0)?;
    let (word, read) = (bench.word(), bench.word());
    bench.set_word(default, word, 42);
    bench.copy_word(made, read, word)?;
    bench.set_word(default, word, 7);
    bench.synchronize()?;
    Ok(bench.peek(read))
}

#[test]
fn the_default_stream_orders_blocking_streams_and_no_others() {
    assert_eq!(seeds_that_differ(42, |bench| default_then_made(bench, 0)), 0);
    assert!(seeds_that_differ(42, |bench| default_then_made(bench, 1)) >= 4);
}

#[test]
fn a_wait_takes_the_record_of_its_own_time() {
    let differ = seeds_that_differ(1, |bench| {
        let (a, b) = (bench.stream(), bench.stream());
        let (word, read) = (bench.word(), bench.word());
        let (event, done) = (bench.driver.create_event(0)?, bench.driver.create_event(0)?);
        bench.set_word(a, word, 1);
        bench.record(event, a);
        bench.wait(b, event);
        bench.copy_word(b, read, word)?;
        bench.record(done, b);
        bench.wait(a, done);
        bench.set_word(a, word, 2);
        // Recording the event again must not make stream b wait for this.
        bench.record(event, a);
        bench.synchronize_stream(b)?;
        Ok(bench.peek(read))
    });
    assert_eq!(differ, 0);
}

#[test]
fn an_event_that_was_never_recorded_has_happened() {
    let mut bench = bench(0);
    let stream = bench.stream();
    let event = bench.driver.create_event(0).unwrap();
    assert_eq!(bench.driver.event_target(event), Ok(None));
    assert_eq!(code(bench.driver.wait_event(stream, event)), Code::Success);
    assert!(bench.driver.everything().is_empty());
}

#[test]
fn the_time_between_events_needs_both_to_have_happened() {
    let mut bench = bench(0);
    let stream = bench.stream();
    let word = bench.word();
    let events = [0, 0].map(|flags| bench.driver.create_event(flags).unwrap());
    let untimed = bench.driver.create_event(super::super::event::DISABLE_TIMING).unwrap();
    bench.record(events[0], stream);
    bench.set_word(stream, word, 1);
    bench.record(events[1], stream);
    bench.record(untimed, stream);
    let mut time = |a, b| bench.driver.event_milliseconds(a, b).map_err(|failure| failure.code);
    assert_eq!(time(events[0], events[1]), Err(Code::NotReady));
    assert_eq!(time(events[0], untimed), Err(Code::NotReady));
    bench.synchronize().unwrap();
    let mut time = |a, b| bench.driver.event_milliseconds(a, b).map_err(|failure| failure.code);
    assert!(time(events[0], events[1]).unwrap() > 0.0);
    assert_eq!(time(events[0], untimed), Err(Code::InvalidHandle));
}

static CALLS: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn remember(word: *mut std::ffi::c_void) {
    // SAFETY: the test passes a pointer to a word of pinned memory that is alive.
    CALLS.store(unsafe { word.cast::<u32>().read() }, SeqCst);
}

#[test]
fn a_host_function_sees_what_came_before_it_in_its_stream() {
    for seed in SEEDS {
        let mut bench = bench(seed);
        let stream = bench.stream();
        let word = bench.word();
        let host = bench.driver.allocate_pinned(4, 0).unwrap();
        // SAFETY: four bytes of live pinned memory.
        let pinned = unsafe { HostSpan::new(host, 4) };
        bench.set_word(stream, word, 40 + seed as u32);
        bench.driver.download(stream, pinned, word).unwrap();
        let call = super::super::work::HostCall { function: remember, data: host };
        bench.driver.enqueue(stream, super::super::work::Work::Host(call)).unwrap();
        bench.settle();
        bench.synchronize().unwrap();
        assert_eq!(CALLS.load(SeqCst), 40 + seed as u32, "seed {seed}");
    }
}

#[test]
fn a_stream_that_waits_for_a_word_runs_when_another_writes_it() {
    use super::super::work::{Comparison, Word, Work};
    for seed in SEEDS {
        let mut bench = bench(seed);
        let (a, b) = (bench.stream(), bench.stream());
        let (flag, word) = (bench.word(), bench.word());
        bench.set_word(a, flag, 0);
        bench.set_word(a, word, 1);
        bench.synchronize().unwrap();
        let signal = Word { address: flag, value: 3, bytes: 4 };
        bench.driver.enqueue(b, Work::WaitWord(signal, Comparison::AtLeast)).unwrap();
        bench.settle();
        bench.add_word(b, word, 1).unwrap();
        bench.set_word(a, word, 41);
        bench.driver.enqueue(a, Work::WriteWord(signal)).unwrap();
        bench.settle();
        bench.synchronize_stream(b).unwrap();
        assert_eq!(bench.peek(word), 42, "seed {seed}");
    }
}

#[test]
fn a_wait_for_a_word_nobody_writes_is_a_timeout_not_a_hang() {
    use super::super::work::{Comparison, Word, Work};
    let mut bench = bench(0);
    let stream = bench.stream();
    let flag = bench.word();
    bench.set_word(stream, flag, 0);
    let signal = Word { address: flag, value: 1, bytes: 4 };
    bench.driver.enqueue(stream, Work::WaitWord(signal, Comparison::Equal)).unwrap();
    assert_eq!(code(bench.synchronize()), Code::LaunchTimeout);
}

#[test]
fn the_default_stream_waits_for_a_blocking_stream_that_was_destroyed_meanwhile() {
    let differ = seeds_that_differ(42, |bench| {
        let default = bench.driver.stream(Handle::NULL)?;
        let made = bench.driver.create_stream(0, 0)?;
        let (word, read) = (bench.word(), bench.word());
        bench.set_word(made, word, 42);
        bench.driver.destroy_stream(made)?;
        bench.copy_word(default, read, word)?;
        bench.synchronize_stream(default)?;
        Ok(bench.peek(read))
    });
    assert_eq!(differ, 0);
}
