//! Capture: what it records, what it forbids, and how it ends.

use super::super::capture::{Mode, Status};
use super::*;

/// Begins a capture, does something in it, and says what that and the end of the capture answered.
fn capturing(act: impl FnOnce(&mut Bench, Handle) -> Outcome) -> (Code, Code) {
    let mut bench = bench(0);
    let stream = bench.stream();
    bench.driver.begin_capture(stream, Mode::Global).unwrap();
    let act = code(act(&mut bench, stream));
    let end = code(bench.driver.end_capture(stream).map(|_| ()));
    assert_eq!(bench.driver.capture_status(stream).unwrap().0, Status::None);
    (act, end)
}

#[test]
fn what_cannot_be_recorded_answers_cudas_code_and_spoils_the_capture() {
    let spoilt = |code| (code, Code::CaptureInvalidated);
    assert_eq!(
        capturing(|bench, stream| bench.synchronize_stream(stream)),
        spoilt(Code::CaptureUnsupported)
    );
    assert_eq!(
        capturing(|bench, _| bench.driver.context_targets().map(|_| ())),
        spoilt(Code::CaptureUnsupported)
    );
    assert_eq!(
        capturing(|bench, _| bench.driver.allocate(4, "").map(|_| ())),
        spoilt(Code::CaptureUnsupported)
    );
    assert_eq!(
        capturing(|bench, stream| bench.driver.allocate_async(stream, 4, "").map(|_| ())),
        spoilt(Code::CaptureUnsupported)
    );
    assert_eq!(
        capturing(|bench, _| bench.driver.load_module(PTX).map(|_| ())),
        spoilt(Code::CaptureUnsupported)
    );
    assert_eq!(
        capturing(|bench, stream| {
            let event = bench.driver.create_event(0)?;
            bench.driver.record_event(event, stream)?;
            bench.driver.event_target(event).map(|_| ())
        }),
        spoilt(Code::CapturedEvent)
    );
    assert_eq!(
        capturing(|bench, stream| {
            let event = bench.driver.create_event(0)?;
            let other = bench.stream();
            bench.driver.record_event(event, other)?;
            bench.driver.wait_event(stream, event)
        }),
        spoilt(Code::CaptureIsolation)
    );
}

#[test]
fn a_copy_with_pageable_memory_cannot_be_captured() {
    let mut bench = bench(0);
    let (stream, word) = (bench.stream(), bench.word());
    let host = [1_u32];
    bench.driver.begin_capture(stream, Mode::Relaxed).unwrap();
    let refused = bench.driver.upload(stream, word, span_of(&host)).unwrap_err();
    assert_eq!(refused.code, Code::CaptureUnsupported);
    assert_eq!(bench.driver.end_capture(stream).unwrap_err().code, Code::CaptureInvalidated);
}

#[test]
fn after_a_capture_was_spoilt_every_use_of_its_streams_says_so() {
    let mut bench = bench(0);
    let (stream, word) = (bench.stream(), bench.word());
    bench.driver.begin_capture(stream, Mode::Global).unwrap();
    assert!(bench.synchronize_stream(stream).is_err());
    assert_eq!(bench.driver.capture_status(stream).unwrap().0, Status::Invalidated);
    assert_eq!(code(bench.copy_word(stream, word, word)), Code::CaptureInvalidated);
    assert_eq!(bench.driver.end_capture(stream).unwrap_err().code, Code::CaptureInvalidated);
    assert_eq!(code(bench.synchronize_stream(stream)), Code::Success);
}

#[test]
fn the_default_stream_may_not_wait_for_a_blocking_stream_in_a_capture() {
    for (flags, wanted) in [(0, Code::CaptureImplicit), (1, Code::Success)] {
        let mut bench = bench(0);
        let word = bench.word();
        let default = bench.driver.stream(Handle::NULL).unwrap();
        let stream = bench.driver.create_stream(flags, 0).unwrap();
        bench.driver.begin_capture(stream, Mode::Global).unwrap();
        assert_eq!(code(bench.copy_word(default, word, word)), wanted);
    }
    let mut bench = bench(0);
    let default = bench.driver.stream(Handle::NULL).unwrap();
    let refused = bench.driver.begin_capture(default, Mode::Global);
    assert_eq!(code(refused), Code::CaptureUnsupported);
}

#[test]
fn the_mode_says_whose_calls_are_watched() {
    let answer = |mode, other_thread: bool| {
        let mut bench = bench(0);
        let stream = bench.stream();
        bench.driver.begin_capture(stream, mode).unwrap();
        if other_thread {
            bench.driver.caller.thread = 2;
        }
        code(bench.driver.allocate(4, "").map(|_| ()))
    };
    assert_eq!(answer(Mode::Global, true), Code::CaptureUnsupported);
    assert_eq!(answer(Mode::ThreadLocal, true), Code::Success);
    assert_eq!(answer(Mode::ThreadLocal, false), Code::CaptureUnsupported);
    assert_eq!(answer(Mode::Relaxed, false), Code::Success);
}

#[test]
fn a_capture_ends_where_it_began_on_its_thread_with_all_work_joined() {
    let mut bench = bench(0);
    let (a, b, word) = (bench.stream(), bench.stream(), bench.word());
    let event = bench.driver.create_event(0).unwrap();
    let end = |bench: &mut Bench, stream| code(bench.driver.end_capture(stream).map(|_| ()));
    assert_eq!(end(&mut bench, a), Code::InvalidValue);

    bench.driver.begin_capture(a, Mode::ThreadLocal).unwrap();
    bench.driver.caller.thread = 2;
    assert_eq!(end(&mut bench, a), Code::CaptureWrongThread);
    bench.driver.caller.thread = 1;
    bench.driver.record_event(event, a).unwrap();
    bench.driver.wait_event(b, event).unwrap();
    bench.copy_word(b, word, word).unwrap();
    assert_eq!(end(&mut bench, a), Code::CaptureUnjoined);

    bench.driver.begin_capture(a, Mode::ThreadLocal).unwrap();
    bench.driver.record_event(event, a).unwrap();
    bench.driver.wait_event(b, event).unwrap();
    assert_eq!(end(&mut bench, b), Code::CaptureUnmatched);
    assert_eq!(end(&mut bench, a), Code::CaptureInvalidated);
    assert_eq!(bench.driver.capture_status(b).unwrap().0, Status::None);
}

#[test]
fn two_captures_do_not_merge() {
    let mut bench = bench(0);
    let (a, b) = (bench.stream(), bench.stream());
    let event = bench.driver.create_event(0).unwrap();
    bench.driver.begin_capture(a, Mode::Relaxed).unwrap();
    bench.driver.begin_capture(b, Mode::Relaxed).unwrap();
    bench.driver.record_event(event, a).unwrap();
    assert_eq!(code(bench.driver.wait_event(b, event)), Code::CaptureMerge);
    for stream in [a, b] {
        assert_eq!(bench.driver.end_capture(stream).unwrap_err().code, Code::CaptureInvalidated);
    }
}

#[test]
fn nothing_runs_while_it_is_recorded() {
    let mut bench = bench(3);
    let (stream, word) = (bench.stream(), bench.word());
    bench.set_word(stream, word, 1);
    bench.driver.begin_capture(stream, Mode::Global).unwrap();
    bench.add_word(stream, word, 1).unwrap();
    let graph = bench.driver.end_capture(stream).unwrap();
    bench.synchronize().unwrap();
    assert_eq!(bench.peek(word), 1);
    assert_eq!(bench.driver.graph(graph).unwrap().nodes.len(), 1);
}
