//! The race detector and the copy rules on the memory alone, without a kernel.

use super::*;

fn by(warp: usize) -> Access {
    Access { warp, line: 1, strong: false }
}

fn strided(base: u32, stride: u32) -> [u32; 32] {
    std::array::from_fn(|lane| base + lane as u32 * stride)
}

/// Each lane's value from its number.
fn values(of: impl Fn(usize) -> u32) -> [[u32; 4]; 32] {
    std::array::from_fn(|lane| [of(lane), 0, 0, 0])
}

fn put(memory: &mut SharedMemory, warp: usize, mask: u32, base: u32) -> Option<FaultKind> {
    let value = values(|lane| (warp * 32 + lane) as u32);
    memory.store(by(warp), mask, &strided(base, 4), 4, &value).err().map(|e| e.violation.kind)
}

fn get(memory: &mut SharedMemory, warp: usize, mask: u32, base: u32) -> Option<FaultKind> {
    memory.load(by(warp), mask, &strided(base, 4), 4).err().map(|e| e.violation.kind)
}

fn copy(
    memory: &mut SharedMemory,
    warp: usize,
    lane: usize,
    address: u32,
    bytes: &[u8; 16],
    written: u32,
) -> Result<(), Violation> {
    let view = memory.view(by(warp));
    memory.copy_in(&view, lane, address, bytes, 16, written)
}

fn row(memory: &mut SharedMemory, address: u32) -> Result<[u8; 16], Violation> {
    let view = memory.view(by(0));
    memory.load_row(&view, address)
}

const ALL: u32 = u32::MAX;
const RACE: Option<FaultKind> = Some(FaultKind::SharedRace);

#[test]
fn a_read_after_anothers_write_needs_a_barrier_between() {
    let mut memory = SharedMemory::new(1024, 64);
    assert_eq!(put(&mut memory, 0, ALL, 0), None);
    assert_eq!(get(&mut memory, 0, ALL, 0), None, "each lane reads its own word");
    assert_eq!(get(&mut memory, 1, ALL, 0), RACE);
    memory.everybody_met();
    assert_eq!(get(&mut memory, 1, ALL, 0), None);
}

#[test]
fn a_write_after_anothers_read_needs_a_barrier_between() {
    let mut memory = SharedMemory::new(1024, 64);
    put(&mut memory, 0, ALL, 0);
    memory.everybody_met();
    assert_eq!(get(&mut memory, 1, ALL, 0), None);
    assert_eq!(put(&mut memory, 0, ALL, 0), RACE);
    memory.everybody_met();
    assert_eq!(put(&mut memory, 0, ALL, 0), None);
}

#[test]
fn lanes_of_one_warp_race_until_they_meet() {
    let mut memory = SharedMemory::new(1024, 32);
    put(&mut memory, 0, ALL, 0);
    let reversed = std::array::from_fn(|lane| (31 - lane as u32) * 4);
    let fault = memory.load(by(0), ALL, &reversed, 4).unwrap_err();
    assert_eq!(fault.violation.kind, FaultKind::SharedRace);
    assert!(fault.violation.detail.contains("lockstep"), "{}", fault.violation.detail);
    memory.lanes_met(0, ALL, true);
    assert!(memory.load(by(0), ALL, &reversed, 4).is_ok());
}

#[test]
fn half_a_warp_can_meet_alone() {
    let mut memory = SharedMemory::new(1024, 32);
    put(&mut memory, 0, ALL, 0);
    memory.lanes_met(0, 0xffff, false);
    let swapped = std::array::from_fn(|lane| (lane as u32 ^ 1) * 4);
    assert!(memory.load(by(0), 0xffff, &swapped, 4).is_ok());
    assert!(memory.load(by(0), 0xffff_0000, &swapped, 4).is_err());
    memory.lanes_met(0, 0xffff, false);
    assert_eq!(put(&mut memory, 0, 0xffff, 0), None, "reads of the half are ordered too");
}

#[test]
fn a_named_barrier_orders_only_those_who_met() {
    let mut memory = SharedMemory::new(1024, 96);
    put(&mut memory, 0, ALL, 0);
    let (a, b) = (memory.release(0), memory.release(1));
    for warp in [0, 1] {
        memory.acquire(warp, &a);
        memory.acquire(warp, &b);
    }
    assert_eq!(get(&mut memory, 1, ALL, 0), None);
    assert_eq!(get(&mut memory, 2, ALL, 0), RACE);
}

