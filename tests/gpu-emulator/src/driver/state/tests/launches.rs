//! Limits of launches, failures that stay, injected ones, green contexts.

use super::*;
use crate::driver::settings::{Capability, Injection};

fn refused(change: impl FnOnce(&mut LaunchRequest)) -> Code {
    let mut bench = bench(0);
    let stream = bench.stream();
    let word = bench.word();
    bench.set_word(stream, word, 1);
    let mut request = bench.request("add_word", addend(word, 1));
    change(&mut request);
    code(bench.driver.launch(stream, &request).map(|_| ()))
}

#[test]
fn a_launch_beyond_a_limit_is_refused() {
    assert_eq!(refused(|_| {}), Code::Success);
    assert_eq!(refused(|request| request.grid = [0, 1, 1]), Code::InvalidValue);
    assert_eq!(refused(|request| request.grid = [1, 65_536, 1]), Code::InvalidValue);
    assert_eq!(refused(|request| request.block = [2048, 1, 1]), Code::InvalidValue);
    assert_eq!(refused(|request| request.block = [1, 1, 65]), Code::InvalidValue);
    assert_eq!(refused(|request| request.block = [129, 1, 1]), Code::InvalidValue);
    assert_eq!(refused(|request| request.block = [128, 1, 1]), Code::Success);
    assert_eq!(refused(|request| request.dynamic_shared_bytes = 47 << 10), Code::Success);
    assert_eq!(
        refused(|request| request.dynamic_shared_bytes = (47 << 10) + 1),
        Code::InvalidValue
    );
    assert_eq!(
        refused(|request| {
            request.params.pop();
        }),
        Code::InvalidValue
    );
    assert_eq!(refused(|request| request.cluster = [2, 1, 1]), Code::InvalidClusterSize);
}

#[test]
fn more_shared_memory_must_be_asked_for_and_has_the_capabilitys_limit() {
    for (capability, most) in [(Capability::Sm80, 162 << 10), (Capability::Sm90, 226 << 10)] {
        let settings = Settings { capability, memory_bytes: 1 << 24, ..Settings::default() };
        let mut bench = bench_with(settings);
        let function = bench.driver.function(bench.module, "add_word").unwrap();
        // The kernel has a kilobyte of static shared memory.
        let mut ask = |bytes| code(bench.driver.set_function_attribute(function, 8, bytes));
        assert_eq!(ask(most), Code::Success);
        assert_eq!(ask(most + 1), Code::InvalidValue);
        let word = bench.word();
        let stream = bench.stream();
        let mut request = bench.request("add_word", addend(word, 1));
        request.dynamic_shared_bytes = most as u32;
        assert!(bench.driver.launch(stream, &request).is_ok());
    }
}

#[test]
fn a_cooperative_launch_must_fit_the_device_at_once() {
    let mut bench = bench(0);
    let (stream, word) = (bench.stream(), bench.word());
    let mut request = bench.request("copy_word", pair(word, word));
    request.cooperative = true;
    request.block = [1024, 1, 1];
    request.grid = [32, 1, 1];
    assert!(bench.driver.launch(stream, &request).is_ok());
    request.grid = [33, 1, 1];
    let refused = bench.driver.launch(stream, &request).unwrap_err();
    assert_eq!(refused.code, Code::CooperativeLaunchTooLarge);
}

#[test]
fn parameters_are_copied_at_the_call() {
    let mut bench = bench(0);
    let (stream, word) = (bench.stream(), bench.word());
    bench.set_word(stream, word, 1);
    let mut request = bench.request("add_word", addend(word, 41));
    bench.driver.launch(stream, &request).unwrap();
    request.params.fill(0xFF);
    bench.synchronize().unwrap();
    assert_eq!(bench.peek(word), 42);
}

#[test]
fn a_kernel_that_breaks_a_rule_fails_the_device_for_good() {
    let wanted = [
        Code::IllegalAddress,
        Code::MisalignedAddress,
        Code::IllegalAddress,
        Code::IllegalAddress,
        Code::LaunchFailed,
        Code::LaunchFailed,
        Code::LaunchTimeout,
        Code::IllegalInstruction,
        Code::LaunchFailed,
    ];
    for (kind, wanted) in wanted.into_iter().enumerate() {
        let mut bench = bench(0);
        let (stream, word) = (bench.stream(), bench.word());
        bench.launch(stream, "break_a_rule", (kind as u32).to_le_bytes().to_vec()).unwrap();
        bench.set_word(stream, word, 1);
        assert_eq!(code(bench.synchronize()), wanted);
        assert_eq!(code(bench.driver.healthy()), wanted);
        assert_eq!(code(bench.launch(stream, "copy_word", pair(word, word))), wanted);
        assert!(bench.driver.everything().is_empty());
        let mut bytes = [9; 4];
        bench.driver.memory.read(word, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4], "work behind the failure must not run");
    }
}

