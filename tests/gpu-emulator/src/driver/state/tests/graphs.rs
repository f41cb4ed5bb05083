//! Graphs: the same results as without them, changed between launches, never overlapping.

use super::super::capture::Mode;
use super::super::graph::UpdateResult;
use super::*;

/// `a` makes two words, `b` adds to one beside it, `a` joins and sums: 40 + 2 in `sum`.
fn fork_and_join(bench: &mut Bench, a: Handle, b: Handle, words: [u64; 3]) -> Outcome {
    let [x, y, sum] = words;
    let fork = bench.driver.create_event(0)?;
    let join = bench.driver.create_event(0)?;
    bench.set_word(a, x, 30);
    bench.set_word(a, y, 1);
    bench.driver.record_event(fork, a)?;
    bench.driver.wait_event(b, fork)?;
    bench.add_word(b, y, 11)?;
    bench.driver.record_event(join, b)?;
    bench.add_word(a, x, 0)?;
    bench.driver.wait_event(a, join)?;
    bench.copy_word(a, sum, y)?;
    bench.add_word(a, sum, 30)
}

#[test]
fn a_graph_of_two_streams_gives_what_the_streams_give_under_every_seed() {
    for captured in [false, true] {
        let differ = seeds_that_differ(42, |bench| {
            let (a, b) = (bench.stream(), bench.stream());
            let words = [bench.word(), bench.word(), bench.word()];
            if captured {
                bench.driver.begin_capture(a, Mode::ThreadLocal)?;
                fork_and_join(bench, a, b, words)?;
                let graph = bench.driver.end_capture(a)?;
                let executable = bench.driver.instantiate(graph, 0)?;
                bench.driver.destroy_graph(graph)?;
                for _ in 0..3 {
                    bench.driver.launch_graph(executable, a)?;
                    bench.settle();
                }
                bench.driver.destroy_executable(executable)?;
            } else {
                fork_and_join(bench, a, b, words)?;
            }
            bench.synchronize_stream(a)?;
            Ok(bench.peek(words[2]))
        });
        assert_eq!(differ, 0, "captured: {captured}");
    }
}

/// Captures one `add_word`; answers the executable and the node's handle.
fn adding(bench: &mut Bench, stream: Handle, word: u64, value: u32) -> (Handle, Handle) {
    bench.driver.begin_capture(stream, Mode::ThreadLocal).unwrap();
    bench.add_word(stream, word, value).unwrap();
    let graph = bench.driver.end_capture(stream).unwrap();
    let node = bench.driver.graph(graph).unwrap().names[0];
    (bench.driver.instantiate(graph, 0).unwrap(), node)
}

#[test]
fn two_launches_of_one_executable_never_overlap() {
    for seed in SEEDS {
        let mut bench = bench(seed);
        let (a, b, word) = (bench.stream(), bench.stream(), bench.word());
        bench.set_word(a, word, 0);
        bench.synchronize().unwrap();
        let (executable, _) = adding(&mut bench, a, word, 1);
        let first = bench.driver.launch_graph(executable, a).unwrap();
        let second = bench.driver.launch_graph(executable, b).unwrap();
        assert!(bench.driver.needed(&[second]).contains(&first));
        bench.synchronize().unwrap();
        assert_eq!(bench.peek(word), 2);
    }
}

#[test]
fn a_changed_node_changes_later_launches_only() {
    let mut bench = bench(0);
    let (stream, word) = (bench.stream(), bench.word());
    bench.set_word(stream, word, 0);
    let (executable, node) = adding(&mut bench, stream, word, 1);
    bench.driver.launch_graph(executable, stream).unwrap();
    let request = bench.request("add_word", addend(word, 100));
    bench.driver.set_executable_kernel(executable, node, &request).unwrap();
    bench.driver.launch_graph(executable, stream).unwrap();
    bench.synchronize().unwrap();
    assert_eq!(bench.peek(word), 101);
    let other = bench.stream();
    let (_, foreign) = adding(&mut bench, other, word, 1);
    let refused = bench.driver.set_executable_kernel(executable, foreign, &request).unwrap_err();
    assert_eq!(refused.code, Code::InvalidValue);
}

#[test]
fn an_executable_takes_the_work_of_a_graph_of_its_shape_only() {
    let mut bench = bench(0);
    let (stream, word) = (bench.stream(), bench.word());
    bench.set_word(stream, word, 0);
    let (executable, _) = adding(&mut bench, stream, word, 1);
    let capture = |bench: &mut Bench, adds: &[u32], fills: usize| {
        bench.driver.begin_capture(stream, Mode::ThreadLocal).unwrap();
        for value in adds {
            bench.add_word(stream, word, *value).unwrap();
        }
        for _ in 0..fills {
            bench.set_word(stream, word, 5);
        }
        bench.driver.end_capture(stream).unwrap()
    };
    let longer = capture(&mut bench, &[1, 1], 0);
    let other_kind = capture(&mut bench, &[], 1);
    let same = capture(&mut bench, &[42], 0);
    let mut update = |graph| bench.driver.update_executable(executable, graph).unwrap().0;
    assert_eq!(update(longer), UpdateResult::TopologyChanged);
    assert_eq!(update(other_kind), UpdateResult::NodeTypeChanged);
    assert_eq!(update(same), UpdateResult::Success);
    bench.driver.launch_graph(executable, stream).unwrap();
    bench.synchronize().unwrap();
    assert_eq!(bench.peek(word), 42);
}

#[test]
fn launches_of_a_graph_are_counted_for_injection_and_numbered() {
    let mut bench = bench(0);
    let (stream, word) = (bench.stream(), bench.word());
    bench.set_word(stream, word, 0);
    let (executable, _) = adding(&mut bench, stream, word, 1);
    bench
        .driver
        .inject(crate::driver::settings::Injection { kernel: "add_word".to_owned(), launch: 2 });
    bench.driver.launch_graph(executable, stream).unwrap();
    bench.driver.launch_graph(executable, stream).unwrap();
    assert_eq!(code(bench.synchronize()), Code::LaunchFailed);
    assert_eq!(bench.peek(word), 1);
    assert_eq!(bench.launches.lock().unwrap()[0].serial, 1);
}

#[test]
fn a_hand_made_graph_runs_in_the_order_of_its_dependencies() {
    for seed in SEEDS {
        let mut bench = bench(seed);
        let (stream, word) = (bench.stream(), bench.word());
        let graph = bench.driver.create_graph();
        let fill = Fill {
            destination: word,
            value: 40,
            element_bytes: 4,
            width: 1,
            height: 1,
            pitch_bytes: 0,
        };
        let work = super::super::work::Work::Fill(fill);
        let first = bench.driver.add_node(graph, &[], work).unwrap();
        let request = bench.request("add_word", addend(word, 2));
        let kernel = bench.driver.prepare(&request, stream).unwrap();
        let work = super::super::work::Work::Kernel(Box::new(kernel));
        let second = bench.driver.add_node(graph, &[first], work).unwrap();
        assert_eq!(bench.driver.node_waits(second).unwrap(), [first]);
        let executable = bench.driver.instantiate(graph, 0).unwrap();
        bench.driver.launch_graph(executable, stream).unwrap();
        bench.synchronize().unwrap();
        assert_eq!(bench.peek(word), 42);
    }
}
