//! Who touched which bytes last, to find accesses that nothing orders.
//!
//! Two accesses of one launch are ordered when they are one thread's, when a block barrier lies
//! between them, or when both threads took part in a warp collective in between. Blocks are never
//! ordered. Atomics do not race with each other; they order nothing either.

use crate::error::Fault;

/// Kinds of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Atomic,
}

impl Access {
    fn name(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "write",
            Access::Atomic => "atomic update",
        }
    }
}

/// A thread at the moment of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Distinguishes launches (global memory) and blocks (shared memory).
    pub(crate) run: u32,
    /// Linear block and thread index.
    pub(crate) block: u32,
    pub(crate) thread: u32,
    /// Block barriers passed.
    pub(crate) epoch: u32,
    /// The warp's collectives are numbered: the last that this thread took part in, its mask,
    /// and the last in which the whole warp took part.
    pub(crate) collective: u32,
    pub(crate) mask: u32,
    pub(crate) whole_warp: u32,
}

impl Place {
    const NOWHERE: Place = Place {
        run: 0,
        block: 0,
        thread: 0,
        epoch: 0,
        collective: 0,
        mask: 0,
        whole_warp: 0,
    };

    /// Whether `earlier`, of the same run, is ordered before this place.
    fn follows(&self, earlier: &Place) -> bool {
        if self.block != earlier.block {
            return false;
        }
        let same_warp = self.thread / 32 == earlier.thread / 32;
        let joined = self.mask >> (earlier.thread % 32) & 1 == 1;
        self.thread == earlier.thread
            || earlier.epoch < self.epoch
            || same_warp
                && (joined && earlier.collective < self.collective
                    || earlier.collective < self.whole_warp)
    }
}

/// Past accesses of a few bytes. Runs start at 1: zeros mean none.
#[derive(Clone, Copy)]
struct Cell {
    writer: Place,
    atomic: bool,
    reader: Place,
    /// Readers since the last barrier were of several warps or of several blocks.
    many_warps: bool,
    many_blocks: bool,
}

impl Cell {
    const EMPTY: Cell = Cell {
        writer: Place::NOWHERE,
        atomic: false,
        reader: Place::NOWHERE,
        many_warps: false,
        many_blocks: false,
    };
}

/// The accesses to one buffer.
#[derive(Clone, Default)]
pub(crate) struct Shadow {
    cells: Vec<Cell>,
    /// Log2 of the bytes of a cell: words, until somebody touches less than a word.
    shift: u32,
}

impl Shadow {
    /// Notes an access of `bytes` at `offset` of a buffer of `size` bytes; an unordered one is a
    /// race.
    #[inline]
    pub(crate) fn access(
        &mut self,
        (offset, bytes, size): (usize, usize, usize),
        access: Access,
        now: &Place,
        space: &'static str,
    ) -> Result<(), Fault> {
        if self.cells.is_empty() {
            self.shift = 2;
            self.cells = vec![Cell::EMPTY; size.div_ceil(4)];
        }
        if bytes < 4 && self.shift > 0 {
            let fine = |cell: &Cell| [*cell; 4];
            self.cells = self.cells.iter().flat_map(fine).collect();
            self.shift = 0;
        }
        let first = offset >> self.shift;
        let count = (bytes >> self.shift).max(1);
        for cell in &mut self.cells[first..first + count] {
            if let Some((other, place)) = cell.note(access, now) {
                return Err(Fault::Race {
                    space,
                    offset: offset as u64,
                    access: access.name(),
                    other: other.name(),
                    other_block: place.block,
                    other_thread: place.thread,
                });
            }
        }
        Ok(())
    }
}