#[test]
fn order_is_passed_on() {
    let mut memory = SharedMemory::new(1024, 96);
    put(&mut memory, 0, ALL, 0);
    let zero = memory.release(0);
    memory.acquire(1, &zero);
    let one = memory.release(1);
    memory.acquire(2, &one);
    assert_eq!(get(&mut memory, 2, ALL, 0), None);
}

#[test]
fn what_a_warp_writes_after_it_arrived_is_not_released() {
    let mut memory = SharedMemory::new(1024, 64);
    let arrived = memory.release(0);
    put(&mut memory, 0, ALL, 0);
    memory.acquire(1, &arrived);
    assert_eq!(get(&mut memory, 1, ALL, 0), RACE);
}

#[test]
fn writing_the_same_value_twice_is_no_race_and_another_value_is() {
    let mut memory = SharedMemory::new(64, 64);
    let all_at_zero = [0u32; 32];
    assert!(memory.store(by(0), ALL, &all_at_zero, 4, &values(|_| 7)).is_ok());
    assert!(memory.store(by(1), ALL, &all_at_zero, 4, &values(|_| 7)).is_ok());
    assert!(memory.store(by(1), ALL, &all_at_zero, 4, &values(|lane| lane as u32)).is_err());
}

#[test]
fn neighbouring_halves_and_bytes_are_apart() {
    let mut memory = SharedMemory::new(256, 64);
    put(&mut memory, 0, ALL, 0);
    memory.everybody_met();
    let half = values(|_| 0x0101);
    assert!(memory.store(by(0), ALL, &strided(0, 4), 2, &half).is_ok());
    assert!(memory.store(by(1), ALL, &strided(2, 4), 2, &half).is_ok());
    memory.everybody_met();
    let byte = values(|_| 2);
    assert!(memory.store(by(0), ALL, &strided(0, 2), 1, &byte).is_ok());
    assert!(memory.store(by(1), ALL, &strided(1, 2), 1, &byte).is_ok());
    assert_eq!(get(&mut memory, 1, ALL, 0), RACE, "a word over both halves");
}

#[test]
fn an_unwritten_byte_is_named() {
    let mut memory = SharedMemory::new(256, 32);
    assert!(memory.store(by(0), 1, &[0; 32], 2, &values(|_| 1)).is_ok());
    let fault = memory.load(by(0), 1, &[0; 32], 4).unwrap_err();
    assert_eq!(fault.violation.kind, FaultKind::Uninitialised);
    assert!(fault.violation.detail.contains("0x2"), "{}", fault.violation.detail);
    memory.next_cta();
    assert!(memory.load(by(0), 1, &[0; 32], 2).is_err(), "the next CTA starts unwritten");
}

#[test]
fn bounds_and_alignment_are_checked() {
    let mut memory = SharedMemory::new(100, 32);
    let kind = |r: Result<(), LaneViolation>| r.unwrap_err().violation.kind;
    assert_eq!(kind(memory.load(by(0), 1, &[100; 32], 4)), FaultKind::OutOfBounds);
    assert_eq!(kind(memory.load(by(0), 1, &[u32::MAX - 3; 32], 4)), FaultKind::OutOfBounds);
    assert_eq!(kind(memory.load(by(0), 1, &[8; 32], 16)), FaultKind::Misaligned);
    assert!(memory.load(by(0), 0, &[100; 32], 4).is_ok(), "lanes outside the mask do not count");
}

