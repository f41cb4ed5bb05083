//! Host memory at the call and at the copy; allocation, freeing, limits.

use super::*;

/// Uploads a word and changes it on the host before the stream is waited for.
fn upload_and_reuse(bench: &mut Bench, pinned: bool) -> Outcome<u32> {
    let stream = bench.stream();
    let word = bench.word();
    let mut pageable = Box::new(42_u32);
    let host = match pinned {
        true => bench.driver.allocate_pinned(4, 0)? as *mut u32,
        false => &raw mut *pageable,
    };
    // SAFETY: `host` is a live word of pinned memory or of the box.
    unsafe { host.write(42) };
    // SAFETY: as above; it stays alive until the stream has been waited for.
    let span = unsafe { HostSpan::new(host as usize, 4) };
    bench.driver.upload(stream, word, span)?;
    bench.settle();
    // SAFETY: as above.
    unsafe { host.write(7) };
    bench.synchronize()?;
    Ok(bench.peek(word))
}

#[test]
fn pageable_memory_is_read_at_the_call() {
    assert_eq!(seeds_that_differ(42, |bench| upload_and_reuse(bench, false)), 0);
}

#[test]
fn a_pinned_buffer_reused_too_early_is_seen_under_most_seeds() {
    let seen = seeds_that_differ(42, |bench| upload_and_reuse(bench, true));
    assert!((8..16).contains(&seen), "{seen} of 16: all but 'at once' and some whims");
}

#[test]
fn a_pinned_result_is_there_after_the_wait_and_not_before() {
    let mut bench = bench(0);
    let stream = bench.stream();
    let word = bench.word();
    let host = bench.driver.allocate_pinned(4, 0).unwrap();
    // SAFETY: four bytes of live pinned memory.
    let span = unsafe { HostSpan::new(host, 4) };
    span.write(&[0; 4]);
    bench.set_word(stream, word, 42);
    let copied = bench.driver.download(stream, span, word).unwrap();
    assert!(!copied.pageable);
    assert_eq!(span.read(), 0_u32.to_le_bytes());
    bench.synchronize_stream(stream).unwrap();
    assert_eq!(span.read(), 42_u32.to_le_bytes());
}

#[test]
fn registered_memory_is_pinned_until_it_is_not() {
    let mut bench = bench(0);
    let stream = bench.stream();
    let word = bench.word();
    let host = [1_u32, 2];
    let at = host.as_ptr() as usize;
    bench.driver.register_host(at, 8, 0).unwrap();
    assert_eq!(code(bench.driver.register_host(at + 4, 4, 0)), Code::HostMemoryAlreadyRegistered);
    assert!(!bench.driver.upload(stream, word, span_of(&host[1..])).unwrap().pageable);
    bench.synchronize().unwrap();
    bench.driver.unregister_host(at).unwrap();
    assert_eq!(code(bench.driver.unregister_host(at)), Code::HostMemoryNotRegistered);
    assert!(bench.driver.upload(stream, word, span_of(&host[1..])).unwrap().pageable);
    bench.synchronize().unwrap();
    assert_eq!(bench.peek(word), 2);
}

#[test]
fn a_kernel_reaches_pinned_memory_by_its_device_address() {
    let mut bench = bench(1);
    let stream = bench.stream();
    let word = bench.word();
    let host = bench.driver.allocate_pinned(64, 0).unwrap();
    // SAFETY: a live word of pinned memory.
    unsafe { ((host + 8) as *mut u32).write(42) };
    let device = bench.driver.device_address_of_host(host + 8).unwrap();
    bench.copy_word(stream, word, device).unwrap();
    bench.synchronize().unwrap();
    assert_eq!(bench.peek(word), 42);
}

#[test]
fn a_copy_past_an_allocation_is_refused_at_the_call() {
    let mut bench = bench(0);
    let stream = bench.stream();
    let word = bench.word();
    let host = [1_u32, 2];
    let refused = bench.driver.upload(stream, word, span_of(&host)).unwrap_err();
    assert_eq!(refused.code, Code::InvalidValue);
    assert!(refused.reason.contains("'word'"), "{}", refused.reason);
    assert!(bench.driver.download(stream, span_of(&host), word).is_err());
    assert!(bench.driver.copy(stream, word, word + 4, 4).is_err());
}

#[test]
fn memory_is_freed_when_its_stream_comes_to_it() {
    let mut bench = bench(0);
    let (a, b) = (bench.stream(), bench.stream());
    let (word, read) = (bench.word(), bench.word());
    bench.set_word(a, word, 1);
    bench.driver.free_async(a, word).unwrap();
    assert_eq!(code(bench.driver.free_async(a, word)), Code::InvalidValue);
    assert_eq!(code(bench.driver.check_free(word)), Code::InvalidValue);
    bench.copy_word(b, read, word).unwrap();
    // Stream b was never told to run before the free, and here it does not.
    bench.synchronize_stream(a).unwrap();
    assert_eq!(code(bench.synchronize()), Code::IllegalAddress);
}

#[test]
fn more_than_the_device_has_is_out_of_memory_and_freed_memory_comes_back() {
    let mut bench = bench(0);
    let (free, total) = bench.driver.memory_info();
    assert_eq!(total, 1 << 24);
    assert_eq!(bench.driver.allocate(free + 1, "").unwrap_err().code, Code::OutOfMemory);
    let all = bench.driver.allocate(free, "").unwrap();
    assert_eq!(bench.driver.memory_info().0, 0);
    assert_eq!(bench.driver.allocate(1, "").unwrap_err().code, Code::OutOfMemory);
    // Pinned memory is the host's and does not count.
    bench.driver.allocate_pinned(4096, 0).unwrap();
    bench.driver.free(all).unwrap();
    assert_eq!(bench.driver.memory_info().0, free);
}

#[test]
fn a_module_places_its_variables_with_their_initial_values() {
    let mut bench = bench(0);
    let (table, bytes) = bench.driver.variable(bench.module, "table").unwrap();
    assert_eq!(bytes, 8);
    let mut values = [9; 8];
    bench.driver.memory.read(table, &mut values).unwrap();
    assert_eq!(values, [1, 2, 3, 0, 0, 0, 0, 0]);
    let (pointer, _) = bench.driver.variable(bench.module, "pointer").unwrap();
    bench.driver.memory.read(pointer, &mut values).unwrap();
    assert_eq!(u64::from_le_bytes(values), table + 4);
    let used = bench.driver.memory_info().0;
    bench.driver.unload_module(bench.module).unwrap();
    assert_eq!(bench.driver.memory_info().0, used + 16);
    assert!(bench.driver.variable(bench.module, "table").is_err());
}

#[test]
fn letting_go_of_the_last_context_frees_what_it_owned() {
    let mut bench = bench(0);
    let word = bench.word();
    let stream = bench.stream();
    bench.driver.retain_primary();
    bench.driver.release_primary().unwrap();
    assert!(bench.driver.stream_info(stream).is_ok());
    bench.driver.release_primary().unwrap();
    assert!(bench.driver.stream_info(stream).is_err());
    assert!(bench.driver.memory.allocation(word).is_none());
    assert_eq!(bench.driver.memory_info().0, 1 << 24);
    assert_eq!(code(bench.driver.release_primary()), Code::InvalidContext);
    assert_eq!(bench.driver.allocate(1, "").unwrap_err().code, Code::InvalidContext);
}
