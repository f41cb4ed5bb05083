//! `cp.async`: copies from global to shared memory that land when they are waited for.
//!
//! The bytes are read at once; the destination is out of bounds for everybody until the wait.

use super::access::{is_strong, lanes};
use super::fault::{Outcome, Wrong};
use super::locate::Traffic;
use super::step::Step;
use crate::launch::FaultKind;
use crate::memory::banks::wavefronts;
use crate::ptx::ir::{CpAsync, Semantics};

impl Step<'_, '_> {
    /// One `cp.async` of the executing lanes.
    pub(super) fn cp_async(&mut self, copy: &CpAsync) -> Outcome {
        let bytes = copy.bytes;
        let sources = self.addresses(copy.src)?;
        let destinations = self.addresses(copy.dst)?;
        let places = self.shared_places(self.mask, &destinations, bytes)?;
        let counts = self.source_bytes(copy)?;
        let reading = lanes(self.mask).fold(0, |m, l| m | u32::from(counts[l] > 0) << l);
        let located = if reading == 0 {
            None
        } else {
            // The whole source must be there: hardware may fetch more than it keeps.
            Some(self.locate_copy(reading, sources, &counts, bytes)?)
        };
        self.shared_traffic(wavefronts(self.mask, &places, bytes));
        let memory = self.cta.grid.memory;
        let by = self.access(is_strong(Semantics::Weak));
        let view = self.cta.shared.view(by);
        for lane in lanes(self.mask) {
            let mut data = [0u8; 16];
            let mut written = u32::MAX >> (32 - bytes);
            if let Some(offsets) = &located
                && counts[lane] > 0
            {
                let offset = offsets[lane];
                if counts[lane] == 16 {
                    data[..8].copy_from_slice(&memory.load(offset, 8).to_ne_bytes());
                    data[8..].copy_from_slice(&memory.load(offset + 8, 8).to_ne_bytes());
                } else {
                    self.read_part(&mut data, offset, counts[lane]);
                }
                let kept = u32::MAX >> (32 - counts[lane]);
                written =
                    (memory.written_bits(offset, bytes as usize) as u32 & kept) | (written & !kept);
            }
            self.cta
                .shared
                .copy_in(&view, lane, places[lane], &data, bytes, written)
                .map_err(|violation| Wrong::access(lane, violation))?;
        }
        self.cta.progress = self.cta.clock;
        Ok(())
    }

    /// Reads fewer bytes than a whole copy; the rest stays zero.
    fn read_part(&self, data: &mut [u8; 16], offset: usize, count: u32) {
        let memory = self.cta.grid.memory;
        for (i, byte) in data[..count as usize].iter_mut().enumerate() {
            *byte = memory.load(offset + i, 1) as u8;
        }
    }

    /// Bytes each lane reads.
    fn source_bytes(&mut self, copy: &CpAsync) -> Outcome<[u32; 32]> {
        let mut counts = match copy.source_bytes {
            None => [copy.bytes; 32],
            Some(operand) => self.registers().words(operand),
        };
        if let Some(ignore) = copy.ignore_source {
            let ignored = self.registers().predicate(ignore);
            lanes(ignored).for_each(|lane| counts[lane] = 0);
        }
        match lanes(self.mask).find(|lane| counts[*lane] > copy.bytes) {
            None => Ok(counts),
            Some(lane) => {
                let detail = format!("a cp.async of {} reads {} bytes", copy.bytes, counts[lane]);
                Err(Wrong::lane(FaultKind::OutOfBounds, lane, detail))
            }
        }
    }

    /// Offsets of the sources of the lanes that read. A lane that reads only a part may have its
    /// source end at the end of an allocation.
    fn locate_copy(
        &mut self,
        reading: u32,
        sources: [u64; 32],
        counts: &[u32; 32],
        bytes: u32,
    ) -> Outcome<[usize; 32]> {
        let whole = lanes(reading).fold(0, |m, l| m | u32::from(counts[l] == bytes) << l);
        let mut offsets = [0usize; 32];
        if whole != 0 {
            offsets = self.locate(whole, sources, bytes, Traffic::Load)?.offsets;
        }
        let part = reading & !whole;
        for lane in lanes(part) {
            let aligned = sources[lane] & u64::from(bytes - 1) == 0;
            if !aligned {
                // The full check says what is wrong.
                self.locate(1 << lane, sources, bytes, Traffic::Uncounted)?;
            }
            let count = counts[lane];
            let whole_words = count.next_multiple_of(4).next_power_of_two().min(bytes);
            let traffic = Traffic::Load;
            let memory = self.cta.grid.memory;
            memory
                .span(sources[lane], count.into())
                .map_err(|violation| Wrong::access(lane, violation))?;
            offsets[lane] = if memory.span(sources[lane], whole_words.into()).is_ok() {
                self.locate(1 << lane, sources, whole_words, traffic)?.offsets[lane]
            } else {
                self.locate(1 << lane, sources, 1, traffic)?.offsets[lane]
            };
        }
        Ok(offsets)
    }
}
