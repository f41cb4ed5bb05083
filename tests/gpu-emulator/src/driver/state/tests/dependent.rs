//! Launches that may begin before their predecessor has ended: which kernels those may overlap.

use super::super::capture::Mode;
use super::*;
use crate::driver::settings::Capability;
use std::collections::BTreeSet;

impl Bench {
    fn copy_early(&mut self, stream: Handle, to: u64, from: u64) -> Outcome {
        let mut request = self.request("copy_word", pair(to, from));
        request.programmatic = true;
        self.driver.launch(stream, &request)?;
        self.settle();
        Ok(())
    }

    /// What the kernels before each launch stored to that it may overlap, of all launches since
    /// this was asked last.
    fn overlapped(&mut self) -> Vec<Option<Vec<u64>>> {
        self.synchronize().unwrap();
        let launches = std::mem::take(&mut *self.launches.lock().unwrap());
        let stored = |set: &Arc<BTreeSet<u64>>| set.iter().copied().collect();
        launches.iter().map(|launch| launch.unfinished.as_ref().map(stored)).collect()
    }

    /// Three words that hold something.
    fn words(&mut self, stream: Handle) -> [u64; 3] {
        let words = [(); 3].map(|()| self.word());
        words.iter().for_each(|word| self.set_word(stream, *word, 1));
        words
    }
}

#[test]
fn a_launch_may_overlap_all_kernels_of_its_chain_and_a_chain_begins_behind_anything_else() {
    for seed in SEEDS {
        let mut bench = bench(seed);
        let stream = bench.stream();
        let [a, b, c] = bench.words(stream);
        // Behind a memset; behind that; behind both.
        bench.copy_early(stream, a, c).unwrap();
        bench.copy_early(stream, b, a).unwrap();
        bench.copy_early(stream, a, b).unwrap();
        // Behind all that has ended, and behind that.
        bench.copy_word(stream, c, a).unwrap();
        bench.copy_early(stream, a, c).unwrap();
        let wanted = [None, Some(vec![a]), Some(vec![a, b]), None, Some(vec![c])];
        assert_eq!(bench.overlapped(), wanted, "seed {seed}");
        // It has run, but nobody waited for it in the stream.
        bench.copy_early(stream, b, c).unwrap();
        assert_eq!(bench.overlapped(), [Some(vec![a, c])], "seed {seed}");
        let event = bench.driver.create_event(0).unwrap();
        bench.record(event, stream);
        bench.copy_early(stream, b, c).unwrap();
        bench.wait(stream, event);
        bench.copy_early(stream, b, c).unwrap();
        assert_eq!(bench.overlapped(), [None, None], "seed {seed}");
    }
}

#[test]
fn another_streams_kernel_is_no_predecessor() {
    let mut bench = bench(0);
    let (one, other) = (bench.stream(), bench.stream());
    let [a, b, c] = bench.words(one);
    bench.synchronize().unwrap();
    bench.copy_word(one, a, c).unwrap();
    bench.copy_early(other, b, c).unwrap();
    bench.copy_early(one, b, c).unwrap();
    bench.synchronize_stream(other).unwrap();
    assert_eq!(bench.overlapped().iter().filter(|o| **o == Some(vec![a])).count(), 1);
}

#[test]
fn a_graph_keeps_which_kernels_may_begin_early() {
    for seed in SEEDS {
        let mut bench = bench(seed);
        let (stream, side) = (bench.stream(), bench.stream());
        let [a, b, c] = bench.words(stream);
        bench.driver.begin_capture(stream, Mode::ThreadLocal).unwrap();
        bench.copy_early(stream, a, c).unwrap();
        bench.copy_early(stream, b, a).unwrap();
        // Behind two nodes.
        let [fork, join] = [(); 2].map(|()| bench.driver.create_event(0).unwrap());
        bench.driver.record_event(fork, stream).unwrap();
        bench.driver.wait_event(side, fork).unwrap();
        bench.copy_word(side, c, b).unwrap();
        bench.copy_early(stream, a, b).unwrap();
        bench.driver.record_event(join, side).unwrap();
        bench.driver.wait_event(stream, join).unwrap();
        bench.copy_early(stream, a, c).unwrap();
        let graph = bench.driver.end_capture(stream).unwrap();
        let executable = bench.driver.instantiate(graph, 0).unwrap();
        let number = bench.driver.executable_number(executable).to_string();
        let early = bench.driver.report.to_json()["early_in_graphs"][&number].clone();
        assert_eq!(early, serde_json::json!([false, true, false, true, false]));
        for _ in 0..2 {
            // A graph begins behind all that was enqueued before.
            bench.copy_word(stream, b, c).unwrap();
            bench.driver.launch_graph(executable, stream).unwrap();
            bench.settle();
            let mut found = bench.overlapped();
            found.retain(Option::is_some);
            assert_eq!(found, [Some(vec![a]), Some(vec![a, b])], "seed {seed}");
        }
    }
}

#[test]
fn a_device_below_9_0_refuses_to_begin_early() {
    let settings =
        Settings { capability: Capability::Sm80, memory_bytes: 1 << 24, ..Settings::default() };
    let mut bench = bench_with(settings);
    let stream = bench.stream();
    let [a, b, _] = bench.words(stream);
    assert_eq!(code(bench.copy_early(stream, a, b)), Code::NotSupported);
    assert_eq!(code(bench.copy_word(stream, a, b)), Code::Success);
}