impl Cell {
    /// Returns the access that this one races with.
    #[inline]
    fn note(&mut self, access: Access, now: &Place) -> Option<(Access, Place)> {
        let written = self.writer.run == now.run;
        let both_atomic = self.atomic && access == Access::Atomic;
        if written && !both_atomic && !now.follows(&self.writer) {
            let other = if self.atomic {
                Access::Atomic
            } else {
                Access::Write
            };
            return Some((other, self.writer));
        }
        let read = self.reader.run == now.run;
        if access == Access::Read {
            let barrier_since = read
                && self.reader.block == now.block
                && self.reader.epoch < now.epoch
                && !self.many_blocks;
            if read && !barrier_since {
                self.many_blocks |= self.reader.block != now.block;
                self.many_warps |= self.reader.thread / 32 != now.thread / 32;
            } else {
                (self.many_blocks, self.many_warps) = (false, false);
            }
            self.reader = *now;
            return None;
        }
        if read {
            let barrier_since = self.reader.block == now.block && self.reader.epoch < now.epoch;
            let ordered = !self.many_blocks
                && (barrier_since || !self.many_warps && now.follows(&self.reader));
            if !ordered {
                return Some((Access::Read, self.reader));
            }
        }
        self.writer = *now;
        self.atomic = access == Access::Atomic;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(block: u32, thread: u32, epoch: u32) -> Place {
        Place {
            run: 1,
            block,
            thread,
            epoch,
            ..Place::NOWHERE
        }
    }

    fn races(first: (Access, Place), second: (Access, Place)) -> bool {
        let mut shadow = Shadow::default();
        let range = (4, 4, 16);
        shadow.access(range, first.0, &first.1, "global").unwrap();
        shadow.access(range, second.0, &second.1, "global").is_err()
    }

    #[test]
    fn barriers_order_threads_of_a_block() {
        use Access::{Atomic, Read, Write};
        assert!(races((Write, place(0, 1, 0)), (Read, place(0, 2, 0))));
        assert!(!races((Write, place(0, 1, 0)), (Read, place(0, 2, 1))));
        assert!(!races((Write, place(0, 1, 0)), (Read, place(0, 1, 0))));
        assert!(races((Read, place(0, 1, 0)), (Write, place(0, 2, 0))));
        assert!(!races((Read, place(0, 1, 0)), (Read, place(0, 2, 0))));
        assert!(races((Write, place(0, 1, 0)), (Read, place(1, 1, 9))));
        assert!(!races((Atomic, place(0, 1, 0)), (Atomic, place(1, 1, 0))));
        assert!(races((Atomic, place(0, 1, 0)), (Read, place(1, 1, 0))));
    }

    #[test]
    fn a_collective_orders_the_lanes_that_took_part() {
        let before = place(0, 1, 0);
        let half = Place {
            thread: 2,
            collective: 1,
            mask: 0xffff,
            ..before
        };
        let other_half = Place {
            thread: 17,
            collective: 1,
            mask: 0xffff_0000,
            ..before
        };
        assert!(!races((Access::Write, before), (Access::Read, half)));
        assert!(races((Access::Write, before), (Access::Read, other_half)));
    }

    #[test]
    fn neighbouring_bytes_do_not_race_but_shared_words_do() {
        let mut shadow = Shadow::default();
        let (a, b) = (place(0, 0, 0), place(0, 1, 0));
        shadow
            .access((0, 1, 8), Access::Write, &a, "global")
            .unwrap();
        shadow
            .access((1, 1, 8), Access::Write, &b, "global")
            .unwrap();
        assert!(
            shadow
                .access((0, 4, 8), Access::Read, &a, "global")
                .is_err()
        );
    }

    #[test]
    fn a_writer_among_many_readers_is_found() {
        let mut shadow = Shadow::default();
        for thread in [40, 3] {
            let reader = place(0, thread, 2);
            shadow
                .access((0, 4, 4), Access::Read, &reader, "shared")
                .unwrap();
        }
        let writer = place(0, 3, 2);
        assert!(
            shadow
                .access((0, 4, 4), Access::Write, &writer, "shared")
                .is_err()
        );
    }
}