#[test]
fn a_copy_is_seen_by_its_thread_after_the_wait_and_by_others_after_a_barrier() {
    let mut memory = SharedMemory::new(1024, 64);
    copy(&mut memory, 0, 3, 16, &[5; 16], 0xffff).unwrap();
    memory.commit(0, ALL);
    copy(&mut memory, 0, 3, 32, &[6; 16], 0xffff).unwrap();
    memory.commit(0, ALL);
    let read = |m: &mut SharedMemory, warp, lane: usize, at| {
        m.load(by(warp), 1 << lane, &[at; 32], 16).err().map(|e| e.violation.kind)
    };
    assert_eq!(read(&mut memory, 0, 3, 16), Some(FaultKind::UnwaitedCopy));
    memory.wait(0, ALL, 2);
    assert_eq!(read(&mut memory, 0, 3, 16), Some(FaultKind::UnwaitedCopy));
    memory.wait(0, ALL, 1);
    assert_eq!(read(&mut memory, 0, 3, 16), None);
    assert_eq!(read(&mut memory, 0, 3, 32), Some(FaultKind::UnwaitedCopy));
    assert_eq!(read(&mut memory, 0, 4, 16), RACE, "another lane");
    assert_eq!(read(&mut memory, 1, 3, 16), RACE, "another warp");
    memory.everybody_met();
    assert_eq!(read(&mut memory, 1, 3, 16), None);
    assert_eq!(read(&mut memory, 1, 3, 32), Some(FaultKind::UnwaitedCopy));
    memory.wait_all(0, ALL);
    memory.everybody_met();
    assert_eq!(read(&mut memory, 1, 3, 32), None);
}

#[test]
fn a_copy_over_what_others_still_read_is_a_race() {
    let mut memory = SharedMemory::new(1024, 64);
    put(&mut memory, 0, ALL, 0);
    memory.everybody_met();
    get(&mut memory, 1, ALL, 0);
    let fault = copy(&mut memory, 0, 0, 0, &[5; 16], 0xffff).unwrap_err();
    assert_eq!(fault.kind, FaultKind::SharedRace);
}

#[test]
fn a_copy_of_unwritten_bytes_is_unwritten() {
    let mut memory = SharedMemory::new(64, 32);
    copy(&mut memory, 0, 0, 0, &[5; 16], 0x0fff).unwrap();
    memory.wait_all(0, 1);
    assert!(memory.load(by(0), 1, &[0; 32], 8).is_ok());
    assert_eq!(
        memory.load(by(0), 1, &[8; 32], 8).unwrap_err().violation.kind,
        FaultKind::Uninitialised
    );
}

#[test]
fn a_row_of_a_matrix_is_read_by_the_whole_warp() {
    let mut memory = SharedMemory::new(1024, 32);
    put(&mut memory, 0, ALL, 0);
    assert_eq!(row(&mut memory, 0).unwrap_err().kind, FaultKind::SharedRace);
    memory.lanes_met(0, ALL, true);
    assert_eq!(row(&mut memory, 16).unwrap()[0], 4);
    assert_eq!(put(&mut memory, 0, ALL, 0), RACE, "lanes that did not meet since the read");
}

#[test]
fn atomics_race_with_plain_accesses_only() {
    let mut memory = SharedMemory::new(64, 64);
    put(&mut memory, 0, 1, 0);
    memory.everybody_met();
    for warp in [0, 1] {
        for lane in 0..32 {
            let by = Access { strong: true, ..by(warp) };
            let view = memory.view(by);
            memory.atomic(&view, lane, 0, 4, |old| old + 1).unwrap();
        }
    }
    assert_eq!(get(&mut memory, 1, 1, 0), RACE);
    memory.everybody_met();
    assert_eq!(get(&mut memory, 1, 1, 0), None);
    assert_eq!(memory.value(0, 4), 64);
}

#[test]
fn a_published_flag_orders_what_came_before_it() {
    let mut memory = SharedMemory::new(1024, 64);
    put(&mut memory, 0, ALL, 128);
    memory.publish(0, 0);
    memory.learn(1, 4);
    assert_eq!(get(&mut memory, 1, ALL, 128), RACE);
    memory.learn(1, 0);
    assert_eq!(get(&mut memory, 1, ALL, 128), None);
}

#[test]
fn cta_after_cta_and_barrier_after_barrier_time_never_runs_out() {
    let mut memory = SharedMemory::new(64, 64);
    for _ in 0..3 {
        for _ in 0..2_000_000 {
            memory.everybody_met();
        }
        put(&mut memory, 0, ALL & 0xff, 0);
        assert_eq!(get(&mut memory, 1, 0xff, 0), RACE);
        memory.next_cta();
    }
}