#[test]
fn the_launch_that_was_asked_to_fail_fails_and_no_earlier_one() {
    let injection = Some(Injection { kernel: "add_word".to_owned(), launch: 3 });
    let settings = Settings { injection, memory_bytes: 1 << 24, ..Settings::default() };
    let mut bench = bench_with(settings);
    let (stream, word) = (bench.stream(), bench.word());
    bench.set_word(stream, word, 0);
    for _ in 0..2 {
        bench.add_word(stream, word, 1).unwrap();
        bench.copy_word(stream, word, word).unwrap();
        bench.synchronize().unwrap();
    }
    assert_eq!(bench.peek(word), 2);
    bench.add_word(stream, word, 1).unwrap();
    let failed = bench.synchronize().unwrap_err();
    assert_eq!(failed.code, Code::LaunchFailed);
    assert!(failed.reason.contains("add_word"));
}

#[test]
fn a_module_for_a_newer_device_or_with_nonsense_is_refused_by_its_own_code() {
    let mut bench = bench(0);
    let newer = bench.driver.load_module(&PTX.replace("sm_80", "sm_100")).unwrap_err();
    assert_eq!(newer.code, Code::NoBinaryForGpu);
    let broken = bench.driver.load_module(&format!("{PTX}nonsense")).unwrap_err();
    assert_eq!((broken.code, broken.reason.as_str()), (Code::InvalidPtx, "line 4: nonsense"));
    let missing = bench.driver.function(bench.module, "no_such_kernel").unwrap_err();
    assert_eq!(missing.code, Code::NotFound);
}

#[test]
fn a_green_contexts_launches_get_its_sms() {
    let mut bench = bench(0);
    let (parts, rest) = super::super::green::split(Capability::Sm90, 0..16, Some(1), 5, 0).unwrap();
    assert_eq!((parts[0].clone(), rest), (0..8, 8..16));
    let word = bench.word();
    for sms in [0..8, 8..16] {
        let descriptor = bench.driver.describe_sms(std::slice::from_ref(&sms)).unwrap();
        assert_eq!(bench.driver.create_green(descriptor, 0).unwrap_err().code, Code::InvalidValue);
        let green = bench.driver.create_green(descriptor, 1).unwrap();
        assert!(bench.driver.create_green_stream(green, 0, 0).is_err());
        let stream = bench.driver.create_green_stream(green, 1, 0).unwrap();
        bench.set_word(stream, word, 1);
        bench.add_word(stream, word, 1).unwrap();
        bench.synchronize_stream(stream).unwrap();
        let launch = bench.launches.lock().unwrap().pop().unwrap();
        assert_eq!((launch.sms, launch.sm_count), (sms, 16));
        bench.driver.destroy_green(green).unwrap();
        assert!(bench.driver.stream_info(stream).is_err());
    }
    assert_eq!(bench.peek(word), 2);
}

#[test]
fn the_report_counts_launches_and_names_what_was_touched() {
    let mut bench = bench(0);
    let (stream, word) = (bench.stream(), bench.word());
    bench.driver.label(word, "the word").unwrap();
    bench.set_word(stream, word, 1);
    bench.add_word(stream, word, 1).unwrap();
    bench.add_word(stream, word, 1).unwrap();
    bench.driver.report.mark("a place");
    bench.synchronize().unwrap();
    let report = bench.driver.report.to_json();
    assert_eq!(report["kernels"]["add_word"]["launches"], 2);
    assert_eq!(report["kernels"]["add_word"]["load_requests"], 2);
    assert!(report["kernels"]["add_word"]["registers"].is_null());
    let labels: Vec<_> =
        report["allocations"].as_array().unwrap().iter().map(|a| a["label"].clone()).collect();
    assert!(labels.contains(&"the word".into()), "{labels:?}");
    assert_eq!(report["log"][0]["mark"], "a place");
}
